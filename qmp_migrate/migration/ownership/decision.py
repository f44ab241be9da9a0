"""Who owns the guest, and what to do next: the decision core of a migration.

`decide` is a pure function over what was *observed* of the two QEMUs and what the journal says; it does no I/O and knows
no clock, so all its cells can be listed and tested. The engine, roll-back and recovery all act on it and on nothing else.
The table follows from five facts of QEMU (return-path on, destination started with ``-S``):

* Until the source is ``completed``, the guest is the source's; it resumes by itself when a migration fails or is
  cancelled.
* ``completed`` with a return path means the destination has loaded everything and waits, paused.
* Only ``cont`` makes the destination run. Once that *may* have been sent, the source's memory is older than the disks:
  it must not run again unless the destination is proven dead and proven never to have run (DESIGN rule 4).
* Silence proves nothing (rule 5): an unknown side is neither dead nor alive.
* Cancelling or yanking a source while the destination runs would start a second copy.
"""

from __future__ import annotations

from typing import Final

from qmp_migrate.migration.ownership import decision_postcopy
from qmp_migrate.migration.ownership.states import (
    Action,
    Decision,
    Destination,
    Facts,
    Goal,
    Source,
    classify_destination,
    classify_source,
)
from qmp_migrate.qemu import states

__all__ = [
    "Action",
    "Decision",
    "Destination",
    "Facts",
    "Goal",
    "Source",
    "classify_destination",
    "classify_source",
    "decide",
    "proves_never_ran",
]

S, D, A = Source, Destination, Action

IN_POSTCOPY: Final = decision_postcopy.AT_DESTINATION


def proves_never_ran(source: Source, status: str | None, *, postcopy: bool = False) -> bool:
    """Tell whether what the source says proves that the destination has not run the guest.

    ``cont`` is sent only after the source has said ``completed``, which it says for ever after. One that runs, copies,
    switches or is paused and has another status has never said it. That counts for the migration in question alone: not where
    another controller has held the guest since.

    Args:
        source: What it is.
        status: Its ``query-migrate`` status.
        postcopy: It may have turned to post-copy, where ``cont`` is sent earlier: then only one that has not begun with it
            proves anything. (From 8.2 on, a source whose last answer is lost at the end of post-copy says ``failed`` and runs
            on, although the destination has run.)
    """
    if status in {None, "completed"} or (postcopy and status in states.IDLE):
        return False
    return source in {S.RUNS, S.STOPPED, S.COPIES, S.HOLDS, S.SWITCHES}


def decide(source: Source, destination: Destination, facts: Facts, goal: Goal) -> Decision:
    """Return the next action for a pair of observed states.

    Every cell of the table is listed in ``docs/handover.md``, made from this function.
    """
    decision = _decide(source, destination, facts, goal)
    if decision.action is A.PARK and facts.told is not None:
        return _as_told(source, destination, facts) or decision
    return decision


def _decide(source: Source, destination: Destination, facts: Facts, goal: Goal) -> Decision:
    if facts.postcopy:
        goal = Goal.FORWARD
    if (decision := decision_postcopy.decide(source, destination, facts)) is not None:
        return decision
    if facts.split_brain and not (destination is D.RUNS and source in {S.RUNS, S.COPIES}):
        return Decision(A.PARK, "both copies have run: a person must say which one is the guest")
    if destination is D.RUNS:
        return _destination_runs(source)
    match source:
        case S.RUNS:
            return _source_owns(destination, facts, "the source runs the guest; what the destination holds is stale")
        case S.STOPPED if (
            facts.stopped_by_us or facts.postcopy
        ) and facts.was_running:  # 7.2 leaves it so in post-copy
            return _stopped_by_us(destination, facts)
        case S.STOPPED | S.HALTED:
            return _source_owns(
                destination, facts, "the guest is the source's, and is not running by its own or its user's doing"
            )
        case S.COPIES | S.HOLDS:
            return _before_switchover(source, destination, facts, goal)
        case S.SWITCHES | S.HANGS:
            return _switching(source, destination, facts, goal)
        case S.COMPLETED:
            return _completed(destination, facts, goal)
        case S.DEAD:
            return _source_dead(destination, facts)
        case S.UNKNOWN:
            return _source_unknown(destination, facts)
        case S.POSTCOPY | S.INTERRUPTED:
            raise AssertionError("decided already")


