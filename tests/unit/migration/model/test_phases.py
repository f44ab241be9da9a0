"""The phase graph: sound, and with the rules in it that must not be broken by an edge too many."""

from __future__ import annotations

import itertools

import pytest

from qmp_migrate.migration.model.phases import AFTER_COMMIT, ENDS, NEXT, Phase, check_step, validate

P = Phase

FORWARD = [
    P.REQUESTED,
    P.PREFLIGHT,
    P.LOCKED,
    P.DESTINATION_LAUNCHED,
    P.WIRED,
    P.COPYING,
    P.SWITCHING,
    P.COMMITTED,
    P.RUNNING_AT_DESTINATION,
    P.SOURCE_RELEASED,
    P.DONE,
]


def test_the_way_forward_and_its_two_detours() -> None:
    for before, after in itertools.pairwise(FORWARD):
        check_step(before, after)
    for before, after in [
        (P.WIRED, P.DISKS_MIRRORING),
        (P.DISKS_MIRRORING, P.COPYING),
        (P.COPYING, P.PRE_SWITCHOVER),
        (P.PRE_SWITCHOVER, P.SWITCHING),
    ]:
        check_step(before, after)


def test_nothing_follows_an_end() -> None:
    assert {phase for phase in Phase if not NEXT[phase]} == set(ENDS)


def test_from_every_phase_before_the_end_of_the_source_there_is_a_way_back_or_to_a_person() -> None:
    for phase in set(Phase) - ENDS - {P.SOURCE_RELEASED}:
        assert NEXT[phase] & {P.ROLLING_BACK, P.ROLLED_BACK, P.PARKED}, phase


def test_once_it_runs_at_the_destination_there_is_no_way_back() -> None:
    for phase in (P.RUNNING_AT_DESTINATION, P.SOURCE_RELEASED, P.DONE):
        assert not NEXT[phase] & {P.ROLLING_BACK, P.ROLLED_BACK}
    assert set(AFTER_COMMIT) == {P.COMMITTED, P.RUNNING_AT_DESTINATION, P.SOURCE_RELEASED, P.DONE}


def test_the_source_is_released_only_by_who_has_seen_the_destination_run_or_by_a_person() -> None:
    assert {phase for phase in Phase if P.SOURCE_RELEASED in NEXT[phase]} == {P.RUNNING_AT_DESTINATION, P.PARKED}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (P.REQUESTED, P.COPYING),
        (P.COPYING, P.COMMITTED),
        (P.ROLLED_BACK, P.COMMITTED),
        (P.ROLLING_BACK, P.COMMITTED),
        (P.DONE, P.ROLLING_BACK),
    ],
)
def test_a_step_that_is_not_in_the_graph_is_refused(before: Phase, after: Phase) -> None:
    with pytest.raises(ValueError, match=f"cannot go from {before} to {after}"):
        check_step(before, after)


def test_the_check_at_import_finds_a_phase_that_is_missing() -> None:
    with pytest.raises(ValueError, match="without an entry"):
        validate({phase: following for phase, following in NEXT.items() if phase is not P.LOCKED})


def test_and_one_that_cannot_be_reached() -> None:
    broken = {phase: following - {P.PRE_SWITCHOVER} for phase, following in NEXT.items()}
    with pytest.raises(ValueError, match=r"cannot be reached: .*PRE_SWITCHOVER"):
        validate(broken)


def test_and_one_without_an_end() -> None:
    broken = dict(NEXT) | {P.SOURCE_RELEASED: frozenset({P.SOURCE_RELEASED}), P.DONE: frozenset()}
    broken[P.WIRED] = NEXT[P.WIRED] | {P.DONE}
    with pytest.raises(ValueError, match=r"without a way to an end: .*SOURCE_RELEASED"):
        validate(broken)
