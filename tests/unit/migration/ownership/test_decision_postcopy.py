"""The cells of the decision in which post-copy was asked for or has begun, against the rules that they must keep."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from qmp_migrate.migration.ownership.decision import (
    Action,
    Destination,
    Facts,
    Goal,
    Source,
    classify_destination,
    classify_source,
    decide,
    proves_never_ran,
)
from qmp_migrate.migration.ownership.decision_postcopy import AT_DESTINATION, AT_SOURCE
from tests.support.models.decision_cells import ALL, WAKES_THE_SOURCE, Cell

A, S, D = Action, Source, Destination

CELLS = [
    cell
    for cell in ALL
    if cell.facts.told is None
    and (cell.facts.postcopy or cell.source in AT_SOURCE or cell.destination in AT_DESTINATION)
    and not (cell.destination is D.RUNS and cell.source in {S.RUNS, S.COPIES})  # split brain, as ever
]
WHOLE = [cell for cell in CELLS if not cell.facts.split_brain]
GONE = {D.ABSENT}
HAS_ALL = {D.RUNS, D.HALTED, D.LOADED}


def check(what: str, broken: Callable[[Cell], bool], cells: list[Cell] = CELLS) -> None:
    bad = [cell for cell in cells if broken(cell)]
    assert not bad, f"{what}:\n" + "\n".join(map(str, bad[:3]))


def test_a_source_in_post_copy_is_never_cancelled_yanked_or_resumed() -> None:
    check("rule 6", lambda c: c.source in AT_SOURCE and c.action in WAKES_THE_SOURCE)


def test_nor_is_one_cancelled_that_may_begin_with_it_at_any_moment() -> None:
    """At pre-switchover it cannot: there it waits for us. And nothing is lost where nobody else has any of the guest."""
    check(
        "rule 6",
        lambda c: (
            c.action is A.CANCEL_SOURCE
            and c.source is not S.HOLDS
            and not (c.source is S.COPIES and c.destination is D.ABSENT and c.facts.surely_never_ran)
        ),
    )


def test_a_source_in_post_copy_ends_only_where_the_destination_has_all_or_is_gone() -> None:
    check(
        "memory that exists nowhere else",
        lambda c: (
            c.source in AT_SOURCE
            and c.action in {A.RELEASE_SOURCE, A.END_SOURCE}
            and c.destination not in {*GONE, D.RUNS, D.HALTED}
        ),
    )
    check(
        "ended without proof that the destination is gone",
        lambda c: c.action is A.END_SOURCE and not (c.source is S.INTERRUPTED and c.destination is D.ABSENT),
    )


def test_a_destination_in_post_copy_is_ended_only_where_it_is_worthless() -> None:
    """The source has proven taken the guest back before it ran there, or is gone with the pages that are lacking."""
    check(
        "memory that exists nowhere else",
        lambda c: (
            c.action is A.KILL_DESTINATION
            and c.destination in AT_DESTINATION
            and not (c.source in {S.RUNS, S.STOPPED, S.HALTED} and c.facts.surely_never_ran)
            and not (c.source is S.DEAD and not c.facts.patience)
        ),
    )
    check("kill", lambda c: c.action is A.KILL_DESTINATION and c.source in AT_SOURCE)


def test_the_destination_is_continued_only_with_its_devices_loaded_and_the_source_out_of_it() -> None:
    """A source in `postcopy-device` (10.2) would run on if the destination failed now: `cont` waits for its next word."""
    check(
        "two copies",
        lambda c: (
            c.action is A.CONTINUE_DESTINATION
            and not (c.source in {S.POSTCOPY, S.COMPLETED} and c.destination is D.WAITING)
        ),
    )
    check("its user had paused it", lambda c: c.action is A.CONTINUE_DESTINATION and not c.facts.was_running)
    check("its user has paused it since", lambda c: c.action is A.CONTINUE_DESTINATION and c.facts.ran)
    check(
        "a commit",
        lambda c: (
            c.action is A.COMMIT and not (c.source in {*AT_SOURCE, S.COMPLETED, S.DEAD} and c.destination is D.LOADED)
        ),
    )


def test_the_connection_is_replaced_only_where_it_is_lost() -> None:
    check(
        "recover",
        lambda c: c.action is A.RECOVER_POSTCOPY and not (c.source is S.INTERRUPTED and c.facts.patience),
    )
    check("pause", lambda c: c.action is A.PAUSE_POSTCOPY and not (c.source is S.POSTCOPY and not c.facts.patience))


def test_what_travels_is_waited_for_and_what_stands_still_is_not() -> None:
    check("waits", lambda c: c.source in AT_SOURCE and c.action is A.WAIT and not c.facts.patience)
    for destination in (D.POSTCOPY, D.WAITING):
        facts = Facts(postcopy=True, may_have_run=True, ran=True)
        assert decide(S.POSTCOPY, destination, facts, Goal.FORWARD).action is A.WAIT


def test_what_was_wanted_does_not_matter_any_more() -> None:
    by_goal = {(c.source, c.destination, c.facts, c.goal): c.action for c in CELLS if c.facts.postcopy}
    for (source, destination, facts, goal), action in by_goal.items():
        other = Goal.BACK if goal is Goal.FORWARD else Goal.FORWARD
        assert by_goal[source, destination, facts, other] is action


def test_a_source_that_is_resumed_has_never_handed_the_guest_over() -> None:
    check("a copy older than its disks", lambda c: c.action is A.RESUME_SOURCE and not c.facts.surely_never_ran)
    check("pause", lambda c: c.action is A.RESUME_SOURCE and not c.facts.was_running)
    check(
        "it may have run there, and is said to be the source's",
        lambda c: c.action is A.FINISHED_AT_SOURCE and not c.facts.surely_never_ran,
    )


def test_a_source_that_hangs_is_freed_only_where_its_connection_is_lost_already() -> None:
    check(
        "yank",
        lambda c: (
            c.action is A.YANK_SOURCE
            and not c.facts.surely_never_ran
            and c.destination is not D.INCOMING
            and not (c.source is S.HANGS and c.destination is D.INTERRUPTED and c.facts.postcopy)
        ),
    )


def test_silence_leads_to_nothing() -> None:
    check(
        "acted on what is unknown",
        lambda c: (
            (c.source is S.UNKNOWN or c.destination is D.UNKNOWN)
            and c.source in {*AT_SOURCE, S.UNKNOWN}
            and c.action not in {A.WAIT, A.PARK}
        ),
    )


def test_after_a_split_brain_nothing_is_done_until_a_person_decides() -> None:
    torn = [cell for cell in CELLS if cell.facts.split_brain]
    check("something is done", lambda c: c.action not in {A.PARK, A.WAIT}, torn)


def test_both_gone_is_said_to_be_gone() -> None:
    check("gone", lambda c: (c.action is A.GUEST_GONE) != (c.source is S.DEAD and c.destination is D.ABSENT), WHOLE)


@pytest.mark.parametrize(
    ("run_state", "status", "source"),
    [
        ("running", "postcopy-active", S.POSTCOPY),  # 7.2 says so before it stops the guest
        ("finish-migrate", "postcopy-active", S.POSTCOPY),
        ("finish-migrate", "postcopy-paused", S.INTERRUPTED),
        ("finish-migrate", "postcopy-recover-setup", S.POSTCOPY),
        ("finish-migrate", "postcopy-recover", S.POSTCOPY),
        ("finish-migrate", "postcopy-device", S.SWITCHES),  # 10.2: it still runs on if the destination fails
    ],
)
def test_what_a_source_says(run_state: str, status: str, source: Source) -> None:
    assert classify_source(alive=True, run_state=run_state, status=status) is source


@pytest.mark.parametrize(
    ("run_state", "status", "destination"),
    [
        ("inmigrate", "postcopy-active", D.INCOMING),  # a `cont` now would undo -S
        ("inmigrate", "postcopy-device", D.INCOMING),
        ("inmigrate", "postcopy-paused", D.INCOMING),
        ("paused", "postcopy-active", D.WAITING),
        ("running", "postcopy-active", D.POSTCOPY),
        ("shutdown", "postcopy-active", D.POSTCOPY),
        ("running", "postcopy-paused", D.INTERRUPTED),  # frozen, and says that it runs
        ("paused", "postcopy-paused", D.INTERRUPTED),
    ],
)
def test_what_a_destination_says(run_state: str, status: str, destination: Destination) -> None:
    assert classify_destination(alive=True, run_state=run_state, status=status) is destination


def test_a_source_that_failed_in_post_copy_proves_nothing() -> None:
    assert proves_never_ran(S.RUNS, "failed")
    assert not proves_never_ran(S.RUNS, "failed", postcopy=True)
    assert proves_never_ran(S.COPIES, "active", postcopy=True)
    assert proves_never_ran(S.SWITCHES, "postcopy-device", postcopy=True)
    for source, status in itertools.product(AT_SOURCE, ("postcopy-active", "postcopy-paused")):
        assert not proves_never_ran(source, status, postcopy=True)
