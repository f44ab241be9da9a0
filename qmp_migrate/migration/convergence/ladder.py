"""Does it converge, and what is the mildest thing that helps? A pure policy over what the passes show.

QEMU stops the guest once what is left fits into ``downtime-limit`` at the present bandwidth, and it spends what it is
allowed: an idle guest paused 244 ms at a limit of 300 and 129 ms at 150 (KubeVirt VEP 291). So the limit starts low
(`START_MS`) and nothing is done while passes leave less and less. When they do not, the ladder is climbed, one rung at a time
and never down, each rung only as far as the user allows:

1. more bandwidth, where it is we who limit it;
2. a longer downtime limit, to the measured need and no further, at a moment when little is left;
3. a slower guest, as much as the measured dirty rate asks for: where KVM has dirty rings, only the vCPUs that write
   (``set-vcpu-dirty-limit``), else all of them (``cpu-throttle``);
4. post-copy; 5. stop the guest and copy the rest;
6. give up, soon, and say with figures what would have worked.

What others do instead is in `reference_policies`; which policy climbs how far is in `policies`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from qmp_migrate.migration.convergence import suggestions, vcpu_dirty_limit
from qmp_migrate.migration.convergence.estimate import HEADROOM, Outlook, beginnings, look, needed_ms
from qmp_migrate.migration.convergence.types import LAST_KINDS, NOTHING, Allowed, Kind, Sample, Step

__all__ = [
    "HEADROOM",
    "LAST_KINDS",
    "NOTHING",
    "START_MS",
    "Allowed",
    "Kind",
    "Sample",
    "Step",
    "first_limit_ms",
    "needed_ms",
    "next_step",
]

START_MS: Final = 20
"""First ``downtime-limit``, milliseconds; the user's own where that is smaller."""

PATIENCE: Final = 0.1
"""A shorter blackout is waited for as long as that makes the whole longer by no more than this share."""

FALLING: Final = 0.9
"""A share of what is carried that is dirtied, below which the next pass begins with less than this one, noise or not."""

SMALL_MS: Final = 30
"""A blackout as short as this is not waited for to become shorter: passes of a few ms take longer than they save."""

HOVERING: Final = 2
"""Passes that fit into the limit, yet QEMU does not stop the guest: it takes a window with little to send for a slow link."""

NEAR_BEST: Final = 1.04
"""A pass within this of the best of the last `WINDOW` is a moment to act: it will hardly get better (KubeVirt VEP 248)."""

WINDOW: Final = 4
"""Passes that are looked back at, and that are waited for at least."""

TELLING_PASS: Final = 3
"""The first pass that tells what a pass leaves: the second begins with what was dirtied in all the time of the bulk pass."""

CONFIRMATIONS: Final = 2
"""Passes that must show that a rung does not help before the next one is climbed: one may be a burst."""

STALE_PASSES: Final = 20
"""So many passes without anything got are enough, however little is left."""

STALE_MS: Final = 5000
"""The same for passes that are all but nothing."""

AIM: Final = 0.4
"""The share of the bandwidth that a throttled guest may dirty: each pass then leaves less than half of the one before."""

MILDEST_PERCENT: Final = 20
"""A throttle below this changes nothing that can be measured."""

LEAST_PERCENT: Final = 5
"""A throttle is raised by this at least."""

HOPELESS: Final = 1.05
"""A guest that would dirty more than this share under all the throttle that is allowed is not slowed down for nothing."""

STALL_SHARE: Final = 0.75
"""The share of the longest blackout that a vCPU over its dirty limit may sleep on; the rest is for what is left to send."""

LIMIT_SETTLES_MS: Final = 3000
"""How long QEMU takes until a vCPU keeps to its dirty limit: it adjusts once a second."""

BY_TIME: Final = 0.8
"""A time limit is kept with this much of it: what the guest will dirty until then is an estimate."""


def first_limit_ms(allowed_ms: int, *, one_pass: bool = False, start_ms: int = START_MS) -> int:
    """Return the ``downtime-limit`` to start with, milliseconds.

    Args:
        allowed_ms: The most the user allows.
        one_pass: There must not be a second pass: all that is allowed, at once.
        start_ms: The policy's own start.
    """
    return allowed_ms if one_pass else min(start_ms, allowed_ms)


