"""What the guest says about its own migration, on its serial line. Pure; needs nothing of QMP.

Two clocks are in there. The guest's own stands still while it is stopped; the machine's CMOS clock, which QEMU takes from
the host, goes on. Their difference jumps by the blackout (``QM W``). How long the guest stood still while it *ran* (slowed
down, waiting for a page) is the largest time between two of its 1 ms ticks (``QM T``). Both together are the largest
gap between two ticks on the wall clock: what somebody who talks to the guest would notice.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Final

_TICKS: Final = re.compile(rb"QM T (\d+)(?:-(\d+))? (\d+) (\d+) (\d+) #([0-9a-f]{4})\n")
_WALL: Final = re.compile(rb"QM W (\d+) (\d+) (\d+) #([0-9a-f]{4})\n")
_DAY_S: Final = 86400
_NS: Final = 1_000_000_000
PAGES_PER_MIB: Final = 256
BEFORE_NS: Final = 1_500_000_000
"""The pace before the move is taken over so much of the guest's time."""

LATE_LINES: Final = 6
"""So many lines may have been on their way through the serial port when the guest was stopped."""


@dataclass(frozen=True, slots=True)
class Tick:
    """A ``QM T`` line: at which byte of the log it is, the guest's clock, pages written, largest gap between ticks."""

    at: int
    mono_ns: int
    pages: int
    gap_us: int


@dataclass(frozen=True, slots=True)
class Wall:
    """A ``QM W`` line: second of the day, the guest's clock, how inexact."""

    second: int
    mono_ns: int
    uncertain_us: int


@dataclass(frozen=True, slots=True)
class Inside:
    """What a migration was to the guest.

    Attributes:
        blackout_ms: Longest time its own clock stood still; None: it cannot be told from the log.
        exact_ms: The blackout may be off by so much.
        stopped_ms: All of them together.
        stall_ms: Longest time between two ticks while it ran.
        gap_ms: Longest time between two ticks on the wall clock.
        rate_mib_s: What it dirtied before.
        during_mib_s: What it dirtied from the migration's begin to its end, blackout included.
        lost_ms: So much of its work is missing, as time at the pace of before.
        lost_percent: The same as a part of the migration's time.
    """

    blackout_ms: float | None
    exact_ms: float
    stopped_ms: float
    stall_ms: float
    gap_ms: float | None
    rate_mib_s: float
    during_mib_s: float
    lost_ms: float
    lost_percent: float

    def to_dict(self) -> dict[str, Any]:
        """Return it for the document."""
        return asdict(self)


def read(log: bytes) -> tuple[list[Tick], list[Wall]]:
    """Return the lines of both kinds that are whole."""
    ticks = [Tick(at, int(m[3]), int(m[4]), int(m[5])) for at, m in _whole(_TICKS, log)]
    walls = [Wall(int(m[1]), int(m[2]), int(m[3])) for _, m in _whole(_WALL, log)]
    return ticks, walls


def _whole(pattern: re.Pattern[bytes], log: bytes) -> Iterator[tuple[int, re.Match[bytes]]]:
    for match in pattern.finditer(log):
        line = match[0]
        # The check covers all before " #hhhh".
        if zlib.crc32(line[: -len(" #hhhh\n")]) & 0xFFFF == int(match[match.re.groups], 16):
            yield match.start(), match


def walls_after(log: bytes, end: int) -> int:
    """Return how many looks at the wall clock are behind a place of the log."""
    return sum(1 for at, _ in _whole(_WALL, log) if at >= end)


def look(log: bytes, *, begin: int, end: int, handover: int | None) -> Inside | None:
    """Return what a migration was to the guest.

    Args:
        log: All of its serial logs, in order.
        begin: Length of the log when the migration began.
        end: Length when it had ended.
        handover: Where the destination's log begins; None: the guest stayed.

    Returns:
        None where the log does not reach from before until after the migration.
    """
    ticks, walls = read(log)
    before = [tick for tick in ticks if tick.at < begin]
    after = next((tick for tick in ticks if tick.at >= end), None)
    if len(before) < 2 or after is None:
        return None
    start = before[-1]
    since = next(tick for tick in before if tick.mono_ns >= start.mono_ns - BEFORE_NS)
    if start.mono_ns <= since.mono_ns:
        return None
    pages_per_ns = (start.pages - since.pages) / (start.mono_ns - since.mono_ns)
    steps = list(_steps(walls, start.mono_ns, after.mono_ns))
    stopped_ns = sum(lost for lost, exact in steps if lost > exact)
    longest = max(steps, default=None)
    during = [tick for tick in ticks if start.at < tick.at <= after.at]
    stall_us = max(tick.gap_us for tick in during)
    passed_ns = after.mono_ns - start.mono_ns + stopped_ns
    expected, done = pages_per_ns * passed_ns, after.pages - start.pages
    lost_ns = (expected - done) / pages_per_ns if pages_per_ns else 0.0
    return Inside(
        blackout_ms=round(max(longest[0], 0) / 1e6, 2) if longest else None,
        exact_ms=round(longest[1] / 1e6, 2) if longest else 0.0,
        stopped_ms=round(stopped_ns / 1e6, 2),
        stall_ms=stall_us / 1000,
        gap_ms=round(_gap_ms(during, longest[0] / 1e6 if longest else None, stall_us / 1000, handover), 2)
        if longest
        else None,
        rate_mib_s=round(pages_per_ns * _NS / PAGES_PER_MIB, 2),
        during_mib_s=round(done / PAGES_PER_MIB / passed_ns * _NS, 2),
        lost_ms=round(lost_ns / 1e6, 1),
        lost_percent=round(100 * lost_ns / passed_ns, 2),
    )


def _steps(walls: Sequence[Wall], since_ns: int, until_ns: int) -> Iterator[tuple[int, int]]:
    """Return, for each pair of looks at the wall clock that touches the time meant, what was lost, and how exactly, ns."""
    for one, other in pairwise(walls):
        if other.mono_ns >= since_ns and one.mono_ns <= until_ns:
            passed_s = (other.second - one.second + _DAY_S // 2) % _DAY_S - _DAY_S // 2
            yield passed_s * _NS - (other.mono_ns - one.mono_ns), (one.uncertain_us + other.uncertain_us) * 1000


def _gap_ms(during: Sequence[Tick], blackout_ms: float | None, stall_ms: float, handover: int | None) -> float:
    """Add to the blackout the gap between the ticks around it, on the guest's clock: never too little."""
    if blackout_ms is None or handover is None:
        return max(stall_ms, blackout_ms or 0.0)
    around = [tick.gap_us / 1000 for tick in during if tick.at >= handover][:LATE_LINES]
    return max(stall_ms, max(blackout_ms, 0.0) + max(around, default=0.0))
