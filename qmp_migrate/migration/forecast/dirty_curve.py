"""How much memory a guest dirties within a time: a curve that flattens, measured at a few points. Pure.

A rate alone misleads. A guest that rewrites the same 64 MiB over and over at 500 MiB/s leaves 64 MiB after ten seconds, not
5 GiB: what it dirties within a time saturates at its writable working set. So the rate is measured over several times, and
what lies between them follows from the curve being concave: no page that was dirtied is counted twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

STILL_GROWING: Final = 0.1
"""A last stretch that is steeper than this share of the first one: the working set has not been seen whole."""

LEAST_SHARE: Final = 0.0001
"""Before the first point even a curve that was flat there took some time to rise: half of it in a twelfth of that time."""


def without_bursts(measured: Sequence[tuple[float, float]], resolution_bytes_per_s: float) -> list[tuple[float, float]]:
    """Return measurements without what only a burst explains.

    They are taken one after the other. In a longer time no less is dirtied than in a shorter one, so where less was found
    then, the guest did something else the time before.

    Args:
        measured: Seconds and bytes.
        resolution_bytes_per_s: Rates are rounded down to multiples of this.
    """
    return [
        (
            seconds,
            min([size, *(other + resolution_bytes_per_s * longer for longer, other in measured if longer > seconds)]),
        )
        for seconds, size in measured
    ]


@dataclass(frozen=True, slots=True)
class DirtyCurve:
    """What a guest dirties within a time.

    Attributes:
        points: Seconds and bytes, rising in both; the bytes ever more slowly. None: it dirties nothing.
        most_bytes: It cannot dirty more than its memory.
    """

    points: tuple[tuple[float, float], ...] = ()
    most_bytes: float = math.inf

    @classmethod
    def of(cls, measured: Iterable[tuple[float, float]], most_bytes: float) -> DirtyCurve:
        """Return the curve through what was measured, made concave: what breaks that is noise.

        Args:
            measured: Seconds and bytes, in any order; of two of the same time the larger counts.
            most_bytes: The guest's memory.
        """
        best: dict[float, float] = {}
        for seconds, size in measured:
            if seconds > 0:
                best[seconds] = max(best.get(seconds, 0.0), min(size, most_bytes))
        hull: list[tuple[float, float]] = [(0.0, 0.0)]
        for point in sorted(best.items()):
            new = (point[0], max(point[1], hull[-1][1]))
            while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-1], new):
                hull.pop()
            hull.append(new)
        if hull[-1][1] <= 0:
            return cls((), most_bytes)
        # All times again, each with its place on the hull: what is between them shall not be guessed from afar.
        return cls(tuple((seconds, _along(hull, seconds)) for seconds in sorted(best)), most_bytes)

    def dirtied(self, seconds: float) -> float:
        """Return the bytes of the pages that are dirtied within a time."""
        if not self.points or seconds <= 0:
            return 0.0
        first = self.points[0]
        if seconds <= first[0]:
            return min(self._first_stretch(seconds), self.most_bytes)
        last = self.points[-1]
        if seconds <= last[0]:
            return min(_along(self.points, seconds), self.most_bytes)
        return min(last[1] + (seconds - last[0]) * self._last_slope, self.most_bytes)

    @property
    def rate(self) -> float:
        """Bytes per second, as it dirties them when nothing has been dirtied yet."""
        if not self.points:
            return 0.0
        instant = self.points[0][0] / 10
        return self.dirtied(instant) / instant

    @property
    def working_set(self) -> float | None:
        """The writable working set, bytes; None where it was not seen whole: the guest dirties ever more."""
        if not self.points:
            return 0.0
        first, last = self.points[0], self.points[-1]
        if len(self.points) > 1 and self._last_slope > STILL_GROWING * first[1] / first[0]:
            return None
        return last[1] if len(self.points) > 1 else None

    @property
    def flat_at_once(self) -> bool:
        """All of it was dirtied within the shortest time that was measured: how quickly is a guess."""
        return len(self.points) > 1 and self.dirtied(2 * self.points[0][0]) < 1.1 * self.points[0][1]

    def scaled(self, share: float) -> DirtyCurve:
        """Return the curve of the same guest when its vCPUs get a share of their time."""
        if share <= 0:
            return DirtyCurve((), self.most_bytes)
        return DirtyCurve(tuple((seconds / share, size) for seconds, size in self.points), self.most_bytes)

    @property
    def _last_slope(self) -> float:
        last = self.points[-1]
        before = self.points[-2] if len(self.points) > 1 else (0.0, 0.0)
        return max(0.0, _slope(before, last))

    def _first_stretch(self, seconds: float) -> float:
        """Between nothing and the first point: as steep as what follows lets one expect.

        If as much again was dirtied in the next stretch of the same length, the first was a straight line; if nothing, it
        rose quickly and then was flat. In between: each part of the stretch adds `share` of what the one before added.
        """
        first = self.points[0]
        if len(self.points) < 2:
            return first[1] * seconds / first[0]
        share = max(LEAST_SHARE, min(1.0, (self.dirtied(2 * first[0]) - first[1]) / first[1]))
        if share > 0.999:
            return first[1] * seconds / first[0]
        return float(first[1] * (1 - share ** (seconds / first[0])) / (1 - share))


def _slope(one: tuple[float, float], other: tuple[float, float]) -> float:
    return (other[1] - one[1]) / (other[0] - one[0])


def _along(points: Sequence[tuple[float, float]], seconds: float) -> float:
    """Return the height at a time that lies within the points."""
    for before, after in pairwise(points):
        if seconds <= after[0]:
            return before[1] + (seconds - before[0]) * _slope(before, after)
    return points[-1][1]