def next_step(samples: Sequence[Sample], allowed: Allowed) -> Step:
    """Decide what to do now.

    Args:
        samples: Oldest first: one where each pass begins; the last may lie within a pass, and then only time counts.
        allowed: How far to go.
    """
    if not samples:
        return NOTHING
    now = samples[-1]
    if now.dirty_limit_bytes_per_s:
        allowed = _without_stall(now, allowed)
    outlook = look(samples, allowed)
    if allowed.timeout_ms and now.elapsed_ms >= allowed.timeout_ms:
        return _last_rung(samples, outlook, allowed, f"{_time(now.elapsed_ms)} have passed, and no more is allowed")
    if outlook is None or not now.begins_pass:
        return NOTHING
    if now.limit_ms >= allowed.downtime_ms and _stale(samples):
        return _last_rung(
            samples, outlook, allowed, f"{_why(now, outlook)}; for {STALE_PASSES} passes it has not got less"
        )
    if outlook.need_ms <= now.limit_ms:
        return _it_fits(samples, outlook, allowed)
    if outlook.need_ms <= allowed.downtime_ms:
        return _would_fit(samples, outlook, allowed)
    return _climb(samples, outlook, allowed)


def _stale(samples: Sequence[Sample]) -> bool:
    """Tell whether `STALE_PASSES` under this limit brought nothing: they may be too short to be measured."""
    now, passes = samples[-1], beginnings(samples)
    run = list(itertools.takewhile(lambda sample: sample.limit_ms == now.limit_ms, passes[::-1]))
    if len(run) <= STALE_PASSES:
        return False
    recent, before = passes[-STALE_PASSES:], passes[:-STALE_PASSES]
    return min(s.remaining_bytes for s in recent) >= 0.9 * min(s.remaining_bytes for s in before)


def _it_fits(samples: Sequence[Sample], outlook: Outlook, allowed: Allowed) -> Step:
    """QEMU stops the guest by itself, unless its own estimate of the bandwidth is lower than what was measured.

    That is mended by a longer limit; what fits into all that is allowed is not given up for it, unless it never ends.
    """
    now = samples[-1]
    fits = now.limit_ms * outlook.in_blackout / 1000
    run = list(
        itertools.takewhile(
            lambda sample: sample.limit_ms == now.limit_ms and sample.remaining_bytes <= fits,
            reversed(beginnings(samples)),
        )
    )
    if len(run) < HOVERING:
        return NOTHING
    why = f"pass {now.pass_number} begins with {_size(now.remaining_bytes)}, and QEMU does not stop the guest"
    if now.limit_ms < allowed.downtime_ms:
        return _raise(now, min(allowed.downtime_ms, 2 * now.limit_ms), allowed, why)
    if len(run) > STALE_PASSES and now.elapsed_ms - run[-1].elapsed_ms > STALE_MS:
        return _last_rung(samples, outlook, allowed, why)
    return NOTHING


def _would_fit(samples: Sequence[Sample], outlook: Outlook, allowed: Allowed) -> Step:
    """What is left fits into what is allowed: allow that, at the best moment, once waiting does not pay."""
    now, passes = samples[-1], beginnings(samples)
    if now.pass_number < TELLING_PASS:
        return NOTHING
    fits = allowed.downtime_ms * outlook.in_blackout / 1000
    run = list(itertools.takewhile(lambda sample: sample.remaining_bytes <= fits, reversed(passes)))
    patience_ms = PATIENCE * run[-1].elapsed_ms - (now.elapsed_ms - run[-1].elapsed_ms)
    if _falls(passes, outlook) and outlook.need_ms > SMALL_MS and outlook.pass_ms <= patience_ms:
        return NOTHING  # the next pass will begin with less
    if outlook.need_ms > SMALL_MS and (len(run) < WINDOW or patience_ms > 0):
        best = min(sample.remaining_bytes for sample in passes[-WINDOW:])
        if now.remaining_bytes > NEAR_BEST * best:
            return NOTHING
    limit = min(allowed.downtime_ms, max(now.limit_ms + 1, math.ceil(outlook.need_ms * HEADROOM)))
    return _raise(
        now,
        limit,
        allowed,
        f"pass {now.pass_number} begins with {_size(now.remaining_bytes)} ({_time(outlook.need_ms)})",
    )


