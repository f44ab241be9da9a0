"""What other programs do about a guest that does not converge, done again exactly, for comparison. Pure.

Each is a fold over the samples that the program itself would have seen: what it remembers between two looks is worked out
anew each time, so that nothing is kept. They do not keep to the user's limits, since the programs do not know them.

Sources: Proxmox VE ``PVE/QemuMigrate.pm`` (qemu-server, 2026-08); Nova ``virt/libvirt/migration.py`` and the options
``live_migration_*`` (2026-08); oVirt ``0000_config.sql`` and vdsm ``virt/migration.py`` (2026-08, 2026-06); Ganeti
``hv_kvm`` (2026-04); KubeVirt ``virt-launcher`` ``live-migration-source.go``, VEP 248 and VEP 291 (2026-08).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from qmp_migrate.migration.convergence.types import NOTHING, Allowed, Sample, Step

GIB: Final = 1 << 30
LONGEST_MS: Final = 2_000_000
"""QEMU's own."""


def _raised(limit_ms: int, now: Sample, reason: str) -> Step:
    if limit_ms == now.limit_ms:
        return NOTHING
    return Step(
        "raise-downtime-limit", limit_ms=limit_ms, reason=f"{reason}: downtime limit {now.limit_ms} -> {limit_ms} ms"
    )


# -- Proxmox VE -------------------------------------------------------------------------------------------------------

PROXMOX_LOOKS: Final = 5


def proxmox(samples: Sequence[Sample], _allowed: Allowed) -> Step:
    """Double the limit when the rest has grown, or was 0, in more than five looks; never give up."""
    counter = doubled = 0
    for before, now in pairwise(samples):
        doubled = 0
        counter += now.remaining_bytes > before.remaining_bytes or now.remaining_bytes == 0
        if counter > PROXMOX_LOOKS:
            counter = 0
            doubled = min(2 * now.limit_ms, LONGEST_MS)
    if not doubled:
        return NOTHING
    return _raised(doubled, samples[-1], f"the rest has grown in {PROXMOX_LOOKS + 1} looks")


def proxmox_interval_ms(samples: Sequence[Sample]) -> int:
    """A look each second; ten times as many once less remains than what one look has moved on average."""
    for looks, sample in enumerate(samples, start=1):
        if sample.transferred_bytes and sample.remaining_bytes < sample.transferred_bytes / looks:
            return 100
    return 1000


# -- OpenStack Nova ---------------------------------------------------------------------------------------------------

NOVA_MOST_MS: Final = 500
NOVA_STEPS: Final = 10
NOVA_DELAY_S_PER_GIB: Final = 75
NOVA_TIMEOUT_S_PER_GIB: Final = 800
NOVA_LEAST_GIB: Final = 2
NOVA_BASE_MS: Final = NOVA_MOST_MS // NOVA_STEPS
NOVA_OFFSET_MS: Final = (NOVA_MOST_MS - NOVA_BASE_MS) // NOVA_STEPS


