"""``calc-dirty-rate``: what a running guest dirties, measured by its own QEMU. The guest runs on meanwhile.

Three kinds. *page-sampling* hashes pages here and there and looks again: works everywhere, costs no guest time, and sees
content, so a page rewritten with the same bytes does not count. *dirty-bitmap* has KVM log the writes: exact. *dirty-ring*
has KVM count them for each vCPU, and counts a page again each time that QEMU has emptied the ring: more than is dirty in the
end, never less. A guest that was started with a dirty ring has no bitmap, and QEMU refuses the wrong one of the two.

Both of KVM's are asked for under KVM only: without KVM QEMU 7.2 ends itself on them (the guest is lost; seen on 7.2.22), and
10.0 and 11.1 answer 0 or refuse.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any, Final, Literal

from qmp_migrate.errors import MonitorError, MonitorTimeout, QmpCommandFailed
from qmp_migrate.qemu.monitor import Monitor

Kind = Literal["page-sampling", "dirty-bitmap"]

WHOLE_SECONDS_MS: Final[tuple[int, ...]] = (1000, 2000, 4000)
"""Where QEMU (before 8.2) knows whole seconds only."""

MILLISECONDS: Final[tuple[int, ...]] = (100, 300, 1000, 3000)

SAMPLED_PAGES: Final = 65536
"""Pages that are hashed in all: about 0.1 s of one of the host's cores, each time."""

LEAST_PER_GIB: Final = 512
MOST_PER_GIB: Final = 16384
"""QEMU's own default and limit of ``sample-pages``."""

LEAST_BLOCK: Final = 128 << 20
"""Memory in smaller pieces is not sampled at all."""

RESOLUTION_BYTES_PER_S: Final = 1 << 20
"""QEMU tells whole MiB per second, rounded down."""

POLL_S: Final = 0.02
PATIENCE_S: Final = 10.0
"""How much longer than asked for a measurement may take: hashing many pages on a busy host."""

_MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Dirtied:
    """One measurement: so many bytes were dirtied within so many seconds."""

    seconds: float
    size_bytes: int
    kind: Kind


async def measure(monitor: Monitor, memory_bytes: int, *, kvm: bool) -> list[Dirtied]:
    """Measure what a guest dirties, over several times.

    Args:
        monitor: The guest's.
        memory_bytes: Its memory.
        kvm: It runs under KVM.

    Returns:
        One for each time and kind; see `RESOLUTION_BYTES_PER_S`.

    Raises:
        MonitorError: QEMU does not answer, or refuses (for example because a measurement of somebody else is under way).
    """
    kind: Kind = "dirty-bitmap" if kvm else "page-sampling"
    times, fine = MILLISECONDS, True
    found: list[Dirtied] = []
    while len(found) < len(times):
        try:
            found.append(await _measure(monitor, times[len(found)], kind, memory_bytes, fine=fine))
        except QmpCommandFailed as error:
            if fine and "calc-time-unit" in error.desc:
                times, fine = WHOLE_SECONDS_MS, False
            elif kind == "dirty-bitmap" and not found:
                kind = "page-sampling"  # a dirty ring excludes the bitmap
            else:
                raise
    return found


async def measure_vcpus(monitor: Monitor, *, seconds: int = 1) -> tuple[int, ...]:
    """Measure what each vCPU dirties within a second, bytes per second, in order; also while memory is copied.

    Only for a guest under KVM with a dirty ring: without KVM QEMU 7.2 ends itself on the question.

    Args:
        monitor: The guest's.
        seconds: For how long.

    Raises:
        QmpCommandFailed: There is no dirty ring, or QEMU measures for somebody else.
        MonitorError: QEMU does not answer, or not as QEMU does.
    """
    answer = await _ask(monitor, {"calc-time": seconds, "mode": "dirty-ring"}, seconds)
    try:
        if answer["mode"] != "dirty-ring":
            raise MonitorError("QEMU has measured for somebody else meanwhile", host=monitor.host)
        rates = sorted((int(one["id"]), int(one["dirty-rate"]) * _MIB) for one in answer["vcpu-dirty-rate"])
    except (TypeError, KeyError, ValueError) as error:
        raise MonitorError(f"{monitor.label}: query-dirty-rate: {error!r}", host=monitor.host) from error
    return tuple(rate for _, rate in rates)


async def measure_longer(monitor: Monitor, memory_bytes: int, seconds: int, kind: Kind) -> Dirtied:
    """Measure once more, over whole seconds (60 at most), in the way in which `measure` did. Raises as that does."""
    return await _measure(monitor, seconds * 1000, kind, memory_bytes, fine=False)


def _sample_pages(memory_bytes: int) -> int:
    """Return how many pages of each GiB are hashed."""
    return max(LEAST_PER_GIB, min(MOST_PER_GIB, (SAMPLED_PAGES << 30) // max(1, memory_bytes)))


async def _measure(monitor: Monitor, milliseconds: int, kind: Kind, memory_bytes: int, *, fine: bool) -> Dirtied:
    more = {"sample-pages": _sample_pages(memory_bytes)} if kind == "page-sampling" else {}
    unit = {"calc-time": milliseconds, "calc-time-unit": "millisecond"} if fine else {"calc-time": milliseconds // 1000}
    answer = await _ask(monitor, {**unit, "mode": kind, **more}, milliseconds / 1000)
    try:
        return Dirtied(milliseconds / 1000, int(answer["dirty-rate"]) * milliseconds * _MIB // 1000, kind)
    except (TypeError, KeyError, ValueError) as error:
        raise MonitorError(f"{monitor.label}: query-dirty-rate: {error!r}", host=monitor.host) from error


async def _ask(monitor: Monitor, arguments: dict[str, Any], seconds: float) -> Any:
    """Have QEMU measure, and return what ``query-dirty-rate`` says once it has."""
    await monitor.execute("calc-dirty-rate", arguments)
    deadline = time.monotonic() + seconds + PATIENCE_S
    await asyncio.sleep(seconds)
    while True:
        answer = await monitor.execute("query-dirty-rate")
        try:
            if answer["status"] == "measured":
                return answer
        except (TypeError, KeyError) as error:
            raise MonitorError(f"{monitor.label}: query-dirty-rate: {error!r}", host=monitor.host) from error
        if time.monotonic() > deadline:
            raise MonitorTimeout(f"{monitor.label} has not measured its dirty rate in time", host=monitor.host)
        await asyncio.sleep(POLL_S)