def _falls(passes: Sequence[Sample], outlook: Outlook) -> bool:
    """Tell whether each pass begins with less than the one before, by the last one or, as one may be a burst, by two."""
    two = passes[-3:]
    return outlook.share <= FALLING or (len(two) == 3 and two[2].remaining_bytes <= FALLING**2 * two[0].remaining_bytes)


def _raise(now: Sample, limit_ms: int, allowed: Allowed, why: str) -> Step:
    return Step(
        "raise-downtime-limit",
        limit_ms=limit_ms,
        reason=f"{why}: downtime limit {now.limit_ms} -> {limit_ms} ms (allowed: {allowed.downtime_ms} ms)",
    )


def _climb(samples: Sequence[Sample], outlook: Outlook, allowed: Allowed) -> Step:
    """What is left does not fit into what is allowed: see whether it will in time, and help where it will not."""
    now = samples[-1]
    if outlook.copies <= min(allowed.copies, allowed.hurry_copies):
        return NOTHING
    why, converges = _why(now, outlook), outlook.copies <= allowed.copies
    if converges or _can_wait(outlook, allowed):
        step = (
            _bandwidth(now, outlook, allowed, why)
            or _limit_dirty_rate(samples, outlook, allowed, why)
            or _throttle(samples, outlook, allowed, why)
        )
        if step is not None:
            return step
        if converges or not _confirmed(samples, allowed):
            return NOTHING  # slower than one might wish, but it ends; or one more look
    return _last_rung(samples, outlook, allowed, why)


def _can_wait(outlook: Outlook, allowed: Allowed) -> bool:
    """Tell whether one more pass, and then the rest at once, still ends in time; where there is no "at once", always."""
    if not (allowed.postcopy or allowed.stop):
        return True
    share = max(1.0, outlook.share)
    whole_ms = outlook.elapsed_ms + outlook.pass_ms + min(outlook.copy_ms, outlook.pass_ms * share)
    return whole_ms <= BY_TIME * allowed.last_copies * outlook.copy_ms


def _confirmed(samples: Sequence[Sample], allowed: Allowed) -> bool:
    """Tell whether `CONFIRMATIONS` passes in a row have shown that it does not end in time."""
    passes = beginnings(samples)
    for shown in range(CONFIRMATIONS):
        outlook = look(passes[: len(passes) - shown], allowed)
        if outlook is None or outlook.need_ms <= allowed.downtime_ms or outlook.copies <= allowed.copies:
            return False
    return True


def _bandwidth(now: Sample, outlook: Outlook, allowed: Allowed, why: str) -> Step | None:
    """Raise our own rate limit, where that is what limits it and more is allowed."""
    limit, most = now.max_bandwidth_bytes_per_s, allowed.bandwidth_bytes_per_s
    if limit == 0 or 0 < most <= limit or outlook.bandwidth < 0.8 * limit:
        return None
    to = f"{_size(most)}/s" if most else "what the link carries"
    return Step("raise-bandwidth", bandwidth_bytes_per_s=most, reason=f"{why}: rate limit {_size(limit)}/s -> {to}")


def _without_stall(now: Sample, allowed: Allowed) -> Allowed:
    """Keep the part of the blackout back in which the guest stands still until its slowest vCPU has stopped."""
    left_ms = allowed.downtime_ms - _stall_ms(now, allowed)
    return replace(allowed, downtime_ms=max(1, min(now.limit_ms, allowed.downtime_ms), left_ms))


def _stall_ms(now: Sample, allowed: Allowed) -> int:
    rates, limit = now.vcpu_dirty_bytes_per_s, now.dirty_limit_bytes_per_s
    return math.ceil(vcpu_dirty_limit.stall_ms(rates, limit, allowed.dirty_ring_bytes))


