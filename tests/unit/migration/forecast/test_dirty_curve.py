"""The curve of what a guest dirties: concave, rising, and true to what was measured."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmp_migrate.migration.forecast.dirty_curve import DirtyCurve, without_bursts

MIB = 1 << 20
GIB = 1 << 30

measured = st.lists(
    st.tuples(st.floats(0.05, 10.0), st.integers(0, 4 * GIB)),
    max_size=6,
)
times = st.floats(0, 100)


@given(measured, times, times)
def test_more_time_never_dirties_less_and_never_more_than_all(
    points: list[tuple[float, float]], one: float, other: float
) -> None:
    curve = DirtyCurve.of(points, 2 * GIB)
    short, long = sorted((one, other))
    assert 0 <= curve.dirtied(short) <= curve.dirtied(long) * (1 + 1e-9) <= 2 * GIB * (1 + 1e-9)


@given(measured, times)
def test_no_page_counts_twice_so_twice_the_time_dirties_at_most_twice_as_much(
    points: list[tuple[float, float]], seconds: float
) -> None:
    curve = DirtyCurve.of(points, 2 * GIB)
    assert curve.dirtied(2 * seconds) <= 2 * curve.dirtied(seconds) * (1 + 1e-6) + 1


@given(measured)
def test_what_was_measured_is_never_made_less(points: list[tuple[float, float]]) -> None:
    curve = DirtyCurve.of(points, 2 * GIB)
    for seconds, size in points:
        assert curve.dirtied(seconds) >= min(size, 2 * GIB) * (1 - 1e-9)


def test_a_working_set_is_seen_when_the_curve_flattens() -> None:
    curve = DirtyCurve.of([(1, 16 * MIB), (2, 16 * MIB), (4, 16 * MIB)], GIB)
    assert curve.working_set == 16 * MIB
    assert curve.dirtied(60) == 16 * MIB
    assert 0 < curve.dirtied(0.1) < 16 * MIB


def test_a_guest_that_dirties_ever_more_has_none_that_was_seen() -> None:
    curve = DirtyCurve.of([(1, 20 * MIB), (2, 40 * MIB), (4, 80 * MIB)], GIB)
    assert curve.working_set is None
    assert curve.rate == pytest.approx(20 * MIB, rel=0.01)
    assert curve.dirtied(10) == pytest.approx(200 * MIB, rel=0.01)
    assert curve.dirtied(1000) == GIB


def test_a_burst_is_left_out_and_rounding_is_not_taken_for_one() -> None:
    burst = [(1.0, 129.0 * MIB), (3.0, 60.0 * MIB)]
    assert without_bursts(burst, MIB) == [(1.0, 63 * MIB), (3.0, 60 * MIB)]
    rounded = [(1.0, 16.0 * MIB), (2.0, 14.0 * MIB), (4.0, 16.0 * MIB)]
    assert without_bursts(rounded, MIB) == rounded


def test_one_measurement_alone_is_a_straight_line() -> None:
    curve = DirtyCurve.of([(1, 20 * MIB)], GIB)
    assert curve.dirtied(0.5) == 10 * MIB
    assert curve.dirtied(2) == 40 * MIB


def test_nothing_dirtied_is_nothing() -> None:
    curve = DirtyCurve.of([(1, 0), (2, 0)], GIB)
    assert (curve.points, curve.rate, curve.working_set, curve.dirtied(5)) == ((), 0.0, 0.0, 0.0)


def test_half_the_processor_takes_twice_as_long() -> None:
    curve = DirtyCurve.of([(1, 20 * MIB), (2, 30 * MIB)], GIB)
    assert curve.scaled(0.5).dirtied(2) == curve.dirtied(1)
    assert curve.scaled(0).dirtied(2) == 0
