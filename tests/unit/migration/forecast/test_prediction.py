"""A forecast: the passes on paper, what must be monotone in them, and what is told where they do not end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmp_migrate.migration.convergence.ladder import NOTHING
from qmp_migrate.migration.convergence.types import Sample, Step
from qmp_migrate.migration.forecast import measurement
from qmp_migrate.migration.forecast.dirty_curve import DirtyCurve
from qmp_migrate.migration.forecast.prediction import Forecast, Link, Rules, Workload, against_fact, play, predict
from qmp_migrate.migration.model.request import MigrationRequest, MigrationResult
from qmp_migrate.qemu.dirty_rate import Dirtied

MIB = 1 << 20
GIB = 1 << 30
REQUEST = MigrationRequest("web1", "b", "a")
LINK = Link(100 * MIB, setup_ms=0, around_ms=0, handover_ms=10)
IDLE = Workload(GIB, GIB, DirtyCurve())
STILL = Rules(300, 0, lambda _samples: NOTHING)
"""A policy that does nothing: then what remains is arithmetic."""

rates = st.integers(0, 80)
sets = st.integers(16, 900)


def guest(rate_mib: float, set_mib: float = 1024, present: int = GIB) -> Workload:
    """A guest that rewrites a working set page by page, round and round."""
    points = [(t, min(rate_mib * t, set_mib) * MIB) for t in (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)]
    return Workload(GIB, present, DirtyCurve.of(points, GIB))


def test_an_idle_guest_is_sent_once() -> None:
    forecast = predict(IDLE, LINK, REQUEST)
    assert forecast.converges
    assert forecast.passes == 3
    assert forecast.total_ms == pytest.approx(10_250, rel=0.02)
    assert forecast.transferred_bytes == pytest.approx(GIB, rel=0.01)
    assert forecast.blackout_ms < 45
    assert forecast.why == "it dirties next to nothing"


def test_zeros_cost_next_to_nothing() -> None:
    forecast = predict(replace(IDLE, present_bytes=100 * MIB), LINK, REQUEST)
    assert forecast.total_ms < 1500
    assert forecast.transferred_bytes < 105 * MIB


def test_a_constant_dirty_rate_is_the_geometric_series() -> None:
    """Liu et al.: V/R * (1 - share^(n+1)) / (1 - share), here 1 GiB at 100 MiB/s with share 1/2."""
    forecast = play(guest(50), LINK, REQUEST, replace(STILL, start_ms=100))
    assert forecast.converges
    assert forecast.total_ms == pytest.approx(10_240 * 2, rel=0.05)
    assert forecast.transferred_bytes == pytest.approx(2 * GIB, rel=0.05)


def test_a_working_set_that_fits_ends_at_once_however_quickly_it_is_dirtied() -> None:
    forecast = play(guest(1000, set_mib=20), LINK, REQUEST, STILL)
    assert forecast.converges
    assert forecast.passes <= 4
    assert 200 <= forecast.blackout_ms <= 315


@given(rates, rates, sets)
def test_a_busier_guest_never_takes_less_time_or_fewer_bytes(one: int, other: int, ws: int) -> None:
    calm, busy = (play(guest(rate, ws), LINK, REQUEST, STILL) for rate in sorted((one, other)))
    if busy.converges:
        assert calm.converges
    if busy.converges and calm.converges:
        assert calm.total_ms <= busy.total_ms * 1.02 + 350
        assert calm.transferred_bytes <= busy.transferred_bytes * 1.02 + 35 * MIB
        assert calm.passes <= busy.passes + 1


@given(rates, st.integers(20, 400), st.integers(20, 400))
def test_a_better_link_never_takes_more_time(rate: int, one: int, other: int) -> None:
    slow, fast = (
        play(guest(rate), replace(LINK, bytes_per_s=mib * MIB), REQUEST, STILL) for mib in sorted((one, other))
    )
    if slow.converges:
        assert fast.converges
        assert fast.total_ms <= slow.total_ms * 1.02 + 350


@given(rates, sets, st.integers(1, 2000))
def test_the_blackout_keeps_to_the_limit_but_for_what_is_not_memory(rate: int, ws: int, limit: int) -> None:
    forecast = predict(guest(rate, ws), LINK, replace(REQUEST, downtime_limit_ms=limit))
    if forecast.converges:
        assert forecast.blackout_ms <= limit + 15


@given(rates, sets)
def test_offline_takes_the_same_whatever_the_guest_dirties(rate: int, ws: int) -> None:
    forecast = predict(guest(rate, ws), LINK, replace(REQUEST, mode="offline"))
    assert forecast.converges
    assert forecast.passes == 3
    assert forecast.total_ms == pytest.approx(10_250, rel=0.02)
    assert forecast.blackout_ms == pytest.approx(forecast.total_ms, rel=0.01)


def test_postcopy_pauses_for_the_devices_alone() -> None:
    forecast = predict(guest(90), LINK, replace(REQUEST, mode="postcopy"))
    assert forecast.converges
    assert forecast.blackout_ms < 20
    assert GIB < forecast.transferred_bytes < 2.1 * GIB


def test_a_paused_guest_has_no_blackout() -> None:
    forecast = predict(replace(guest(90), running=False), LINK, REQUEST)
    assert forecast.converges
    assert forecast.blackout_ms == 0


def test_a_hopeless_one_is_given_up_and_it_is_told_what_would_do() -> None:
    forecast = predict(guest(150, set_mib=800), LINK, replace(REQUEST, policy="gentle"))
    assert forecast.outlook == "gives-up"
    assert "links carries" not in forecast.why
    limit = next(need for need in forecast.needs if "--downtime-limit" in need)
    wanted = int(limit.split()[5])
    assert predict(guest(150, set_mib=800), LINK, replace(REQUEST, policy="gentle", downtime_limit_ms=wanted)).converges
    assert any("a faster link" in need for need in forecast.needs)
    assert any("finish" in need for need in forecast.needs)


def test_where_it_is_we_who_limit_the_bandwidth_that_is_what_is_told() -> None:
    forecast = predict(guest(60), LINK, replace(REQUEST, policy="gentle", bandwidth_bytes_per_s=40 * MIB))
    assert forecast.outlook == "gives-up"
    assert any("(--bandwidth)" in need for need in forecast.needs)


def test_a_guest_that_may_have_one_pass_only() -> None:
    forecast = predict(replace(guest(20), one_pass=True), LINK, REQUEST)
    assert forecast.outlook == "gives-up"
    assert "second one" in forecast.why
    assert predict(replace(IDLE, one_pass=True), LINK, REQUEST).converges


def test_a_dead_link_is_told() -> None:
    assert predict(IDLE, replace(LINK, bytes_per_s=0), REQUEST).outlook == "endless"


def test_a_throttle_slows_down_who_is_busy_and_hardly_who_is_not() -> None:
    busy, idle = guest(110, set_mib=800), replace(guest(110, set_mib=800), busy=0.3)
    assert predict(busy, LINK, replace(REQUEST, policy="default")).converges
    assert not predict(idle, LINK, replace(REQUEST, policy="default")).converges


def test_what_others_do_is_played_too() -> None:
    assert predict(guest(150, set_mib=800), LINK, replace(REQUEST, policy="ganeti")).outlook == "endless"
    assert predict(guest(110, set_mib=800), LINK, replace(REQUEST, policy="proxmox")).converges


def test_disks_are_copied_before() -> None:
    forecast = predict(replace(IDLE, disk_bytes=GIB), LINK, REQUEST)
    assert forecast.total_ms == pytest.approx(20_500, rel=0.02)


def _told(forecast: Forecast) -> dict[str, object]:
    return {"at": 1.0, **forecast.to_dict()}


def _result(**values: object) -> MigrationResult:
    return MigrationResult(**({"id": "m1", "vm": "web1", "source": "a", "destination": "b", "mode": "live"} | values))  # type: ignore[arg-type]


def test_forecast_against_fact() -> None:
    told = _told(Forecast("completes", "so", 1200, 30.0, 5, 3))
    fact = against_fact(told, _result(outcome="completed", total_ms=1000))
    assert fact is not None
    assert (fact["error_percent"], fact["total_ms"], fact["passes"]) == (20.0, 1200, 3)


def test_what_was_given_up_can_have_been_foretold_but_what_was_cut_short_cannot() -> None:
    told = _told(Forecast("gives-up", "so", 500, 0.0, 5, 3))
    given_up = _result(outcome="rolled_back", total_ms=1000, error={"code": "not_converging"})
    assert (against_fact(told, given_up) or {})["error_percent"] == -50.0
    assert against_fact(told, _result(outcome="cancelled", total_ms=1000)) is None


@pytest.mark.parametrize("kind", ["stop", "postcopy"])
def test_the_rate_limit_holds_after_a_stop_and_in_post_copy(kind: str) -> None:
    """Only QEMU's own switchover lifts ``max-bandwidth``; a guest stopped by us, or in post-copy, keeps to it."""
    rules = replace(STILL, start_ms=20)
    last = Step(kind, "too busy")  # type: ignore[arg-type]  # one of its kinds
    forecasts = [
        play(guest(1000, set_mib=50), LINK, REQUEST, replace(rules, bandwidth_bytes_per_s=cap, decide=at_pass_2(last)))
        for cap in (0, 25 * MIB)
    ]
    rest_ms = 50 * 1000 / 25
    if kind == "stop":
        assert forecasts[1].blackout_ms == pytest.approx(rest_ms, rel=0.1)
        assert forecasts[0].blackout_ms == pytest.approx(rest_ms / 4, rel=0.1)
    else:
        assert forecasts[1].blackout_ms < 50
        assert forecasts[1].total_ms == pytest.approx(GIB / (25 * MIB) * 1000 + rest_ms, rel=0.015)


