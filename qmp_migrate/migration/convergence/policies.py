"""The policies by name: what each may do about a guest that dirties memory faster than it can be copied. Data.

The three of our own are one function (`ladder.next_step`) with different numbers. The others do what other programs do
(`reference_policies`), for comparison: they keep to their own limits and not to the user's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final, TypeAlias

from qmp_migrate.errors import UsageError
from qmp_migrate.migration.convergence import ladder, reference_policies
from qmp_migrate.migration.convergence.ladder import START_MS
from qmp_migrate.migration.convergence.types import Allowed, Sample, Step

MIB: Final = 1 << 20

QEMU_THROTTLE: Final = {
    "cpu-throttle-initial": 20,
    "cpu-throttle-increment": 10,
    "max-cpu-throttle": 99,
    "throttle-trigger-threshold": 50,
}
"""QEMU's own auto-converge, left to itself."""

ARMED_THROTTLE: Final = {
    "cpu-throttle-initial": 1,
    "cpu-throttle-increment": 99,
    "max-cpu-throttle": 1,
    "throttle-trigger-threshold": 1,
}
"""Ours: QEMU acts when a second pass has dirtied more than the threshold, so it is at 1 %, and what it would do is nothing
that can be felt. The bulk pass then counts as the first, and a throttle that is asked for at its end begins with pass 3."""

Decide: TypeAlias = Callable[[Sequence[Sample], Allowed], Step]
Interval: TypeAlias = Callable[[Sequence[Sample]], int]


@dataclass(frozen=True, slots=True)
class Policy:
    """One policy.

    Attributes:
        name: For ``--policy``.
        summary: One sentence for people.
        start_ms: First ``downtime-limit``; ours also keep to the user's.
        throttle_percent: How much it slows the guest down at most; 0: not at all.
        postcopy: It turns to post-copy where both ends can.
        stop: It stops the guest for longer than the downtime limit, if nothing else helps.
        copies: See `convergence.Allowed`; ``hurry_copies`` likewise.
        of: The program that does so; None: ours.
        bandwidth_bytes_per_s: Its own ``max-bandwidth`` where the user gives none; 0: no limit.
        auto_converge: The parameters of QEMU's capability, which is then set; None: it is not.
        decide: What it does when.
        interval_ms: When it looks again; None: when a pass begins.
    """

    name: str
    summary: str
    start_ms: int = START_MS
    throttle_percent: int = 0
    postcopy: bool = False
    stop: bool = False
    copies: float = 10.0
    hurry_copies: float = 10.0
    of: str | None = None
    bandwidth_bytes_per_s: int = 0
    auto_converge: Mapping[str, int] | None = None
    decide: Decide = ladder.next_step
    interval_ms: Interval | None = None


_TABLE: Final = (
    Policy(
        "gentle",
        "Leaves the guest alone: no longer a pause than allowed, no slowing down; gives up as soon as it sees that this will "
        "not do.",
    ),
    Policy(
        "default",
        "Raises the downtime limit by need, and slows the guest down by half at most; gives up early, with the reason.",
        throttle_percent=50,
        copies=6.0,
        hurry_copies=1.8,
        auto_converge=ARMED_THROTTLE,
    ),
    Policy(
        "finish",
        "Always ends, within three times what one full copy takes: slows the guest down, turns to post-copy where both ends "
        "can, and stops the guest where they cannot.",
        throttle_percent=80,
        postcopy=True,
        stop=True,
        copies=6.0,
        hurry_copies=1.8,
        auto_converge=ARMED_THROTTLE,
    ),
    Policy(
        "proxmox",
        "100 ms, doubled when the rest has grown in more than five looks, without end; QEMU's own auto-converge.",
        start_ms=100,
        of="Proxmox VE",
        auto_converge=QEMU_THROTTLE,
        decide=reference_policies.proxmox,
        interval_ms=reference_policies.proxmox_interval_ms,
    ),
    Policy(
        "nova",
        "50 ms, to 500 ms in ten steps by the clock (75 s for each GiB); gives up after 800 s for each GiB.",
        start_ms=reference_policies.NOVA_BASE_MS,
        of="OpenStack Nova",
        decide=reference_policies.nova,
        interval_ms=lambda _samples: 500,
    ),
    *(
        Policy(
            name,
            summary,
            start_ms=reference_policies.OVIRT[name].start_ms,
            of=f"oVirt, {reference_policies.OVIRT[name].title}",
            auto_converge=QEMU_THROTTLE,
            postcopy=name == "ovirt-postcopy",
            decide=reference_policies.OVIRT[name].decide,
            interval_ms=lambda _samples: 10_000,
        )
        for name, summary in (
            ("ovirt", "100 ms, to 500 ms by the number of passes, looked at every 10 s, then gives up; auto-converge."),
            ("ovirt-postcopy", "100 ms, to 200 ms by the number of passes, then post-copy; auto-converge."),
            ("ovirt-suspend", "As ovirt, then 5 s of pause before it gives up."),
            ("ovirt-very-large", "300 ms, to 1500 ms by the number of passes, then 5 s; auto-converge."),
        )
    ),
    Policy(
        "ganeti",
        "30 ms and 32 MiB/s, whatever happens.",
        start_ms=30,
        of="Ganeti",
        bandwidth_bytes_per_s=32 * MIB,
        decide=reference_policies.ganeti,
        interval_ms=lambda _samples: 1000,
    ),
    Policy(
        "kubevirt",
        "300 ms throughout; gives up after 150 s for each GiB, or after 150 s in which the rest has not got less.",
        start_ms=300,
        of="KubeVirt",
        decide=reference_policies.kubevirt,
        interval_ms=lambda _samples: 400,
    ),
    Policy(
        "kubevirt-tuned",
        "150 ms, to 900 ms by the clock from pass 3 on; gives up when the rest stalls (KubeVirt's alpha features).",
        start_ms=150,
        of="KubeVirt 1.9 with downtimeTuning and stallDetector",
        decide=reference_policies.kubevirt_tuned,
        interval_ms=lambda _samples: 400,
    ),
)

POLICIES: Final[Mapping[str, Policy]] = {policy.name: policy for policy in _TABLE}

OURS: Final = tuple(policy.name for policy in _TABLE if policy.of is None)
RIVALS: Final = ("proxmox", "nova", "ovirt", "ganeti", "kubevirt")
"""The five that ours is measured against."""


def find(name: str) -> Policy:
    """Return a policy.

    Raises:
        UsageError: There is none of this name; the nearest one is in the hint.
    """
    policy = POLICIES.get(name)
    if policy is None:
        near = get_close_matches(name, POLICIES, n=1)
        raise UsageError(
            f"policy {name} does not exist",
            hint=(f"did you mean {near[0]}? " if near else "") + f"it is one of: {', '.join(POLICIES)}",
        )
    return policy