def nova(samples: Sequence[Sample], _allowed: Allowed) -> Step:
    """Raise the limit by the clock, 75 s for each GiB and step; give up after 800 s for each GiB."""
    now = samples[-1]
    gib = max(now.total_bytes / GIB, NOVA_LEAST_GIB)
    if now.elapsed_ms > NOVA_TIMEOUT_S_PER_GIB * gib * 1000:
        return Step("give-up", reason=f"not completed after {NOVA_TIMEOUT_S_PER_GIB * gib:.0f} s")
    steps = min(int(now.elapsed_ms // (NOVA_DELAY_S_PER_GIB * gib * 1000)), NOVA_STEPS)
    return _raised(NOVA_BASE_MS + NOVA_OFFSET_MS * steps, now, f"step {steps} by the clock")


# -- oVirt ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OvirtSchedule:
    """One of oVirt's migration policies.

    Attributes:
        stalling: After more than so many passes: this limit, milliseconds.
        last: What is done after these, one with each new pass: a limit, ``postcopy`` or ``abort``.
    """

    title: str
    start_ms: int
    stalling: tuple[tuple[int, int], ...]
    last: tuple[int | str, ...]

    def decide(self, samples: Sequence[Sample], _allowed: Allowed) -> Step:
        """Take one action of the schedule with each new pass that a look finds."""
        schedule: list[tuple[int, int | str]] = [*self.stalling, *((-1, action) for action in self.last)]
        first = seen = samples[0].pass_number
        action: int | str | None = None
        for sample in samples:
            action = None
            if sample.pass_number > seen:
                seen = sample.pass_number
                if schedule and schedule[0][0] < seen - first:
                    action = schedule.pop(0)[1]
        reason = f"after {seen - first} passes"
        if action is None:
            return NOTHING
        if action == "postcopy":
            return Step("postcopy", reason=reason)
        if action == "abort":
            return Step("give-up", reason=f"{reason} there is nothing left in the schedule")
        return _raised(int(action), samples[-1], reason)


_MINIMAL: Final = ((1, 150), (2, 200), (3, 300), (4, 400), (6, 500))

OVIRT: Final = {
    "ovirt": OvirtSchedule("Minimal downtime", 100, _MINIMAL, ("abort",)),
    "ovirt-postcopy": OvirtSchedule("Post-copy migration", 100, ((1, 150), (2, 200)), ("postcopy", "abort")),
    "ovirt-suspend": OvirtSchedule("Suspend workload if needed", 100, _MINIMAL, (5000, "abort")),
    "ovirt-very-large": OvirtSchedule(
        "Very large VMs", 300, ((1, 400), (2, 500), (3, 700), (4, 1000), (6, 1500)), (5000, "abort")
    ),
}


# -- Ganeti -----------------------------------------------------------------------------------------------------------


def ganeti(_samples: Sequence[Sample], _allowed: Allowed) -> Step:
    """Do nothing: its limit and bandwidth are fixed, and it waits without end."""
    return NOTHING


# -- KubeVirt ---------------------------------------------------------------------------------------------------------

KUBEVIRT_S_PER_GIB: Final = 150
KUBEVIRT_PROGRESS_S: Final = 150

STALL_WINDOW_MS: Final = 40_000
STALL_MARGIN: Final = 0.04
SMOOTHING: Final = 0.4
TUNING_START_MS: Final = 150
TUNING_MOST_MS: Final = 900
TUNING_AFTER_PASS: Final = 3
TUNING_STEPS: Final = 7
TUNING_EVERY_MS: Final = 10_000
SOFT_TOLERANCE: Final = 1.5


def kubevirt(samples: Sequence[Sample], _allowed: Allowed) -> Step:
    """Give up at the deadline (150 s for each GiB), or when the least rest is 150 s old."""
    now = samples[-1]
    gib = math.ceil(now.total_bytes / GIB)
    if now.elapsed_ms > KUBEVIRT_S_PER_GIB * gib * 1000:
        return Step("give-up", reason=f"not completed after {KUBEVIRT_S_PER_GIB * gib} s")
    least = min(samples, key=lambda sample: sample.remaining_bytes)
    if now.elapsed_ms - least.elapsed_ms > KUBEVIRT_PROGRESS_S * 1000:
        return Step("give-up", reason=f"the rest has not got less for {KUBEVIRT_PROGRESS_S} s")
    return NOTHING


def kubevirt_tuned(samples: Sequence[Sample], allowed: Allowed) -> Step:
    """Raise the limit by the clock from pass 3 on; when the rest stalls, take what nearly fits, or give up."""
    legacy = kubevirt(samples, allowed)
    if legacy.kind != "none":
        return legacy
    now = samples[-1]
    if _stalled(samples):
        best = min(sample.remaining_bytes for sample in samples)
        if now.remaining_bytes <= best * (1 + STALL_MARGIN):
            rate = _smoothed(samples)
            estimate_ms = now.remaining_bytes * 1000 / rate if rate else math.inf
            if estimate_ms > TUNING_MOST_MS * SOFT_TOLERANCE:
                return Step("give-up", reason=f"the rest stalls at {estimate_ms:.0f} ms")
            return _raised(TUNING_MOST_MS, now, "the rest stalls")
    since = next((sample.elapsed_ms for sample in samples if sample.pass_number > TUNING_AFTER_PASS), None)
    if since is None:
        return NOTHING
    steps = min((now.elapsed_ms - since) // TUNING_EVERY_MS + 1, TUNING_STEPS)
    limit = TUNING_START_MS + (TUNING_MOST_MS - TUNING_START_MS) * steps // TUNING_STEPS
    return _raised(max(limit, now.limit_ms), now, f"step {steps} by the clock")


def _stalled(samples: Sequence[Sample]) -> bool:
    """Nothing within the window has got below the least of before it."""
    now = samples[-1]
    outside = [s.remaining_bytes for s in samples if now.elapsed_ms - s.elapsed_ms > STALL_WINDOW_MS]
    return bool(outside) and now.remaining_bytes >= min(outside) * (1 - STALL_MARGIN)


def _smoothed(samples: Sequence[Sample]) -> float:
    rate = float(samples[0].bandwidth_bytes_per_s)
    for sample in samples[1:]:
        rate = SMOOTHING * sample.bandwidth_bytes_per_s + (1 - SMOOTHING) * rate
    return rate
