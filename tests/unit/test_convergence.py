"""The convergence policy: the mildest thing that helps, never more than is allowed, and no end without a reason."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmp_migrate.migration.convergence import (
    MAX_PASSES,
    NOTHING,
    STALLED_PASSES,
    START_MS,
    Sample,
    Step,
    first_limit_ms,
    needed_ms,
    next_step,
)

MIB = 1 << 20
GBIT = 125_000_000

samples_of_passes = st.lists(
    st.builds(
        Sample,
        pass_number=st.just(0),
        remaining_bytes=st.integers(0, 64 << 30),
        bandwidth_bytes_per_s=st.integers(0, 25_000_000_000),
        limit_ms=st.just(0),
    ),
    max_size=80,
)


def followed(allowed_ms: int, measured: list[Sample]) -> list[tuple[Sample, Step]]:
    """Feed what was measured to the policy, pass by pass, and obey it; ends with `give-up`."""
    limit, seen, told = first_limit_ms(allowed_ms), list[Sample](), list[tuple[Sample, Step]]()
    for number, sample in enumerate(measured, start=2):
        seen.append(Sample(number, sample.remaining_bytes, sample.bandwidth_bytes_per_s, limit))
        step = next_step(seen, allowed_ms=allowed_ms)
        told.append((seen[-1], step))
        if step.kind == "give-up":
            break
        if step.kind == "raise-downtime-limit":
            limit = step.limit_ms
    return told


# -- for whatever is measured ---------------------------------------------------------------------------------------


@given(allowed=st.integers(1, 2_000_000))
def test_it_starts_low(allowed: int) -> None:
    assert first_limit_ms(allowed) == min(30, allowed)
    assert START_MS == 30


def test_where_there_must_be_no_second_pass_it_starts_with_all_that_is_allowed() -> None:
    assert first_limit_ms(300, one_pass=True) == 300


@given(st.integers(1, 2_000_000), samples_of_passes)
def test_no_limit_is_above_what_is_allowed_nor_below_the_one_before(allowed: int, measured: list[Sample]) -> None:
    for sample, step in followed(allowed, measured):
        if step.kind == "raise-downtime-limit":
            assert sample.limit_ms < step.limit_ms <= allowed


@given(st.integers(1, 2_000_000), samples_of_passes)
def test_it_raises_only_when_a_pass_shows_the_need_and_no_further_than_that(
    allowed: int, measured: list[Sample]
) -> None:
    for sample, step in followed(allowed, measured):
        if step.kind == "raise-downtime-limit":
            need = needed_ms(sample)
            assert sample.limit_ms < need
            assert step.limit_ms <= min(need, 2 * sample.limit_ms)  # one bad sample does not spend it all


@given(st.integers(1, 2_000_000), samples_of_passes)
def test_it_gives_up_only_at_the_full_limit_after_several_passes(allowed: int, measured: list[Sample]) -> None:
    told = followed(allowed, measured)
    if told and told[-1][1].kind == "give-up":
        assert sum(1 for sample, _ in told if sample.limit_ms == allowed) > STALLED_PASSES
        assert needed_ms(told[-1][0]) > allowed


@given(st.integers(1, 2_000_000), samples_of_passes)
def test_every_step_says_why_in_numbers(allowed: int, measured: list[Sample]) -> None:
    for sample, step in followed(allowed, measured):
        if step.kind == "none":
            assert step == NOTHING
        else:
            assert f"{sample.pass_number} " in step.reason
            assert f"{allowed} ms" in step.reason
            assert f"about {needed_ms(sample)} ms" in step.reason


@given(st.integers(1, 2_000_000), st.lists(st.integers(0, 1 << 40), max_size=10))
def test_a_link_without_a_measured_rate_is_left_alone(allowed: int, remaining: list[int]) -> None:
    told = followed(allowed, [Sample(0, left, 0, 0) for left in remaining])
    assert all(step == NOTHING for _, step in told)


# -- against guests ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ended:
    """How the migration of a simulated guest ended: QEMU stopped it, or the policy gave up."""

    stopped: bool
    passes: int
    limit_ms: int
    reason: str


def migrate(dirtied: Callable[[float], float], *, bandwidth: int, ram: int, allowed_ms: int) -> Ended:
    """Play QEMU: a pass sends what the one before left; it stops the guest once the rest fits into the limit.

    Args:
        dirtied: Bytes that the guest has dirtied after so many seconds of a pass.
    """
    limit, remaining, seen = first_limit_ms(allowed_ms), float(ram), list[Sample]()
    for number in itertools.count(2):
        remaining = min(ram, dirtied(remaining / bandwidth))
        if remaining <= bandwidth * limit / 1000:
            return Ended(True, number, limit, "")
        assert number < 2000, "neither stops nor gives up"
        seen.append(Sample(number, int(remaining), bandwidth, limit))
        step = next_step(seen, allowed_ms=allowed_ms)
        if step.kind == "give-up":
            return Ended(False, number, limit, step.reason)
        limit = step.limit_ms or limit
    raise AssertionError


def working_set(rate: float, size: float) -> Callable[[float], float]:
    """A guest that dirties `rate` bytes per second within a working set."""
    return lambda seconds: min(size, rate * seconds)


def test_an_idle_guest_needs_no_step() -> None:
    ended = migrate(working_set(MIB, 4 * MIB), bandwidth=GBIT, ram=4 << 30, allowed_ms=300)
    assert (ended.stopped, ended.limit_ms) == (True, 30)


def test_a_guest_that_needs_a_longer_pause_gets_just_that() -> None:
    """16 MiB are dirtied again in every pass: 135 ms at 1 Gbit/s, with headroom 168."""
    ended = migrate(working_set(10 * GBIT, 16 * MIB), bandwidth=GBIT, ram=4 << 30, allowed_ms=2000)
    assert ended.stopped
    assert 135 <= ended.limit_ms <= 168
    assert ended.passes < 10


def test_a_guest_that_needs_more_than_is_allowed_is_given_up_soon() -> None:
    ended = migrate(working_set(10 * GBIT, 512 * MIB), bandwidth=GBIT, ram=4 << 30, allowed_ms=300)
    assert not ended.stopped
    assert ended.limit_ms == 300
    assert ended.passes < 15
    assert "512.0 MiB remain" in ended.reason


def test_a_guest_that_gets_a_little_better_is_not_waited_for_without_end() -> None:
    """Six per cent less in each pass, never enough, and endlessly small: it must end by itself or by us."""
    left = 3000.0 * MIB

    def slowly(_seconds: float) -> float:
        nonlocal left
        left = max(100 * MIB, left * 0.94)
        return left

    ended = migrate(slowly, bandwidth=GBIT, ram=4 << 30, allowed_ms=100)
    assert not ended.stopped
    assert ended.passes < 2 * MAX_PASSES


@pytest.mark.parametrize("allowed", [1, 10, 30])
def test_an_allowance_below_the_start_is_kept_from_the_start(allowed: int) -> None:
    ended = migrate(working_set(10 * GBIT, 512 * MIB), bandwidth=GBIT, ram=4 << 30, allowed_ms=allowed)
    assert (ended.stopped, ended.limit_ms) == (False, allowed)


@given(
    rate=st.integers(0, 20 * GBIT),
    size=st.integers(0, 8 << 30),
    bandwidth=st.integers(GBIT // 100, 10 * GBIT),
    allowed=st.integers(1, 10_000),
)
def test_every_guest_is_stopped_or_given_up_and_none_that_would_fit(
    rate: int, size: int, bandwidth: int, allowed: int
) -> None:
    ended = migrate(working_set(rate, size), bandwidth=bandwidth, ram=8 << 30, allowed_ms=allowed)
    assert ended.limit_ms <= allowed
    if not ended.stopped:
        assert size > bandwidth * allowed / 1000
        assert ended.reason
