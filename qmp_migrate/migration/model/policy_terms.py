"""What a request makes of its policy: what it may do to the guest, and the QEMU parameters it starts with."""

from __future__ import annotations

from qmp_migrate.migration.convergence.ladder import first_limit_ms
from qmp_migrate.migration.convergence.policies import ARMED_THROTTLE, Policy, find
from qmp_migrate.migration.convergence.types import Allowed
from qmp_migrate.migration.convergence.vcpu_dirty_limit import RING_ENTRY_BYTES
from qmp_migrate.migration.model.request import MigrationRequest


def wants_postcopy(request: MigrationRequest) -> bool:
    """Tell whether post-copy is to be made possible, so that the policy can turn to it; before anything is wired."""
    if request.mode != "live":
        return request.mode == "postcopy"
    return find(request.policy).postcopy if request.allow_postcopy is None else request.allow_postcopy


def wants_throttle(request: MigrationRequest) -> bool:
    """Tell whether the guest may be slowed down: then QEMU's ``auto-converge`` is set at the source."""
    policy = find(request.policy)
    if policy.of is not None:
        return policy.auto_converge is not None
    return _throttle(policy, request) > 0


def wants_dirty_limit(request: MigrationRequest) -> bool:
    """Tell whether a guest with a dirty ring is slowed down by limiting its vCPUs' dirty rate; other programs do not."""
    return find(request.policy).of is None and wants_throttle(request)


def _throttle(policy: Policy, request: MigrationRequest) -> int:
    return policy.throttle_percent if request.max_throttle_percent is None else request.max_throttle_percent


def allowed(request: MigrationRequest, *, postcopy: bool, stop: bool, throttle: bool, dirty_ring: int = 0) -> Allowed:
    """Return how far the policy of a migration may go.

    Args:
        request: What is wanted.
        postcopy: Both ends were wired so that they can turn to post-copy.
        stop: The guest can be stopped on the way.
        throttle: The source was wired so that it can be slowed down.
        dirty_ring: Entries of the dirty ring of each vCPU, where QEMU can limit their dirty rate; 0: it cannot.
    """
    policy = find(request.policy)
    may_stop = policy.stop if request.allow_stop is None else request.allow_stop
    most = (
        request.bandwidth_bytes_per_s
        if request.max_bandwidth_bytes_per_s is None
        else request.max_bandwidth_bytes_per_s
    )
    return Allowed(
        downtime_ms=request.downtime_limit_ms,
        bandwidth_bytes_per_s=most,
        throttle_percent=_throttle(policy, request) if throttle and policy.of is None else 0,
        postcopy=postcopy and wants_postcopy(request),
        stop=stop and may_stop,
        copies=policy.copies,
        hurry_copies=policy.hurry_copies,
        switchover_bandwidth_bytes_per_s=request.switchover_bandwidth_bytes_per_s,
        timeout_ms=request.timeout_ms,
        dirty_ring_bytes=dirty_ring * RING_ENTRY_BYTES if throttle and policy.of is None else 0,
    )


def start_ms(request: MigrationRequest, *, one_pass: bool = False) -> int:
    """Return the ``downtime-limit`` that a migration starts with."""
    policy = find(request.policy)
    if policy.of is not None:
        return policy.start_ms
    return first_limit_ms(request.downtime_limit_ms, one_pass=one_pass, start_ms=policy.start_ms)


def parameters(request: MigrationRequest, *, one_pass: bool = False) -> dict[str, int]:
    """Return the source's parameters that the policy decides, as QEMU spells them."""
    policy = find(request.policy)
    throttle = dict(policy.auto_converge or ARMED_THROTTLE) if wants_throttle(request) else {}
    return {
        "max-bandwidth": request.bandwidth_bytes_per_s or policy.bandwidth_bytes_per_s,
        "downtime-limit": start_ms(request, one_pass=one_pass),
        **throttle,
    }