def at_pass_2(step: Step) -> Callable[[Sequence[Sample]], Step]:
    return lambda samples: step if samples[-1].pass_number == 2 else NOTHING


def test_with_dirty_rings_the_limit_is_played_through_as_the_policy_will_set_it() -> None:
    ringed = replace(guest(150, set_mib=800), vcpus=(150 * MIB, 0), dirty_ring=4096)
    request = replace(REQUEST, max_throttle_percent=80)
    with_ring, without = predict(ringed, LINK, request), predict(replace(ringed, dirty_ring=0), LINK, request)
    assert with_ring.converges
    assert "no vCPU may dirty more than" in with_ring.steps[0]
    assert "slowed down by" in without.steps[0]
    assert with_ring.total_ms < 1.2 * without.total_ms
    assert with_ring.blackout_ms <= 300 + 15


def test_no_more_is_dirty_than_the_rings_have_counted() -> None:
    sampled = [Dirtied(1.0, 90 * MIB, "page-sampling"), Dirtied(3.0, 110 * MIB, "page-sampling")]
    assert measurement._curve(sampled, 1 << 30).dirtied(1.0) == pytest.approx(90 * MIB)
    assert measurement._curve(sampled, 1 << 30, (30 * MIB, 30 * MIB)).dirtied(1.0) == pytest.approx(60 * MIB)
    # A few pages over and over: the rings count them again and again.
    assert measurement._curve(sampled, 1 << 30, (900 * MIB,)).dirtied(3.0) == pytest.approx(110 * MIB)
