"""The agent's metrics: what it publishes on the bus, in Prometheus' words and base units.

Names begin with ``qmp_migrate_``. Labels are bounded: guests that are here, interfaces, run states; never a migration's id.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from qmp_migrate.bus.messages.registry import HostLoad, HostVm, Stalled

GUESTS_LIMIT = 300

Gauge = GaugeMetricFamily


class AgentCollector(Collector):
    """Makes the metrics when they are asked for.

    Args:
        version: Of the agent.
        load: Returns the last load report, ``None`` before the first.
        guests: Returns what is known of each guest.
        bus: Returns whether the broker is connected, how many messages wait, how many were given up.
        events: Returns how many events were seen.
    """

    def __init__(
        self,
        version: str,
        load: Callable[[], HostLoad | None],
        guests: Callable[[], Sequence[HostVm]],
        bus: Callable[[], tuple[bool, int, int]],
        events: Callable[[], int],
    ) -> None:
        self._version = version
        self._load = load
        self._guests = guests
        self._bus = bus
        self._events = events

    def collect(self) -> Iterator[Metric]:
        """Yield every metric."""
        info = Gauge("qmp_migrate_agent_info", "The agent; its value is 1.", labels=["version"])
        info.add_metric([self._version], 1)
        yield info
        connected, waiting, dropped = self._bus()
        yield Gauge("qmp_migrate_agent_bus_connected", "Whether the broker is connected.", value=float(connected))
        yield Gauge("qmp_migrate_agent_bus_queue_messages", "Messages that wait for the broker.", value=waiting)
        yield CounterMetricFamily(
            "qmp_migrate_agent_bus_dropped_messages", "Messages given up, for want of room.", value=dropped
        )
        yield CounterMetricFamily(
            "qmp_migrate_agent_events", "QMP events and own ones that were seen.", value=self._events()
        )
        yield from _guests(self._guests())
        if (load := self._load()) is not None:
            yield from _host(load)
            yield from _of_guests(load)


def _guests(guests: Sequence[HostVm]) -> Iterator[Metric]:
    states = Gauge("qmp_migrate_guests", "Guests on this host, by run state.", labels=["runstate", "origin"])
    for (runstate, origin), number in sorted(Counter((g.runstate, g.origin) for g in guests).items()):
        states.add_metric([runstate, origin], number)
    yield states
    running = Gauge("qmp_migrate_guest_running", "Whether a guest runs here.", labels=["vm"])
    memory = Gauge("qmp_migrate_guest_memory_bytes", "Memory that a guest was given.", labels=["vm"])
    vcpus = Gauge("qmp_migrate_guest_vcpus", "Virtual processors of a guest.", labels=["vm"])
    watched = Gauge("qmp_migrate_guest_monitor_connected", "Whether its monitor answers the agent.", labels=["vm"])
    for guest in guests[:GUESTS_LIMIT]:
        running.add_metric([guest.vm], float(guest.runstate == "running"))
        watched.add_metric([guest.vm], float(guest.monitor == "connected"))
        if guest.memory_bytes is not None:
            memory.add_metric([guest.vm], guest.memory_bytes)
        if guest.vcpus is not None:
            vcpus.add_metric([guest.vm], guest.vcpus)
    yield from (running, memory, vcpus, watched)


def _host(load: HostLoad) -> Iterator[Metric]:
    percents = {
        "busy": ("Share of all processors' time that is used.", load.cpu_percent),
        "iowait": ("Share in which they wait for a disk.", load.iowait_percent),
        "steal": ("Share in which the hypervisor below holds them back.", load.steal_percent),
    }
    for name, (text, percent) in percents.items():
        if percent is not None:
            yield Gauge(f"qmp_migrate_host_cpu_{name}_ratio", text, value=percent / 100)
    values: list[tuple[str, str, float | None]] = [
        ("host_load1", "The kernel's load average of a minute.", load.load1),
        ("host_memory_total_bytes", "Physical memory.", load.memory_total_bytes),
        ("host_memory_available_bytes", "What can be given out without swapping.", load.memory_available_bytes),
        ("host_swap_total_bytes", "Swap.", load.swap_total_bytes),
        ("host_swap_free_bytes", "Swap that is free.", load.swap_free_bytes),
        ("host_huge_pages", "Huge pages of the default size.", load.huge_pages_total),
        ("host_huge_pages_free", "Huge pages that are free.", load.huge_pages_free),
    ]
    for name, text, value in values:
        if value is not None:
            yield Gauge(f"qmp_migrate_{name}", text, value=value)
    received = Gauge("qmp_migrate_host_network_receive_bytes_per_second", "What comes in.", labels=["interface"])
    sent = Gauge("qmp_migrate_host_network_transmit_bytes_per_second", "What goes out.", labels=["interface"])
    for interface in load.interfaces:
        received.add_metric([interface.name], interface.receive_bytes_per_s)
        sent.add_metric([interface.name], interface.transmit_bytes_per_s)
    yield from (received, sent)
    yield from _pressure(load)


def _pressure(load: HostLoad) -> Iterator[Metric]:
    now = Gauge(
        "qmp_migrate_host_pressure_ratio", "Share of the last 10 s in which tasks waited.", labels=["for", "who"]
    )
    total = CounterMetricFamily(
        "qmp_migrate_host_pressure_seconds", "Time in which tasks waited.", labels=["for", "who"]
    )
    parts: Iterable[tuple[str, Stalled | None]] = (
        (("cpu", load.pressure.cpu), ("memory", load.pressure.memory), ("io", load.pressure.io))
        if load.pressure
        else ()
    )
    for what, part in parts:
        if part is None:
            continue
        now.add_metric([what, "some"], part.some_avg10_percent / 100)
        total.add_metric([what, "some"], part.some_total_us / 1e6)
        if part.full_avg10_percent is not None and part.full_total_us is not None:
            now.add_metric([what, "full"], part.full_avg10_percent / 100)
            total.add_metric([what, "full"], part.full_total_us / 1e6)
    yield from (now, total)


def _of_guests(load: HostLoad) -> Iterator[Metric]:
    cpu = Gauge("qmp_migrate_guest_cpu_cores", "Processors that a guest's QEMU uses.", labels=["vm"])
    resident = Gauge("qmp_migrate_guest_resident_bytes", "Memory of a guest's QEMU that is resident.", labels=["vm"])
    dirty = Gauge(
        "qmp_migrate_guest_dirty_bytes_per_second", "How fast a guest dirties memory, sampled.", labels=["vm"]
    )
    for guest in load.guests:
        resident.add_metric([guest.vm], guest.resident_bytes)
        if guest.cpu_percent is not None:
            cpu.add_metric([guest.vm], guest.cpu_percent / 100)
        if guest.dirty_bytes_per_s is not None:
            dirty.add_metric([guest.vm], guest.dirty_bytes_per_s)
    yield from (cpu, resident, dirty)
