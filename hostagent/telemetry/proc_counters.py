"""What the kernel counts of a host: read from ``/proc`` and ``/sys``, parsed without trust. Pure but for the reading.

Everything here may be absent (an old kernel, a container, a file that is hidden): then it is ``None``, never 0.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")
SYS_NET: Final = Path("/sys/class/net")
LIMIT: Final = 1 << 20
PAGE: Final = os.sysconf("SC_PAGE_SIZE")
TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """Time that all processors together have spent since boot, in clock ticks.

    Attributes:
        busy: Working, for processes, the kernel and guests.
        idle: Doing nothing.
        iowait: Doing nothing, while something waits for a disk.
        steal: Ready to work, but held back by the hypervisor below.
    """

    busy: int
    idle: int
    iowait: int
    steal: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.busy + self.idle + self.iowait + self.steal


@dataclass(frozen=True, slots=True)
class Stall:
    """One line of pressure stall information.

    Attributes:
        avg10_percent: Share of the last ten seconds.
        total_us: Since boot.
    """

    avg10_percent: float
    total_us: int


@dataclass(frozen=True, slots=True)
class ProcessTimes:
    """One process.

    Attributes:
        start_ticks: When it started, clock ticks since boot: tells a process from a later one of the same pid.
        cpu_ticks: Processor time of all its threads.
        resident_bytes: Memory that is resident.
    """

    start_ticks: int
    cpu_ticks: int
    resident_bytes: int


def read(path: Path) -> str | None:
    """Return a small file's text; ``None`` where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(LIMIT).decode("utf-8", "replace")
    except OSError:
        return None


def cpu_times(text: str | None) -> CpuTimes | None:
    """Read ``/proc/stat``. Time of guests is in ``user`` and ``nice`` already."""
    for line in (text or "").splitlines():
        words = line.split()
        if words[:1] == ["cpu"]:
            try:
                user, nice, system, idle, iowait, irq, softirq, steal, *_ = (*map(int, words[1:]), *[0] * 8)
            except ValueError:
                return None
            return CpuTimes(user + nice + system + irq + softirq, idle, iowait, steal)
    return None


def meminfo(text: str | None) -> dict[str, int]:
    """Read ``/proc/meminfo``: bytes, or plain counts where the kernel gives no unit."""
    found: dict[str, int] = {}
    for line in (text or "").splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdecimal() and len(words[0]) < 19:
            found[name] = int(words[0]) * (1024 if words[1:] == ["kB"] else 1)
    return found


def pressure(text: str | None) -> dict[str, Stall]:
    """Read one file of ``/proc/pressure``: ``some`` and ``full``, as far as they are there."""
    found: dict[str, Stall] = {}
    for line in (text or "").splitlines():
        kind, *words = line.split() or [""]
        values = dict(word.partition("=")[::2] for word in words)
        try:
            found[kind] = Stall(min(100.0, max(0.0, float(values["avg10"]))), max(0, int(values["total"])))
        except (KeyError, ValueError):
            continue
    return found


def load_average(text: str | None) -> float | None:
    """Read the first figure of ``/proc/loadavg``."""
    try:
        return max(0.0, float((text or "").split()[0]))
    except (IndexError, ValueError):
        return None


def interfaces(text: str | None) -> dict[str, tuple[int, int]]:
    """Read ``/proc/net/dev``: bytes received and sent of each interface but loopback."""
    found: dict[str, tuple[int, int]] = {}
    for line in (text or "").splitlines():
        name, colon, rest = line.rpartition(":")
        words = rest.split()
        if colon and len(words) >= 9 and name.strip() != "lo":
            with contextlib.suppress(ValueError):
                found[name.strip()] = max(0, int(words[0])), max(0, int(words[8]))
    return found


def link_speed(name: str) -> int | None:
    """Return the speed of an interface in bits per second; ``None`` where it has none (bridges, taps) or is down."""
    text = (read(SYS_NET / name / "speed") or "").strip()
    return int(text) * 1_000_000 if text.isdecimal() and 0 < int(text) < 10**7 else None


def process(pid: int) -> ProcessTimes | None:
    """Read a process; ``None``: it is gone, or hidden."""
    text = read(PROC / str(pid) / "stat")
    fields = (text or "").rpartition(")")[2].split()
    try:
        return ProcessTimes(int(fields[19]), int(fields[11]) + int(fields[12]), max(0, int(fields[21])) * PAGE)
    except (IndexError, ValueError):
        return None


def rates(
    before: Mapping[str, tuple[int, int]], after: Mapping[str, tuple[int, int]], seconds: float
) -> dict[str, tuple[int, int]]:
    """Return bytes per second of each interface that was there both times; one whose counter went back has begun anew."""
    found: dict[str, tuple[int, int]] = {}
    for name, now in after.items():
        if name in before:
            received, sent = (max(0, new - old) for new, old in zip(now, before[name], strict=True))
            found[name] = round(received / seconds), round(sent / seconds)
    return found
