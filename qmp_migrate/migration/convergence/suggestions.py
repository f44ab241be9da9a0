"""What would have moved a guest that was given up: figures, not words. Pure."""

from __future__ import annotations

import math
from typing import Final

from qmp_migrate.migration.convergence.estimate import COMFORT, HEADROOM, Outlook
from qmp_migrate.migration.convergence.types import Allowed, Sample

OUT_OF_REACH: Final = 20.0
"""A link so many times faster is no advice."""

MOST_PERCENT: Final = 99


def what_would_work(outlook: Outlook | None, now: Sample, allowed: Allowed, stall_ms: int = 0) -> str:
    """Return the ways that are left, mildest first, each with its figure.

    Args:
        outlook: What the passes told; None where not even one has ended.
        now: The last sample.
        allowed: What the user had allowed, and the policy has done; of the blackout, what is left for sending.
        stall_ms: The part of the blackout in which vCPUs over their dirty limit still sleep, milliseconds.
    """
    if outlook is None:
        return "one full copy takes longer than that: give it more time (--timeout), or more --bandwidth"
    # One pass may have ended within the limit, and what came after it did not: then that one is no measure.
    blackout_ms = outlook.least_ms if outlook.least_ms > allowed.downtime_ms else outlook.need_ms
    ways = [
        f"--downtime-limit {_time(blackout_ms * HEADROOM + stall_ms)}",
        *_bandwidth(outlook, now, allowed, blackout_ms),
    ]
    throttle = _throttle(outlook, now)
    if throttle is not None and throttle > allowed.throttle_percent:
        ways.append(f"--max-throttle {throttle}%")
    if not (allowed.postcopy or allowed.stop):
        ways.append(f"--policy finish (post-copy where both ends can, else a pause of {_time(outlook.need_ms)})")
    return "what would work: " + ", or ".join(ways)


def _bandwidth(outlook: Outlook, now: Sample, allowed: Allowed, blackout_ms: float) -> list[str]:
    """Return the bandwidth at which it would converge; nothing where that is out of reach, or less than there was."""
    # Either all that it dirties again and again fits into the pause, or what it dirties is carried.
    enough = blackout_ms * outlook.in_blackout / allowed.downtime_ms
    if not outlook.saturated:
        enough = min(enough, outlook.dirty / COMFORT)
    if enough <= outlook.bandwidth:
        return []
    rate = f"{math.ceil(enough / 2**20)}MiB"
    if now.max_bandwidth_bytes_per_s > 0 and outlook.bandwidth > 0.8 * now.max_bandwidth_bytes_per_s:
        return [f"--bandwidth {rate} (if the link carries it)"]  # the user's own limit: however much less it was
    if enough > OUT_OF_REACH * outlook.bandwidth:
        return []
    return [f"a link that carries {rate}/s (this one: {outlook.bandwidth / 2**20:.1f} MiB/s)"]


def _throttle(outlook: Outlook, now: Sample) -> int | None:
    """Return the throttle under which the guest dirties less than is carried; None where that is not known."""
    if outlook.saturated:
        return None
    full = outlook.share / (1 - now.throttle_percent / 100)
    percent = math.ceil(100 * (1 - COMFORT / full)) if full > COMFORT else 0
    return percent if 0 < percent <= MOST_PERCENT else None


def _time(ms: float) -> str:
    return f"{math.ceil(ms)}ms" if ms < 10_000 else f"{math.ceil(ms / 1000)}s"