def _limit_dirty_rate(samples: Sequence[Sample], outlook: Outlook, allowed: Allowed, why: str) -> Step | None:
    """Limit what each vCPU dirties: those that write less are not slowed down.

    Returns:
        The step; `NOTHING` while it is not known yet what the vCPUs dirty, or whether the limit helps; None where there can
        be none, it would not help, or would make the blackout too long.
    """
    now, rates = samples[-1], samples[-1].vcpu_dirty_bytes_per_s
    if not allowed.dirty_ring_bytes or allowed.throttle_percent <= 0 or now.asked_throttle_percent:
        return None
    if not rates:
        return NOTHING
    if now.dirty_limit_bytes_per_s and not _limit_in_force(samples):
        return NOTHING
    blackout_ms, fastest = allowed.downtime_ms + _stall_ms(now, allowed), max(rates)
    stall_ms = min(STALL_SHARE * blackout_ms, blackout_ms - now.limit_ms)
    if stall_ms <= 0 or fastest <= 0:
        return None
    limit = math.ceil(
        max(
            vcpu_dirty_limit.limit_for(rates, AIM * outlook.bandwidth),
            fastest * (1 - allowed.throttle_percent / 100),
            vcpu_dirty_limit.least_limit(rates, stall_ms, allowed.dirty_ring_bytes),
            1.0,
        )
    )
    before = now.dirty_limit_bytes_per_s or fastest
    if (
        limit > before * (1 - LEAST_PERCENT / 100)
        or vcpu_dirty_limit.dirtied(rates, limit) > FALLING * outlook.bandwidth
    ):
        return None
    return Step(
        "limit-dirty-rate",
        dirty_limit_bytes_per_s=limit,
        reason=(
            f"{why}: no vCPU may dirty more than {_size(limit)}/s until the switchover (the busiest dirties "
            f"{_size(fastest)}/s; allowed: {allowed.throttle_percent} % less)"
        ),
    )


def _limit_in_force(samples: Sequence[Sample]) -> bool:
    """Tell whether the dirty limit has been in force for long enough to show in what the passes leave."""
    now = samples[-1]
    same = list(
        itertools.takewhile(
            lambda sample: sample.dirty_limit_bytes_per_s == now.dirty_limit_bytes_per_s, reversed(samples)
        )
    )
    return now.elapsed_ms - same[-1].elapsed_ms >= LIMIT_SETTLES_MS and len(beginnings(same)) >= CONFIRMATIONS


def _throttle(samples: Sequence[Sample], outlook: Outlook, allowed: Allowed, why: str) -> Step | None:
    """Slow the guest down, as much as the measured dirty rate asks for.

    Returns:
        The step; `NOTHING` while it is not known yet whether the last one helps; None where no more is allowed, or it would
        not help.
    """
    if samples[-1].dirty_limit_bytes_per_s:
        return None  # the vCPUs that write are slowed down already, as much as is allowed
    asked, most = samples[-1].asked_throttle_percent, allowed.throttle_percent
    if most <= asked:
        most = asked
    if most <= 0:
        return None
    # What a pass begins with tells of a throttle only when that was in force at the beginning of the one before, too.
    in_force = sum(1 for sample in beginnings(samples) if 0 < asked <= sample.throttle_percent)
    if asked and in_force < CONFIRMATIONS:
        return NOTHING
    # It is taken to dirty in proportion to the time that it is given; if it does not, the next look asks for more.
    full = outlook.share / (1 - asked / 100)
    if full * (1 - most / 100) > HOPELESS:
        return None
    percent = min(most, max(MILDEST_PERCENT, math.ceil(100 * (1 - AIM / full)))) if full > AIM else asked
    if percent < asked + LEAST_PERCENT:
        return None
    return Step(
        "throttle",
        throttle_percent=percent,
        reason=f"{why}: guest slowed down by {percent} % until the switchover (allowed: {most} %)",
    )


def _last_rung(samples: Sequence[Sample], outlook: Outlook | None, allowed: Allowed, why: str) -> Step:
    if allowed.postcopy:
        return Step("postcopy", reason=f"{why}: the guest goes on at the destination, and the rest follows (post-copy)")
    if allowed.stop:
        pause = f" for about {_time(outlook.need_ms)}" if outlook else ""
        return Step("stop", reason=f"{why}: the guest is stopped{pause}, and the rest is copied")
    now = samples[-1]
    return Step("give-up", reason=why, hint=suggestions.what_would_work(outlook, now, allowed, _stall_ms(now, allowed)))


def _why(now: Sample, outlook: Outlook) -> str:
    return (
        f"pass {now.pass_number} begins with {_size(now.remaining_bytes)} ({_time(outlook.need_ms)} at "
        f"{_size(outlook.bandwidth)}/s), and the guest dirties {_size(outlook.dirty)}/s"
    )


def _size(size: float) -> str:
    return f"{size / 2**20:.1f} MiB" if size < 2**30 else f"{size / 2**30:.2f} GiB"


def _time(ms: float) -> str:
    return f"{ms:.0f} ms" if ms < 1000 else f"{ms / 1000:.1f} s"
