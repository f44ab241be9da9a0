"""What a guest that was given up is told: only ways that are wider than the one it had."""

from __future__ import annotations

from dataclasses import replace

from qmp_migrate.migration.convergence.estimate import Outlook
from qmp_migrate.migration.convergence.ladder import _last_rung
from qmp_migrate.migration.convergence.suggestions import what_would_work
from qmp_migrate.migration.convergence.types import Allowed, Sample

MIB = 1 << 20
# Seen on a busy machine: pass 9 ended with nothing left, pass 11 began with 11.5 MiB, and the policy gave up.
OUTLOOK = Outlook(
    bandwidth=26.3 * MIB,
    in_blackout=26.3 * MIB,
    dirty=90.6 * MIB,
    pass_ms=439.0,
    need_ms=439.0,
    least_ms=0.0,
    rest_ms=float("inf"),
    copy_ms=15_000.0,
    elapsed_ms=10_000,
)
NOW = Sample(pass_number=11, remaining_bytes=int(11.5 * MIB), bandwidth_bytes_per_s=int(26.3 * MIB), limit_ms=300)
ALLOWED = Allowed(downtime_ms=300, bandwidth_bytes_per_s=0, throttle_percent=50)


def test_a_pass_that_ended_within_the_limit_is_no_measure_of_what_is_needed() -> None:
    said = what_would_work(OUTLOOK, NOW, ALLOWED)
    assert "--downtime-limit 0ms" not in said
    assert " 0MiB" not in said
    assert "--downtime-limit 549ms" in said


def test_the_best_pass_is_one_where_none_ended_within_the_limit() -> None:
    said = what_would_work(replace(OUTLOOK, least_ms=400.0), NOW, ALLOWED)
    assert "--downtime-limit 500ms" in said
    assert "a link that carries 36MiB/s (this one: 26.3 MiB/s)" in said


def test_a_link_that_is_slower_than_this_one_is_no_advice() -> None:
    # All that is dirtied again fits into the pause at half of this rate: it was not the link.
    said = what_would_work(replace(OUTLOOK, need_ms=150.0), NOW, ALLOWED)
    assert "a link that carries" not in said


def test_where_vcpus_are_slowed_down_the_time_in_which_they_still_sleep_is_part_of_the_blackout() -> None:
    now = replace(NOW, vcpu_dirty_bytes_per_s=(160.0 * MIB, 0.0), dirty_limit_bytes_per_s=40 * MIB)
    step = _last_rung([now], OUTLOOK, replace(ALLOWED, dirty_ring_bytes=16 * MIB), "it does not converge")
    assert "--downtime-limit 850ms" in step.hint  # 300 ms of sleep
