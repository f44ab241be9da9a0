"""The decision table: every cell of it against every rule that it must keep.

How the decisions play out one after the other is in `test_handover_histories`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmp_migrate.migration.ownership.decision import (
    Action,
    Destination,
    Facts,
    Goal,
    Source,
    classify_destination,
    classify_source,
    decide,
)
from qmp_migrate.migration.ownership.decision_postcopy import AT_DESTINATION, AT_SOURCE
from tests.support.models.decision_cells import ALL, WAKES_THE_SOURCE, Cell

A, S, D = Action, Source, Destination

CELLS = [
    cell
    for cell in ALL
    if not cell.facts.postcopy and cell.source not in AT_SOURCE and cell.destination not in AT_DESTINATION
]
"""All but those of post-copy, which `test_handover_postcopy` is about."""
UNTOLD = [cell for cell in CELLS if cell.facts.told is None]
"""What is done by proof alone: nobody has decided anything."""


def check(what: str, broken: Callable[[Cell], bool], cells: list[Cell] = UNTOLD) -> None:
    bad = [cell for cell in cells if broken(cell)]
    assert not bad, f"{what}:\n" + "\n".join(map(str, bad[:5]))


HARMLESS = {A.WAIT, A.PARK}


def test_there_are_all_of_them_and_each_says_why() -> None:
    assert len(ALL) == len(Source) * len(Destination) * 2 ** (len(fields(Facts)) - 1) * 3 * len(Goal) == 737280
    check("a reason is missing", lambda c: len(c.reason) < 10, ALL)


# -- forward ------------------------------------------------------------------------------------------------------


def test_commit_only_where_the_source_is_stopped_for_good_and_the_destination_holds_everything() -> None:
    check(
        "a commit too early",
        lambda c: c.action is A.COMMIT and not (c.source in {S.COMPLETED, S.DEAD} and c.destination is D.LOADED),
    )


def test_a_source_that_is_gone_must_have_said_that_it_was_completed() -> None:
    """Else it may have run on after the destination had loaded, and the disks are newer than that copy."""
    check(
        "a commit of a copy that may be stale",
        lambda c: c.action is A.COMMIT and c.source is S.DEAD and not c.facts.source_completed,
    )


def test_no_commit_on_the_way_back_while_the_source_can_still_have_the_guest() -> None:
    check(
        "a commit that nobody wanted",
        lambda c: c.action is A.COMMIT and c.goal is Goal.BACK and c.source is S.COMPLETED and c.facts.surely_never_ran,
    )


def test_the_switchover_is_begun_only_by_who_wants_it_and_towards_a_destination_that_waits() -> None:
    check(
        "a switchover that nobody wanted",
        lambda c: (
            c.action is A.CONTINUE_SOURCE and (c.source, c.destination, c.goal) != (S.HOLDS, D.INCOMING, Goal.FORWARD)
        ),
    )


def test_the_source_is_ended_only_where_the_guest_is_at_the_destination_and_not_here() -> None:
    check(
        "a source that is ended with its guest",
        lambda c: (
            c.action is A.RELEASE_SOURCE
            and not (c.destination in {D.RUNS, D.HALTED} and c.source not in {S.RUNS, S.COPIES, S.DEAD, S.UNKNOWN})
            and not (c.facts.ran and c.destination is D.ABSENT and c.source is S.COMPLETED)  # it was, and ended there
        ),
    )


# -- back ---------------------------------------------------------------------------------------------------------


def test_resume_only_where_the_destination_is_gone_with_proof_that_it_never_ran() -> None:
    check(
        "a resume without proof",
        lambda c: (
            c.action is A.RESUME_SOURCE
            and not (c.source is S.COMPLETED and c.destination is D.ABSENT and c.facts.surely_never_ran)
            # It has failed without ever being completed: the destination cannot have run.
            and not (c.source is S.STOPPED and c.destination is D.ABSENT)
            and not (c.source is S.STOPPED and c.destination is D.UNKNOWN and c.facts.surely_never_ran)
        ),
    )


def test_only_a_guest_that_we_have_stopped_is_let_run_again_where_it_stands() -> None:
    check(
        "a pause of its user's that is over",
        lambda c: c.action is A.RESUME_SOURCE and c.source is S.STOPPED and not c.facts.stopped_by_us,
    )
    check(
        "it stays stopped, and was to run",
        lambda c: (
            c.action is A.FINISHED_AT_SOURCE and c.source is S.STOPPED and c.facts.stopped_by_us and c.facts.was_running
        ),
    )


def test_a_guest_that_was_paused_is_not_started() -> None:
    check("a pause that is over", lambda c: c.action is A.RESUME_SOURCE and not c.facts.was_running)


def test_the_source_is_never_woken_where_the_destination_has_run() -> None:
    check(
        "two copies, or a copy older than its disks",
        lambda c: c.action in WAKES_THE_SOURCE and c.destination in {D.RUNS, D.HALTED},
    )


def test_the_source_is_never_woken_where_the_destination_may_have_run_and_cannot_be_seen() -> None:
    """While it copies or waits at pre-switchover, `cont` cannot have been sent; later it can."""
    check(
        "a copy that may be older than its disks",
        lambda c: (
            c.action in WAKES_THE_SOURCE
            and c.source not in {S.COPIES, S.HOLDS}
            and c.destination in {D.ABSENT, D.UNKNOWN, D.HANGS}
            and not c.facts.surely_never_ran
            and not (c.source is S.STOPPED and c.destination is D.ABSENT)  # it was never completed
        ),
    )


def test_the_destination_is_killed_only_where_it_waits_or_hangs_and_never_ran() -> None:
    check(
        "a kill of what runs, ran, or cannot be seen",
        lambda c: (
            c.action is A.KILL_DESTINATION
            and c.destination not in {D.INCOMING, D.LOADED}
            and not (c.destination is D.HANGS and c.facts.surely_never_ran)
        ),
    )


def test_the_last_whole_copy_is_never_killed() -> None:
    check(
        "the guest is lost",
        lambda c: (
            c.action is A.KILL_DESTINATION
            and (c.source is S.UNKNOWN or (c.source is S.DEAD and c.destination is not D.INCOMING))
        ),
    )
    check(
        "neither of the two may run after this",
        lambda c: c.action is A.KILL_DESTINATION and c.source is S.COMPLETED and not c.facts.surely_never_ran,
    )

    check(
        "neither of the two may run after this",
        lambda c: c.action is A.KILL_DESTINATION and c.source is S.HANGS and not c.facts.surely_never_ran,
    )


def test_back_at_the_source_means_the_source_has_it_and_the_destination_is_gone() -> None:
    check(
        "finished too early",
        lambda c: (
            c.action is A.FINISHED_AT_SOURCE
            and not (c.source in {S.RUNS, S.STOPPED, S.HALTED} and c.destination is D.ABSENT)
            # A guest that was paused before stays as QEMU leaves it, stopped after `completed`.
            and not (
                c.source is S.COMPLETED
                and c.destination is D.ABSENT
                and c.facts.surely_never_ran
                and not c.facts.was_running
            )
        ),
    )


# -- what a person decides ------------------------------------------------------------------------------------------


def test_a_person_changes_only_what_would_be_parked() -> None:
    untold = {(c.source, c.destination, c.facts, c.goal): c for c in UNTOLD}
    for cell in CELLS:
        plain = untold[cell.source, cell.destination, replace(cell.facts, told=None), cell.goal]
        assert cell.action is plain.action or plain.action is A.PARK, cell


def test_not_even_a_person_makes_two_copies_run() -> None:
    told = [cell for cell in CELLS if cell.facts.told is not None]
    check(
        "a commit while the source may run",
        lambda c: c.action is A.COMMIT and c.source not in {S.DEAD, S.COMPLETED, S.STOPPED, S.HALTED},
        told,
    )
    check(
        "a resume while the destination may run",
        lambda c: c.action is A.RESUME_SOURCE and c.destination is not D.ABSENT and not c.facts.surely_never_ran,
        told,
    )
    check(
        "a kill of what runs or cannot be seen",
        lambda c: kills(c) and c.destination in {D.RUNS, D.UNKNOWN, D.HANGS},
        [c for c in told if not c.facts.surely_never_ran],
    )
    check(
        "a source that is ended while it runs, or may",
        lambda c: c.action is A.RELEASE_SOURCE and c.source in {S.RUNS, S.COPIES, S.UNKNOWN},
        told,
    )


def kills(cell: Cell) -> bool:
    return cell.action is A.KILL_DESTINATION


def test_what_a_person_decides_leads_somewhere() -> None:
    """Both stopped after a split brain; a source that is gone; a destination that may have run and is gone."""
    torn = Facts(may_have_run=True, split_brain=True, patience=False)
    dead = Facts(may_have_run=True, patience=False)
    for source, destination, facts, told, action in [
        (S.STOPPED, D.RUNS, torn, "destination", A.RELEASE_SOURCE),
        (S.RUNS, D.HALTED, torn, "source", A.KILL_DESTINATION),
        (S.RUNS, D.ABSENT, torn, "source", A.FINISHED_AT_SOURCE),
        (S.STOPPED, D.ABSENT, torn, "source", A.RESUME_SOURCE),
        (S.DEAD, D.LOADED, dead, "destination", A.COMMIT),
        (S.COMPLETED, D.ABSENT, dead, "source", A.RESUME_SOURCE),
    ]:
        assert decide(source, destination, facts, Goal.FORWARD).action is A.PARK
        assert decide(source, destination, replace(facts, told=told), Goal.FORWARD).action is action


# -- neither ------------------------------------------------------------------------------------------------------


def test_silence_leads_to_nothing_that_cannot_be_taken_back() -> None:
    check("acted on a source that is unknown", lambda c: c.source is S.UNKNOWN and c.action not in HARMLESS)
    # A cancel of a source that copies is right whatever the destination does; a yank only if it surely never ran.
    check(
        "acted on a destination that is unknown",
        lambda c: (
            c.destination is D.UNKNOWN
            and c.action not in HARMLESS
            and not (c.action is A.CANCEL_SOURCE and c.source in {S.COPIES, S.HOLDS})
            and not (c.action is A.RESUME_SOURCE and c.source is S.STOPPED and c.facts.surely_never_ran)
            and not (
                c.action is A.YANK_SOURCE and c.source in {S.COPIES, S.SWITCHES, S.HANGS} and c.facts.surely_never_ran
            )
        ),
    )


def test_the_ends_are_told_from_what_is_seen_alone() -> None:
    check(
        "split brain",
        lambda c: (c.action is A.SPLIT_BRAIN) != (c.source in {S.RUNS, S.COPIES} and c.destination is D.RUNS),
    )
    whole = [cell for cell in UNTOLD if not cell.facts.split_brain]
    check(
        "gone",
        lambda c: (c.action is A.GUEST_GONE) != (c.source is S.DEAD and c.destination is D.ABSENT),
        whole,
    )
    check(
        "finished at the destination",
        lambda c: (
            (c.action is A.FINISHED_AT_DESTINATION) != (c.source is S.DEAD and c.destination in {D.RUNS, D.HALTED})
        ),
        whole,
    )


def test_after_a_split_brain_nothing_is_done_until_a_person_decides() -> None:
    torn = [cell for cell in UNTOLD if cell.facts.split_brain]
    check("something is done", lambda c: c.action not in {A.PARK, A.SPLIT_BRAIN, A.WAIT}, torn)


def test_a_source_that_hangs_is_yanked_once_and_then_left_without_a_destination() -> None:
    stuck = Facts(patience=False, never_ran=True)
    assert decide(S.HANGS, D.INCOMING, stuck, Goal.BACK).action is A.YANK_SOURCE
    yanked = replace(stuck, yanked=True)
    assert decide(S.HANGS, D.INCOMING, yanked, Goal.BACK).action is A.KILL_DESTINATION
    assert decide(S.HANGS, D.ABSENT, yanked, Goal.BACK).action is A.PARK


def test_without_patience_nothing_is_waited_for_but_the_copying_itself() -> None:
    check(
        "waits for ever",
        lambda c: (
            c.action is A.WAIT
            and not c.facts.patience
            and (c.source, c.destination, c.goal) != (S.COPIES, D.INCOMING, Goal.FORWARD)
        ),
    )


def test_proof_that_it_never_ran_outweighs_the_journal() -> None:
    by_key = {(c.source, c.destination, c.facts, c.goal): c.action for c in UNTOLD}
    for cell in UNTOLD:
        if cell.facts.never_ran:
            plain = replace(cell.facts, may_have_run=False, never_ran=False)
            assert by_key[cell.source, cell.destination, plain, cell.goal] is cell.action, cell


# -- what the words of QEMU mean ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("run_state", "status", "source"),
    [
        ("running", "none", S.RUNS),
        ("running", "failed", S.RUNS),
        ("running", "cancelled", S.RUNS),
        ("running", "completed", S.RUNS),  # `cont` after it had completed
        ("running", "setup", S.COPIES),
        ("running", "wait-unplug", S.COPIES),
        ("running", "active", S.COPIES),
        ("running", "cancelling", S.COPIES),
        ("running", "a-status-of-2030", S.COPIES),
        ("paused", "active", S.COPIES),  # paused by its user: QEMU goes on copying
        ("finish-migrate", "pre-switchover", S.HOLDS),
        ("finish-migrate", "active", S.SWITCHES),  # 7.2 has no `device` without pre-switchover
        ("finish-migrate", "device", S.SWITCHES),
        ("finish-migrate", "cancelling", S.SWITCHES),
        ("finish-migrate", "failing", S.SWITCHES),  # 11.0
        ("finish-migrate", "a-status-of-2030", S.SWITCHES),
        ("postmigrate", "completed", S.COMPLETED),
        ("finish-migrate", "completed", S.COMPLETED),
        ("paused", "none", S.STOPPED),
        ("paused", "failed", S.STOPPED),
        ("postmigrate", "failed", S.STOPPED),  # 7.2, of a guest that was paused before
        ("shutdown", "none", S.HALTED),
        ("guest-panicked", "cancelled", S.HALTED),
        ("io-error", "none", S.HALTED),
        (None, "active", S.HANGS),  # it lives, and does not answer
        ("running", None, S.HANGS),
    ],
)
def test_what_a_source_says(run_state: str | None, status: str | None, source: Source) -> None:
    assert classify_source(alive=True, run_state=run_state, status=status) is source


@pytest.mark.parametrize(
    ("run_state", "status", "destination"),
    [
        ("inmigrate", "none", D.INCOMING),  # 7.2, also while it listens
        ("inmigrate", "setup", D.INCOMING),
        ("inmigrate", "active", D.INCOMING),
        ("inmigrate", "failed", D.INCOMING),  # exit-on-error off: it lives on, and can never load anything
        ("paused", "active", D.INCOMING),
        ("prelaunch", "none", D.INCOMING),
        ("inmigrate", "a-status-of-2030", D.INCOMING),
        ("paused", "completed", D.LOADED),
        ("prelaunch", "completed", D.LOADED),
        ("running", "completed", D.RUNS),
        ("running", "active", D.RUNS),  # started without -S, or `cont` during inmigrate
        ("shutdown", "completed", D.HALTED),
        ("io-error", "completed", D.HALTED),
        ("guest-panicked", "completed", D.HALTED),
        (None, "completed", D.HANGS),
        ("paused", None, D.HANGS),
    ],
)
def test_what_a_destination_says(run_state: str | None, status: str | None, destination: Destination) -> None:
    assert classify_destination(alive=True, run_state=run_state, status=status) is destination


def test_no_answer_is_never_a_death() -> None:
    for alive in (None, True):
        assert classify_source(alive=alive, run_state=None, status=None) is not S.DEAD
        assert classify_destination(alive=alive, run_state=None, status=None) in {D.UNKNOWN, D.HANGS}
    assert classify_source(alive=None, run_state=None, status=None) is S.UNKNOWN
    assert classify_source(alive=False, run_state=None, status=None) is S.DEAD
    assert classify_destination(alive=False, run_state=None, status=None) is D.ABSENT


@given(st.text(max_size=20), st.text(max_size=20))
def test_words_of_a_later_qemu_are_sorted_too_and_never_as_dead(run_state: str, status: str) -> None:
    assert classify_source(alive=True, run_state=run_state, status=status) not in {S.DEAD, S.UNKNOWN}
    assert classify_destination(alive=True, run_state=run_state, status=status) not in {D.ABSENT, D.UNKNOWN}


def test_a_source_that_is_about_to_run_on_is_waited_for() -> None:
    for status in ("failed", "cancelled"):
        source = classify_source(alive=True, run_state="finish-migrate", status=status)
        assert decide(source, D.ABSENT, Facts(), Goal.BACK).action is A.WAIT


@pytest.mark.parametrize("destination", [D.INCOMING, D.LOADED, D.HANGS, D.UNKNOWN, D.ABSENT])
def test_a_cancel_that_hangs_is_helped_along(destination: Destination) -> None:
    """Multifd into a network that swallows everything: seen for ever in `cancelling` on 7.2."""
    facts = Facts(patience=True)
    assert decide(S.COPIES, destination, facts, Goal.BACK).action is A.CANCEL_SOURCE
    facts = replace(facts, patience=False)
    assert decide(S.COPIES, destination, facts, Goal.BACK).action is A.YANK_SOURCE
    action = decide(S.COPIES, destination, replace(facts, yanked=True), Goal.BACK).action
    seen = destination in {D.INCOMING, D.LOADED, D.HANGS}
    assert action is (A.KILL_DESTINATION if seen else A.CANCEL_SOURCE)
    # At pre-switchover a cancel works, and what may have run is not cut off from who could tell.
    assert decide(S.HOLDS, destination, facts, Goal.BACK).action is not A.YANK_SOURCE
    assert decide(S.COPIES, destination, replace(facts, may_have_run=True), Goal.BACK).action is not A.YANK_SOURCE
