"""Does it converge, and what is the mildest thing that helps? A pure policy over what QEMU reports.

QEMU stops the guest once what is left fits into ``downtime-limit`` at the present bandwidth, and it spends what it is
allowed: an idle guest paused 244 ms at a limit of 300 and 129 ms at 150 (KubeVirt VEP 291). So the limit starts low
(`START_MS`) and is raised towards what the user allows only when a whole pass has shown the need.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

START_MS: Final = 30
"""First ``downtime-limit``, milliseconds; the user's own where that is smaller."""

HEADROOM: Final = 1.25
"""A raised limit is the measured need times this: bandwidth estimates jitter over QEMU's 100 ms window."""

STALLED_PASSES: Final = 3
"""Passes at the full limit in which the least remaining has not fallen, after which waiting longer is pointless."""

PROGRESS_RATIO: Final = 0.95
"""Remaining must fall below this share of the best so far to count as progress."""

MAX_PASSES: Final = 60
"""However slowly it improves, this many passes at the full limit are enough."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What one pass left to send.

    Attributes:
        pass_number: QEMU's dirty-sync count; the pass that just began sends `remaining_bytes`.
        remaining_bytes: Left at the beginning of this pass: what the guest dirtied in the one before.
        bandwidth_bytes_per_s: Measured over the pass before.
        limit_ms: The ``downtime-limit`` in force then.
    """

    pass_number: int
    remaining_bytes: int
    bandwidth_bytes_per_s: int
    limit_ms: int


@dataclass(frozen=True, slots=True)
class Step:
    """What to do now.

    Attributes:
        kind: ``none``, ``raise-downtime-limit`` or ``give-up``.
        limit_ms: The new limit for ``raise-downtime-limit``.
        reason: For the user, the bus and the result.
    """

    kind: str
    limit_ms: int = 0
    reason: str = ""


NOTHING: Final = Step("none")


def first_limit_ms(allowed_ms: int, *, one_pass: bool = False) -> int:
    """Return the ``downtime-limit`` to start with, milliseconds.

    Args:
        allowed_ms: The most the user allows.
        one_pass: There must not be a second pass: all that is allowed, at once.
    """
    return allowed_ms if one_pass else min(START_MS, allowed_ms)


def needed_ms(sample: Sample) -> int:
    """Return the blackout that sending the rest of a pass would take, milliseconds, with `HEADROOM`."""
    if sample.bandwidth_bytes_per_s <= 0:
        return 0
    return math.ceil(sample.remaining_bytes * 1000 * HEADROOM / sample.bandwidth_bytes_per_s)


def next_step(samples: Sequence[Sample], *, allowed_ms: int) -> Step:
    """Decide after a pass.

    The limit is raised when the best of the last two passes does not fit into it and has stopped falling: then the guest
    dirties as much in a pass as the pass sends, and only a longer pause helps. It is raised to the need of that pass, or
    doubled, whichever is less, so that a single bad sample does not spend the whole allowance.

    Args:
        samples: One per pass, oldest first, from pass 2 on (pass 1 sends everything and tells nothing).
        allowed_ms: The most the user allows.
    """
    if len(samples) < 2:
        return NOTHING
    last, before = samples[-1], samples[-2]
    need = needed_ms(last)
    improving = last.remaining_bytes < before.remaining_bytes * PROGRESS_RATIO
    if need <= last.limit_ms or (improving and need > 4 * last.limit_ms):
        # It fits already and QEMU will stop by itself, or it falls quickly: let it.
        return NOTHING
    if last.limit_ms < allowed_ms:
        limit = min(allowed_ms, max(last.limit_ms + 1, min(need, 2 * last.limit_ms)))
        return Step(
            "raise-downtime-limit",
            limit,
            f"pass {last.pass_number} left {last.remaining_bytes / 2**20:.1f} MiB, which takes about {need} ms: "
            f"downtime limit {last.limit_ms} -> {limit} ms (allowed: {allowed_ms} ms)",
        )
    at_limit = [sample for sample in samples if sample.limit_ms >= allowed_ms]
    if len(at_limit) <= STALLED_PASSES:
        return NOTHING
    best_before = min(sample.remaining_bytes for sample in at_limit[:-STALLED_PASSES])
    best_now = min(sample.remaining_bytes for sample in at_limit[-STALLED_PASSES:])
    if best_now >= best_before * PROGRESS_RATIO or len(at_limit) > MAX_PASSES:
        return Step(
            "give-up",
            reason=f"after {last.pass_number} passes {best_now / 2**20:.1f} MiB remain and do not get fewer: "
            f"that needs a blackout of about {need} ms, and {allowed_ms} ms are allowed",
        )
    return NOTHING