def _destination_runs(source: Source) -> Decision:
    match source:
        case S.RUNS | S.COPIES:
            return Decision(A.SPLIT_BRAIN, "both copies run: the order was broken from outside")
        case S.DEAD:
            return Decision(A.FINISHED_AT_DESTINATION, "the destination runs the guest and the source is gone")
        case S.UNKNOWN:
            return Decision(A.PARK, "the destination runs the guest, but nobody can say what the source does")
        case S.HOLDS | S.SWITCHES | S.HANGS | S.POSTCOPY | S.INTERRUPTED:
            # Cancel or yank would start the source: only its end is safe.
            return Decision(A.RELEASE_SOURCE, "the destination runs the guest; the source must not be woken")
        case S.COMPLETED | S.STOPPED | S.HALTED:
            return Decision(A.RELEASE_SOURCE, "the destination runs the guest; the source is stopped for good")


def _source_owns(destination: Destination, facts: Facts, why: str) -> Decision:
    match destination:
        case D.ABSENT:
            return Decision(A.FINISHED_AT_SOURCE, why)
        case D.HANGS if facts.surely_never_ran:
            return Decision(A.KILL_DESTINATION, f"{why}; it does not answer, and never ran")
        case D.UNKNOWN | D.HANGS:
            return Decision(A.PARK, f"{why}; the destination cannot be asked and must be ended before another try")
        case D.HALTED:
            return Decision(A.PARK, "the guest has run at the destination, yet the source is not stopped")
        case _:
            return Decision(A.KILL_DESTINATION, why)


def _stopped_by_us(destination: Destination, facts: Facts) -> Decision:
    """Let the guest run again that was stopped so that its memory could travel.

    The destination goes first where it can be seen. Where it cannot, the guest need not stand still for that: QEMU lets one
    that it has stopped itself run on then, too.
    """
    if destination is D.ABSENT or (destination is D.UNKNOWN and facts.surely_never_ran):
        return Decision(A.RESUME_SOURCE, "it was stopped for the migration, which is over: it runs on at the source")
    return _source_owns(destination, facts, "the guest is the source's, stopped for a migration that is over")


def _before_switchover(source: Source, destination: Destination, facts: Facts, goal: Goal) -> Decision:
    if destination is D.HALTED:
        return Decision(A.PARK, "the destination has run a guest that the source still holds")
    if goal is Goal.FORWARD and destination is D.INCOMING:
        if source is S.HOLDS:
            return Decision(A.CONTINUE_SOURCE, "the source waits at pre-switchover and the destination is ready")
        return Decision(A.WAIT, "memory is being copied")
    if goal is Goal.FORWARD and destination is D.LOADED and facts.patience:
        return Decision(A.WAIT, "the destination has loaded; the source's word is on its way")
    if source is S.COPIES and not facts.patience and facts.surely_never_ran:
        # A cancel can hang: the threads of multifd wait for a network that swallows everything.
        if not facts.yanked:
            return Decision(A.YANK_SOURCE, "the cancel hangs: without its connections the source runs on")
        if destination in {D.INCOMING, D.LOADED, D.HANGS}:
            return Decision(A.KILL_DESTINATION, "the cancel hangs, and nothing has been handed over")
    return Decision(A.CANCEL_SOURCE, "nothing has been handed over: the source runs on after a cancel")


def _switching(source: Source, destination: Destination, facts: Facts, goal: Goal) -> Decision:
    if destination is D.HALTED:
        return Decision(A.PARK, "the destination has run the guest while the source is still switching")
    if facts.patience:
        return Decision(A.WAIT, "the device state travels: this ends by itself, or fails and the source runs on")
    if destination is not D.INCOMING and not facts.surely_never_ran:
        # One that is seen to switch has not completed, so `cont` cannot be on its way; one that hangs may have.
        if destination is D.LOADED and source is S.SWITCHES and goal is Goal.BACK:
            return Decision(A.KILL_DESTINATION, "the destination is loaded and has not run, and the source hangs")
        return Decision(A.PARK, "the switchover hangs and the destination may have run")
    if not facts.yanked:
        return Decision(A.YANK_SOURCE, "the switchover hangs: without its connection the source runs on")
    if destination is D.ABSENT:
        return Decision(A.PARK, "the source hangs; it alone holds the guest")
    if destination is D.UNKNOWN or not facts.surely_never_ran:
        return Decision(A.PARK, "the source hangs and cannot be freed; the destination waits for it")
    # Once the source wakes up it must find nobody to hand the guest to: it then runs on by itself.
    return Decision(A.KILL_DESTINATION, "the source hangs and cannot be freed: without its destination it runs on")


