"""Medians and ranges."""

from __future__ import annotations

from bench.measure.samples import Numbers, Sample
from bench.report.summary import Spread, Summary


def sample(wall_ms: float, *, contender: str = "raw", number: int = 1, total_ms: int = 100, **more: object) -> Sample:
    return Sample("idle", contender, number, wall_ms=wall_ms, qemu=Numbers(total_ms, 5, 0, 1 << 20, 2), **more)  # type: ignore[arg-type]


def test_a_spread_has_the_median_and_the_ends_and_skips_what_was_not_measured() -> None:
    assert Spread.of([3.0, None, 1.0, 10.0]) == Spread(3.0, 1.0, 10.0, 3)
    assert Spread.of([None]) is None


def test_rows_are_by_scenario_and_contender_in_the_order_of_measuring() -> None:
    found = Summary([sample(200), sample(300, contender="command"), sample(220), sample(500, contender="command")])
    assert [row.contender for row in found.of("idle")] == ["raw", "command"]
    assert found.median("idle", "raw", "wall_ms") == 210
    assert found.median("idle", "command", "overhead_ms") == 300
    assert found.median("idle", "virsh", "wall_ms") is None
    assert found.median("dirtying", "raw", "wall_ms") is None


def test_a_failed_sample_is_counted_and_gives_no_number() -> None:
    found = Summary([sample(200), sample(0, error="it broke")]).row("idle", "raw")
    assert found is not None
    assert found.median("wall_ms") == 200
    assert found.failures == ("it broke",)


def test_a_row_of_failures_only_has_no_numbers() -> None:
    found = Summary([sample(0, error="it broke")]).row("idle", "raw")
    assert found is not None
    assert found.spreads == {}
    assert found.stages == {}


def test_guests_that_did_not_go_on_are_counted_unknown_ones_are_not() -> None:
    found = Summary([sample(1, guest_went_on=went_on) for went_on in (True, False, None)]).row("idle", "raw")
    assert found is not None
    assert found.lost == 1


def test_stages_keep_their_order_and_take_the_median_of_those_that_have_them() -> None:
    first, second = {"lock": 10.0, "copy": 100.0}, {"lock": 30.0, "copy": 300.0, "leave": 7.0}
    found = Summary([sample(1, stages=first), sample(1, stages=second)]).row("idle", "raw")
    assert found is not None
    assert list(found.stages.items()) == [("lock", 20.0), ("copy", 200.0), ("leave", 7.0)]
