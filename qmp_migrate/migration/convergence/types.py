"""The words of convergence: what is seen (`Sample`), how far one may go (`Allowed`), what is done (`Step`). Data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Kind: TypeAlias = Literal[
    "none", "raise-bandwidth", "raise-downtime-limit", "limit-dirty-rate", "throttle", "postcopy", "stop", "give-up"
]

LAST_KINDS: Final = frozenset({"postcopy", "stop", "give-up"})
"""After these there is nothing more to decide."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What was seen at one moment. Bytes, bytes per second and milliseconds, as the names say.

    Attributes:
        pass_number: QEMU's dirty-sync count, from 1. Pass N sends what the guest dirtied in pass N - 1.
        remaining_bytes: Left to send now.
        bandwidth_bytes_per_s: QEMU's own figure, over its last 100 ms.
        limit_ms: The ``downtime-limit`` in force.
        elapsed_ms: Since ``migrate`` was sent. Time enters the decisions here and nowhere else.
        transferred_bytes: Sent so far.
        total_bytes: The guest's memory.
        throttle_percent: Of the guest's vCPUs, in force now.
        asked_throttle_percent: What QEMU was told to throttle to; it obeys when passes end, and a second at the earliest.
        max_bandwidth_bytes_per_s: The ``max-bandwidth`` in force; 0: none.
        begins_pass: The first sample of its pass: `remaining_bytes` is what the pass before has left.
        vcpu_dirty_bytes_per_s: What each vCPU dirties without a limit, by its dirty ring, which counts a page again each time
            that QEMU has looked at it; empty: not known.
        dirty_limit_bytes_per_s: What each vCPU may dirty now; 0: no limit.
    """

    pass_number: int
    remaining_bytes: int
    bandwidth_bytes_per_s: int
    limit_ms: int
    elapsed_ms: int = 0
    transferred_bytes: int = 0
    total_bytes: int = 0
    throttle_percent: int = 0
    asked_throttle_percent: int = 0
    max_bandwidth_bytes_per_s: int = 0
    begins_pass: bool = True
    vcpu_dirty_bytes_per_s: tuple[int, ...] = ()
    dirty_limit_bytes_per_s: int = 0


@dataclass(frozen=True, slots=True)
class Allowed:
    """How far up the ladder a policy may go in one migration: made by `model.policy_terms.allowed`.

    Attributes:
        downtime_ms: The longest blackout.
        bandwidth_bytes_per_s: The most that may be used; 0: what the link carries.
        throttle_percent: How much the guest may be slowed down; 0: not at all.
        postcopy: The guest may go on at the destination before all of its memory is there; both ends can.
        stop: The guest may be stopped for longer than `downtime_ms`, for the rest of the copy.
        copies: What is not expected to end within so many full copies does not converge.
        hurry_copies: What is not expected to end within so many is helped on.
        last_copies: What does not converge is brought to its end within so many, by post-copy or a stop.
        switchover_bandwidth_bytes_per_s: What the link carries in the blackout, where that is more than before; 0: not known.
        dirty_ring_bytes: What fits into the dirty ring of one vCPU, where each vCPU's dirty rate can be limited; 0: it
            cannot.
        timeout_ms: After this time the last rungs are climbed, whatever the passes show; 0: never.
    """

    downtime_ms: int
    bandwidth_bytes_per_s: int = 0
    throttle_percent: int = 0
    postcopy: bool = False
    stop: bool = False
    copies: float = 10.0
    hurry_copies: float = 10.0
    last_copies: float = 3.0
    switchover_bandwidth_bytes_per_s: int = 0
    timeout_ms: int = 0
    dirty_ring_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """What to do now.

    Attributes:
        kind: What; ``none`` most of the time.
        limit_ms: The new ``downtime-limit`` for ``raise-downtime-limit``.
        bandwidth_bytes_per_s: The new ``max-bandwidth`` for ``raise-bandwidth``; 0: none.
        throttle_percent: The new throttle for ``throttle``.
        dirty_limit_bytes_per_s: What each vCPU may dirty, for ``limit-dirty-rate``.
        reason: For the user, the bus and the result.
        hint: For ``give-up``: what would have worked.
    """

    kind: Kind
    limit_ms: int = 0
    bandwidth_bytes_per_s: int = 0
    throttle_percent: int = 0
    dirty_limit_bytes_per_s: int = 0
    reason: str = ""
    hint: str = ""


NOTHING: Final = Step("none")
