"""How a migration will go: time, bytes, passes, blackout, and whether it ends. Pure: the passes happen on paper.

The classic model of pre-copy (Liu et al., HPDC 2011) is a geometric series: pass *i* sends what the guest dirtied in pass
*i* - 1, so that with ``share = dirtied / carried`` the passes shrink by that share, and never where it is 1 or more. Two
things make it true for real guests: what is dirtied within a time saturates (`DirtyCurve`), and what is decided after each
pass is decided by the very policy that the migration will use (`ladder.next_step`). What QEMU adds is measured or known:
connecting and the handshake, reading the dirty bitmap, the device state, and what the controller does around it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from qmp_migrate.migration.convergence import policies
from qmp_migrate.migration.forecast.simulation import Forecast, Link, Rules, Workload, play
from qmp_migrate.migration.model import policy_terms
from qmp_migrate.migration.model.request import MAX_DOWNTIME_MS, MigrationRequest, MigrationResult
from qmp_migrate.vm.units import about_size

__all__ = ["Forecast", "Link", "Rules", "Workload", "against_fact", "play", "predict", "rules_of"]


def predict(guest: Workload, link: Link, request: MigrationRequest) -> Forecast:
    """Return how a migration will go, and what would have to change where it does not complete.

    Args:
        guest: What is moved.
        link: What carries it.
        request: Mode, policy, limits.
    """
    forecast = play(guest, link, request, _rules(guest, link, request))
    if forecast.converges:
        return forecast
    return replace(forecast, needs=tuple(_needs(guest, link, request)))


def rules_of(request: MigrationRequest, *, one_pass: bool, postcopy: bool = False, dirty_ring: int = 0) -> Rules:
    """Return the rules of a migration's policy.

    Args:
        request: Policy and limits.
        one_pass: See `Copying.one_pass`.
        postcopy: Both ends can turn to post-copy.
        dirty_ring: See `Workload`.
    """
    policy, start = policies.find(request.policy), policy_terms.parameters(request, one_pass=one_pass)
    throttle = policy_terms.wants_throttle(request)
    allowed = policy_terms.allowed(request, postcopy=postcopy, stop=True, throttle=throttle, dirty_ring=dirty_ring)
    return Rules(
        start_ms=start["downtime-limit"],
        bandwidth_bytes_per_s=start["max-bandwidth"],
        decide=lambda samples: policy.decide(samples, allowed),
        interval_ms=policy.interval_ms,
        auto_converge=(policy.auto_converge or {}) if policy.of is not None else {},
    )


def _rules(guest: Workload, link: Link, request: MigrationRequest) -> Rules:
    return rules_of(request, one_pass=guest.one_pass, postcopy=link.can_postcopy, dirty_ring=guest.dirty_ring)


def _needs(guest: Workload, link: Link, request: MigrationRequest) -> Iterator[str]:
    """Say what would let it complete: the smallest limit, and the smallest bandwidth."""

    def completes(link: Link, request: MigrationRequest) -> bool:
        return play(guest, link, request, _rules(guest, link, request)).converges

    limit = _least(
        request.downtime_limit_ms,
        MAX_DOWNTIME_MS,
        lambda value: completes(link, replace(request, downtime_limit_ms=int(value))),
    )
    if limit is not None:
        yield f"a downtime limit of about {int(limit)} ms (--downtime-limit), with the link as it is"
    now = min(link.bytes_per_s, request.bandwidth_bytes_per_s or link.bytes_per_s)

    def with_bandwidth(value: float) -> bool:
        wider = replace(link, bytes_per_s=max(value, link.bytes_per_s))
        return completes(wider, replace(request, bandwidth_bytes_per_s=int(value)))

    bandwidth = _least(now, now * 1000, with_bandwidth)
    if bandwidth is not None:
        how = "--bandwidth" if bandwidth <= link.bytes_per_s else "a faster link"
        yield f"about {about_size(int(bandwidth))}/s ({how}), with the downtime limit as it is"
    if request.policy != "finish":
        yield "--policy finish, which always ends"


def _least(low: float, high: float, enough: Callable[[float], bool]) -> float | None:
    """Return about the least value (to 5 %) that is enough; None where even the most is not."""
    if not enough(high):
        return None
    while high / low > 1.05:
        middle = math.sqrt(low * high)
        if enough(middle):
            high = middle
        else:
            low = middle
    return high


def against_fact(foretold: Mapping[str, Any], result: MigrationResult) -> dict[str, Any] | None:
    """Return a forecast beside what came of it, for the result document; None where the migration was cut short.

    Args:
        foretold: Of `measurement.remembered`.
        result: With its outcome and its times.
    """
    gave_up = result.error is not None and result.error.get("code") == "not_converging"
    if result.outcome != "completed" and not gave_up:
        return None
    names = ("outlook", "why", "total_ms", "blackout_ms", "transferred_bytes", "passes")
    error = None
    if result.total_ms > 0:
        error = round(100 * (foretold["total_ms"] - result.total_ms) / result.total_ms, 1)
    return {"at": foretold["at"], **{name: foretold[name] for name in names}, "error_percent": error}
