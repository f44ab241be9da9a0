"""How much of the dirtying a limit for each vCPU leaves, and what it costs: arithmetic for ``set-vcpu-dirty-limit``. Pure.

The limit is the same for all vCPUs, so it is a level: who writes less than that goes on as it is, who writes more is brought
down to it. It has a price that QEMU does not count: a vCPU over the limit sleeps each time its dirty ring is full, and a
guest that is to be stopped stands still until the last sleeper wakes up. With a ring of 4096 entries (16 MiB) and a limit
of 5 MiB/s that took 2.3 s (QEMU 11.1.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

RING_ENTRY_BYTES: Final = 4096
"""What one entry of a dirty ring stands for: a page."""


def dirtied(rates: Sequence[float], limit: float) -> float:
    """Return what all vCPUs together dirty under a limit, bytes per second.

    Args:
        rates: What each vCPU dirties without a limit, bytes per second.
        limit: For each vCPU.
    """
    return sum(min(rate, limit) for rate in rates)


def limit_for(rates: Sequence[float], total: float) -> float:
    """Return the limit for each vCPU under which all of them together dirty so much, bytes per second.

    Args:
        rates: What each vCPU dirties without a limit, bytes per second.
        total: What they may dirty together.
    """
    left, ascending = total, sorted(rates)
    for place, rate in enumerate(ascending):
        share = left / (len(ascending) - place)
        if rate >= share:
            return share
        left -= rate
    return max(rates, default=0.0)


def stall_ms(rates: Sequence[float], limit: float, ring_bytes: int) -> float:
    """Return the longest that the guest stands still until its slowest vCPU has stopped, milliseconds.

    Args:
        rates: What each vCPU dirties without a limit, bytes per second.
        limit: For each vCPU.
        ring_bytes: What fits into the dirty ring of one vCPU.
    """
    fastest = max(rates, default=0.0)
    if limit <= 0 or fastest <= limit:
        return 0.0
    return 1000 * ring_bytes * (1 / limit - 1 / fastest)


def least_limit(rates: Sequence[float], longest_stall_ms: float, ring_bytes: int) -> float:
    """Return the least limit under which `stall_ms` is not longer than so much.

    Args:
        rates: What each vCPU dirties without a limit, bytes per second.
        longest_stall_ms: More than 0.
        ring_bytes: What fits into the dirty ring of one vCPU.
    """
    fastest = max(rates, default=0.0)
    return 1 / (longest_stall_ms / (1000 * ring_bytes) + 1 / fastest) if fastest > 0 else 0.0