def _as_told(source: Source, destination: Destination, facts: Facts) -> Decision | None:
    """Do what a person has decided, where that cannot make two copies run; None where it could."""
    if facts.told == "destination":
        if source not in {S.DEAD, S.COMPLETED, S.STOPPED, S.HALTED}:
            return None
        if destination is D.LOADED:
            return Decision(A.COMMIT, "a person has decided for the destination")
        if destination in {D.RUNS, D.HALTED}:
            finish = A.FINISHED_AT_DESTINATION if source is S.DEAD else A.RELEASE_SOURCE
            return Decision(finish, "a person has decided for the destination")
        return None
    if source not in {S.RUNS, S.COMPLETED, S.STOPPED, S.HALTED} or destination in {
        D.RUNS,
        D.UNKNOWN,
        D.HANGS,
        *IN_POSTCOPY,
    }:
        return None
    if destination is not D.ABSENT:
        return Decision(A.KILL_DESTINATION, "a person has decided for the source")
    if source is S.RUNS or not facts.was_running:
        return Decision(A.FINISHED_AT_SOURCE, "a person has decided for the source")
    return Decision(A.RESUME_SOURCE, "a person has decided for the source")


def _completed(destination: Destination, facts: Facts, goal: Goal) -> Decision:
    match destination:
        case D.LOADED if goal is Goal.FORWARD:
            return Decision(A.COMMIT, "the source is stopped for good and the destination holds everything")
        case D.LOADED if facts.surely_never_ran:
            return Decision(A.KILL_DESTINATION, "not committed yet: the destination goes, then the source resumes")
        case D.LOADED:
            # Loaded and paused: it has not run, but the journal cannot exclude a `cont` on its way. Forward is safe.
            return Decision(A.COMMIT, "it may have been committed already: the destination is the only safe owner")
        case D.ABSENT if facts.ran:
            why = "the guest ran at the destination and has ended there: the source's memory is older than the disks"
            return Decision(A.RELEASE_SOURCE, why)
        case D.ABSENT if facts.surely_never_ran and not facts.was_running:
            return Decision(A.FINISHED_AT_SOURCE, "the destination is gone; the guest was paused and stays so")
        case D.ABSENT if facts.surely_never_ran:
            return Decision(A.RESUME_SOURCE, "the destination is gone and never ran: the source holds the whole guest")
        case D.ABSENT:
            return Decision(
                A.PARK, "the destination is gone and may have run: the source's memory may be older than the disks"
            )
        case D.HALTED:
            return Decision(A.RELEASE_SOURCE, "the guest ran at the destination and stopped there")
        case D.INCOMING:
            if facts.patience:
                return Decision(A.WAIT, "the source is completed; the destination is about to say so")
            if facts.surely_never_ran:
                return Decision(
                    A.KILL_DESTINATION, "the destination never finished loading: the source takes the guest back"
                )
            return Decision(A.PARK, "the states contradict each other")
        case D.HANGS if facts.patience:
            return Decision(A.WAIT, "the source is stopped for good; the destination does not answer just now")
        case D.HANGS if facts.surely_never_ran:
            return Decision(A.KILL_DESTINATION, "the destination hangs and never ran: the source takes the guest back")
        case _:
            return Decision(A.PARK, "the source is stopped for good and the destination cannot be asked")


def _source_dead(destination: Destination, facts: Facts) -> Decision:
    match destination:
        case D.LOADED if facts.source_completed:
            return Decision(A.COMMIT, "the source was completed and is gone; the destination holds everything")
        case D.LOADED:
            return Decision(A.PARK, "the source is gone; it may have run on after the destination had loaded")
        case D.HALTED:
            return Decision(A.FINISHED_AT_DESTINATION, "the guest is the destination's and stopped there")
        case D.ABSENT:
            return Decision(A.GUEST_GONE, "neither QEMU exists any more")
        case D.INCOMING:
            return Decision(A.KILL_DESTINATION, "the source is gone and the destination can never finish loading")
        case D.HANGS if facts.patience:
            return Decision(A.WAIT, "the source is gone; the destination does not answer just now")
        case _:
            return Decision(A.PARK, "the source is gone and the destination cannot be asked")


def _source_unknown(destination: Destination, facts: Facts) -> Decision:
    if destination is D.LOADED:
        return Decision(A.PARK, "the destination holds everything, but the source may have resumed: proof is needed")
    if facts.patience:
        return Decision(A.WAIT, "the source does not answer; silence proves nothing")
    return Decision(A.PARK, "the source cannot be asked")
