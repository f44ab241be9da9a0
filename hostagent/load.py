"""How busy the host is, measured between one report and the next."""

from __future__ import annotations

import time
from collections.abc import Iterable

import psutil

from hostagent.discovery import Guest
from qmp_migrate.bus.fields import now
from qmp_migrate.bus.messages import GuestLoad, HostLoad

GUESTS_LIMIT = 300
"""Guests in one report, the busiest ones: a report has to stay below 64 KiB."""


class LoadMeter:
    """Measures one host. The first report covers the time since the meter was made.

    Args:
        host: Name of the host.
    """

    def __init__(self, host: str) -> None:
        self._host = host
        self._seq = 0
        self._at = time.monotonic()
        self._network = _network_bytes()
        self._cpu_s: dict[tuple[int, int], float] = {}
        psutil.cpu_percent()  # the first call only marks the beginning

    def read(self, guests: Iterable[Guest]) -> HostLoad:
        """Return the load since the last call.

        Args:
            guests: Guests to measure; one that ends meanwhile is left out.
        """
        at, network = time.monotonic(), _network_bytes()
        elapsed_s = max(at - self._at, 1e-3)
        received, sent = (max(0, new - old) for new, old in zip(network, self._network, strict=True))
        memory = psutil.virtual_memory()
        self._seq += 1
        load = HostLoad(
            host=self._host,
            at=now(),
            seq=self._seq,
            interval_ms=round(elapsed_s * 1000),
            cpu_percent=min(100.0, float(psutil.cpu_percent())),
            memory_total_bytes=memory.total,
            memory_available_bytes=memory.available,
            receive_bytes_per_s=round(received / elapsed_s),
            transmit_bytes_per_s=round(sent / elapsed_s),
            guests=self._guests(guests, elapsed_s),
        )
        self._at, self._network = at, network
        return load

    def _guests(self, guests: Iterable[Guest], elapsed_s: float) -> list[GuestLoad]:
        loads, before, self._cpu_s = [], self._cpu_s, {}
        for guest in guests:
            try:
                process = psutil.Process(guest.pid)
                times, resident = process.cpu_times(), process.memory_info().rss
            except psutil.Error:
                continue
            key, cpu_s = (guest.pid, guest.start_ticks), times.user + times.system
            self._cpu_s[key] = cpu_s
            share = None if key not in before else round(max(0.0, cpu_s - before[key]) / elapsed_s * 100, 1)
            loads.append(GuestLoad(vm=guest.name, cpu_percent=share, resident_bytes=resident, dirty_bytes_per_s=None))
        loads.sort(key=lambda load: load.cpu_percent or 0.0, reverse=True)
        return sorted(loads[:GUESTS_LIMIT], key=lambda load: load.vm)


def _network_bytes() -> tuple[int, int]:
    """Return bytes received and sent by all interfaces without loopback, since they exist."""
    counters = [count for name, count in psutil.net_io_counters(pernic=True).items() if name != "lo"]
    return sum(count.bytes_recv for count in counters), sum(count.bytes_sent for count in counters)
