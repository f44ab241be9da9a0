"""What the passes of a migration tell about its future: bandwidth, what is dirtied, how quickly the rest gets less. Pure.

QEMU's numbers are taken where they are exact (what remains when a pass begins, what has been transferred) and not where they
lag: its dirty rate is renewed at most once a second and its bandwidth jitters over a window of 100 ms, so both are measured
over whole passes here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from qmp_migrate.migration.convergence.types import Allowed, Sample

MEASURABLE_MS: Final = 200
"""A pass that took less says nothing about the bandwidth that QEMU does not know better."""

HEADROOM: Final = 1.25
"""A raised limit is the measured need times this: QEMU's estimate of the bandwidth jitters over its 100 ms window."""

SATURATION: Final = 0.03
"""A share that is this near to 1 is the working set's size, and not the rate at which it is written."""

COMFORT: Final = 0.8
"""Dirty rate over bandwidth at which a migration ends in five full copies: what advice aims at."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """What the passes so far tell.

    Attributes:
        bandwidth: What travels, bytes per second; `in_blackout`: while the guest stands still.
        dirty: What the guest dirties, bytes per second, over the last passes; pages dirtied twice count once.
        pass_ms: What sending the rest takes while the guest runs.
        need_ms: The blackout if the guest were stopped now.
        least_ms: The same of the best pass so far, the bulk pass apart.
        rest_ms: Until what is left fits into the limit that is allowed, if it goes on like this; infinite if it never does.
        copy_ms: What one copy of all memory takes at this bandwidth (zero pages take next to nothing).
        elapsed_ms: So far, under this rate limit.
    """

    bandwidth: float
    in_blackout: float
    dirty: float
    pass_ms: float
    need_ms: float
    least_ms: float
    rest_ms: float
    copy_ms: float
    elapsed_ms: int

    @property
    def share(self) -> float:
        """What is dirtied over what is carried: from 1 on, copying alone never ends."""
        return self.dirty / self.bandwidth

    @property
    def saturated(self) -> bool:
        """Each pass leaves what the one before did: all that the guest writes to is dirty again, and it may write more."""
        return abs(self.share - 1) < SATURATION

    @property
    def copies(self) -> float:
        """How long all of it will take, in full copies."""
        return (self.elapsed_ms + self.rest_ms) / self.copy_ms if self.copy_ms else math.inf


def beginnings(samples: Sequence[Sample]) -> list[Sample]:
    """Return the samples at which passes began."""
    return [sample for sample in samples if sample.begins_pass]


def look(samples: Sequence[Sample], allowed: Allowed) -> Outlook | None:
    """Return what the passes tell; None before the second has begun, or where nothing travels.

    Args:
        samples: Oldest first; the last one may lie within a pass.
        allowed: What the user allows.
    """
    passes = beginnings(samples)
    if not passes or passes[-1].pass_number < 2:
        return None
    bandwidth = _bandwidth(passes)
    if bandwidth <= 0:
        return None
    in_blackout = max(bandwidth, float(allowed.switchover_bandwidth_bytes_per_s))
    now, dirty = samples[-1], _dirty(passes)
    counted = [sample.remaining_bytes for sample in passes if sample.pass_number > 1]
    fits = allowed.downtime_ms * in_blackout / 1000
    return Outlook(
        bandwidth=bandwidth,
        in_blackout=in_blackout,
        dirty=dirty,
        pass_ms=now.remaining_bytes * 1000 / bandwidth,
        need_ms=now.remaining_bytes * 1000 / in_blackout,
        least_ms=min(counted) * 1000 / in_blackout,
        rest_ms=_rest_s(now.remaining_bytes, fits, bandwidth, dirty) * 1000,
        copy_ms=_copy_ms(passes, bandwidth),
        elapsed_ms=now.elapsed_ms - _since_ms(passes),
    )


def _copy_ms(passes: Sequence[Sample], bandwidth: float) -> float:
    """Return what one full copy takes: what the first pass did take, where that was seen under this rate limit."""
    first, last = passes[0], passes[-1]
    if (
        first.pass_number == 1
        and len(passes) > 1
        and passes[1].pass_number == 2
        and first.max_bandwidth_bytes_per_s == last.max_bandwidth_bytes_per_s
        and passes[1].elapsed_ms > first.elapsed_ms
    ):
        return float(passes[1].elapsed_ms)
    return last.total_bytes * 1000 / bandwidth


def _since_ms(passes: Sequence[Sample]) -> int:
    """Return when the rate limit was last changed: what went before says little."""
    same = itertools.takewhile(
        lambda sample: sample.max_bandwidth_bytes_per_s == passes[-1].max_bandwidth_bytes_per_s, reversed(passes)
    )
    first = list(same)[-1]
    return first.elapsed_ms if first is not passes[0] else 0


def _bandwidth(passes: Sequence[Sample]) -> float:
    """Return the bandwidth of the last pass that took long enough under this rate limit; else QEMU's own figure."""
    for before, after in zip(reversed(passes[:-1]), reversed(passes), strict=False):
        if before.max_bandwidth_bytes_per_s != passes[-1].max_bandwidth_bytes_per_s:
            break
        took_ms = after.elapsed_ms - before.elapsed_ms
        sent = after.transferred_bytes - before.transferred_bytes
        # Pass 1 sends zero pages as a few bytes each: it moves more than it transfers, and QEMU counts it so.
        if took_ms >= MEASURABLE_MS and before.pass_number > 1 and sent > 0:
            return sent * 1000 / took_ms
    return float(passes[-1].bandwidth_bytes_per_s)


def _dirty(passes: Sequence[Sample]) -> float:
    """Return what was dirtied in the last pass, or in as many as it takes to measure."""
    dirtied = took_ms = 0
    for before, after in zip(reversed(passes[:-1]), reversed(passes), strict=False):
        sent = after.transferred_bytes - before.transferred_bytes
        # What a pass had not sent when it ended was dirtied earlier; pass 1 sends more than it transfers: see above.
        unsent = max(0, before.remaining_bytes - sent) if before.pass_number > 1 and sent > 0 else 0
        dirtied += max(0, after.remaining_bytes - unsent)
        took_ms += after.elapsed_ms - before.elapsed_ms
        if took_ms >= MEASURABLE_MS:
            break
    return dirtied * 1000 / max(1, took_ms)


def _rest_s(remaining: float, fits: float, bandwidth: float, dirty: float) -> float:
    """Sum the passes until one leaves what fits: each leaves ``dirty / bandwidth`` of the one before."""
    share = dirty / bandwidth
    if remaining <= fits:
        return 0.0
    if share > 1 - SATURATION:
        return math.inf
    passes = math.ceil(math.log(fits / remaining) / math.log(share)) if share > 0 and fits > 0 else 1
    return remaining / bandwidth * (1 - share**passes) / (1 - share)


def needed_ms(remaining_bytes: int, bandwidth: float) -> int:
    """Return the limit under which QEMU sends so much in the blackout, milliseconds, with `HEADROOM`."""
    return math.ceil(remaining_bytes * 1000 * HEADROOM / bandwidth) if bandwidth > 0 else 0
