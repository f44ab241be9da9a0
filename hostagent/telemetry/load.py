"""How busy the host is, measured between one report and the next.

Time is counted by a clock that is never set. Rates cover the interval that the report names, so that a reader can average
them over any longer time; the first report covers the time since the meter was made.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Final, Literal

from hostagent.discovery.guests import Guest
from hostagent.telemetry import proc_counters
from hostagent.telemetry.proc_counters import PROC, CpuTimes, ProcessTimes, Stall
from qmp_migrate.bus.messages.field_types import now
from qmp_migrate.bus.messages.registry import GuestLoad, HostLoad, InterfaceLoad, Pressure, Stalled

GUESTS_LIMIT: Final = 300
"""Guests in one report, the busiest ones: a report has to stay below 64 KiB."""
INTERFACES_LIMIT: Final = 64
PRESSURES: Final = ("cpu", "memory", "io")


class LoadMeter:
    """Measures one host.

    Args:
        host: Name of the host.
    """

    def __init__(self, host: str) -> None:
        self._host = host
        self._seq = 0
        self._at = time.monotonic()
        self._cpu = proc_counters.cpu_times(proc_counters.read(PROC / "stat"))
        self._network = proc_counters.interfaces(proc_counters.read(PROC / "net" / "dev"))
        self._guests: dict[tuple[int, int], int] = {}
        self.dirty: dict[str, int] = {}
        """What was measured last of each guest's dirty rate, bytes per second; see `dirty_rate_sampler`."""

    def read(self, guests: Iterable[Guest]) -> HostLoad:
        """Return the load since the last call.

        Args:
            guests: Guests to measure; one that ends meanwhile is left out.
        """
        at = time.monotonic()
        elapsed_s = max(at - self._at, 1e-3)
        cpu = proc_counters.cpu_times(proc_counters.read(PROC / "stat"))
        memory = proc_counters.meminfo(proc_counters.read(PROC / "meminfo"))
        network = proc_counters.interfaces(proc_counters.read(PROC / "net" / "dev"))
        rates = proc_counters.rates(self._network, network, elapsed_s)
        self._seq += 1
        load = HostLoad(
            host=self._host,
            at=now(),
            seq=self._seq,
            interval_ms=round(elapsed_s * 1000),
            cpu_percent=_share(self._cpu, cpu, "busy") or 0.0,
            iowait_percent=_share(self._cpu, cpu, "iowait"),
            steal_percent=_share(self._cpu, cpu, "steal"),
            load1=proc_counters.load_average(proc_counters.read(PROC / "loadavg")),
            memory_total_bytes=memory.get("MemTotal", 0),
            memory_available_bytes=memory.get("MemAvailable", memory.get("MemFree", 0)),
            swap_total_bytes=memory.get("SwapTotal"),
            swap_free_bytes=memory.get("SwapFree"),
            huge_pages_total=memory.get("HugePages_Total"),
            huge_pages_free=memory.get("HugePages_Free"),
            huge_page_bytes=memory.get("Hugepagesize"),
            pressure=_pressure(),
            receive_bytes_per_s=sum(received for received, _ in rates.values()),
            transmit_bytes_per_s=sum(sent for _, sent in rates.values()),
            interfaces=[
                InterfaceLoad(
                    name=name[:64],
                    receive_bytes_per_s=received,
                    transmit_bytes_per_s=sent,
                    speed_bits_per_s=proc_counters.link_speed(name),
                )
                for name, (received, sent) in sorted(rates.items())[:INTERFACES_LIMIT]
            ],
            guests=self._of_guests(guests, elapsed_s),
        )
        self._at, self._cpu, self._network = at, cpu, network
        return load

    def _of_guests(self, guests: Iterable[Guest], elapsed_s: float) -> list[GuestLoad]:
        loads, before, self._guests = [], self._guests, {}
        for guest in guests:
            found = proc_counters.process(guest.pid)
            if found is None or found.start_ticks != guest.start_ticks:
                continue  # gone, and its pid may be another's
            key = guest.pid, guest.start_ticks
            self._guests[key] = found.cpu_ticks
            loads.append(
                GuestLoad(
                    vm=guest.name,
                    cpu_percent=_cpu_percent(before.get(key), found, elapsed_s),
                    resident_bytes=found.resident_bytes,
                    dirty_bytes_per_s=self.dirty.get(guest.name),
                )
            )
        loads.sort(key=lambda load: load.cpu_percent or 0.0, reverse=True)
        return sorted(loads[:GUESTS_LIMIT], key=lambda load: load.vm)


def _cpu_percent(before: int | None, found: ProcessTimes, elapsed_s: float) -> float | None:
    if before is None:
        return None
    return round(max(0, found.cpu_ticks - before) / proc_counters.TICKS_PER_S / elapsed_s * 100, 1)


def _share(before: CpuTimes | None, after: CpuTimes | None, part: Literal["busy", "iowait", "steal"]) -> float | None:
    """Return the share of all processors' time between two readings, percent."""
    if before is None or after is None or after.total <= before.total:
        return None
    ticks: int = max(0, getattr(after, part) - getattr(before, part))
    return round(min(100.0, ticks / (after.total - before.total) * 100), 1)


def _pressure() -> Pressure | None:
    found = {name: _stalled(proc_counters.pressure(proc_counters.read(PROC / "pressure" / name))) for name in PRESSURES}
    return Pressure(**found) if any(part is not None for part in found.values()) else None


def _stalled(lines: Mapping[str, Stall]) -> Stalled | None:
    some, full = lines.get("some"), lines.get("full")
    if some is None:
        return None
    return Stalled(
        some_avg10_percent=some.avg10_percent,
        some_total_us=some.total_us,
        full_avg10_percent=full.avg10_percent if full is not None else None,
        full_total_us=full.total_us if full is not None else None,
    )
