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

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from qmp_migrate.qemu import states


class Source(StrEnum):
    """What is known of the source QEMU."""

    RUNS = "runs"  # guest active here; migration none, failed or cancelled
    COPIES = "copies"  # guest active here; a migration is under way
    HOLDS = "holds"  # pre-switchover: stopped, waits for us
    SWITCHES = "switches"  # device state travels, or the migration has failed and QEMU is about to run on
    HANGS = "hangs"  # proven alive, but its monitor does not answer: the main loop is stuck, as at a switchover
    POSTCOPY = "postcopy"  # the guest runs at the destination and still needs pages from here (DESIGN rule 6)
    COMPLETED = "completed"  # stopped for good unless `cont` is sent
    STOPPED = "stopped"  # paused, by its user or by us; no migration is under way
    HALTED = "halted"  # the guest itself ended, or an error of its disks stopped it; no migration is under way
    DEAD = "dead"  # proven: pid, start time, boot id
    UNKNOWN = "unknown"


class Destination(StrEnum):
    """What is known of the destination QEMU."""

    ABSENT = "absent"  # never launched, or proven dead
    INCOMING = "incoming"  # waits for or loads the stream
    LOADED = "loaded"  # has everything, paused
    RUNS = "runs"
    HALTED = "halted"  # ran, and the guest then ended or was paused
    POSTCOPY = "postcopy"  # still needs pages from the source, whether it says that it runs or not
    HANGS = "hangs"  # proven alive, but its monitor does not answer
    UNKNOWN = "unknown"


class Goal(StrEnum):
    """Where the caller wants to go; the decision may be that it is too late for it."""

    FORWARD = "forward"
    BACK = "back"


class Action(StrEnum):
    """One thing to do; then observe and decide again."""

    WAIT = "wait"
    CANCEL_SOURCE = "cancel-source"  # migrate_cancel
    CONTINUE_SOURCE = "continue-source"  # migrate-continue from pre-switchover
    YANK_SOURCE = "yank-source"  # out of band; the source then fails the migration and runs on
    RESUME_SOURCE = "resume-source"  # cont on the source
    KILL_DESTINATION = "kill-destination"  # with proof
    COMMIT = "commit"  # journal, then cont on the destination
    RELEASE_SOURCE = "release-source"  # quit the source: the destination owns the guest
    FINISHED_AT_SOURCE = "finished-at-source"
    FINISHED_AT_DESTINATION = "finished-at-destination"
    GUEST_GONE = "guest-gone"  # no QEMU holds it any more
    SPLIT_BRAIN = "split-brain"  # two run: stop the one that the journal does not name, and call a person
    PARK = "park"  # nothing can be done that is surely right


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do and why, in words for the journal and for the user."""

    action: Action
    reason: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What the journal and this controller know beside the two QEMUs' own states.

    Attributes:
        may_have_run: ``cont`` may have been sent to the destination (written before it is sent).
        never_ran: Proof to the contrary: this controller, connected all the time, never sent it, or QEMU refused it.
        source_completed: The source has said ``completed``: it has not run on, whatever became of it since.
        was_running: The guest ran when the migration began; one that was paused is not started by us.
        stopped_by_us: We have stopped the guest so that its memory can travel, or may have (written before ``stop`` is sent):
            on the way back it is let run again, if it ran.
        patience: Waiting longer is still reasonable; when False, a stuck state is acted upon.
        ran: The destination has run the guest: QEMU has acknowledged the ``cont``.
        yanked: A stuck source was yanked already, and it did not help.
        split_brain: Both copies were seen to run; one was stopped then.
        told: A person has said which copy is to be the guest, where nothing can prove it.
    """

    may_have_run: bool = False
    never_ran: bool = False
    source_completed: bool = False
    was_running: bool = True
    stopped_by_us: bool = False
    patience: bool = True
    ran: bool = False
    yanked: bool = False
    split_brain: bool = False
    told: Literal["source", "destination"] | None = None

    @property
    def surely_never_ran(self) -> bool:
        """The destination has not executed one instruction of the guest."""
        return self.never_ran or not self.may_have_run


S, D, A = Source, Destination, Action


def classify_source(*, alive: bool | None, run_state: str | None, status: str | None) -> Source:
    """Turn what was observed of the source into a `Source`.

    Args:
        alive: True/False with proof, None when the host could not be asked.
        run_state: ``query-status`` status, None when the monitor did not answer.
        status: ``query-migrate`` status, None when the monitor did not answer.
    """
    if alive is False:
        return S.DEAD
    if run_state is None or status is None:
        return S.HANGS if alive else S.UNKNOWN
    if status == "completed":
        # `cont` after `completed` leaves the status as it is: the run state tells.
        return S.RUNS if run_state in states.RUNNING_STATES else S.COMPLETED
    if status == "pre-switchover":
        return S.HOLDS
    if status in states.POSTCOPY:
        return S.POSTCOPY
    if status in states.SWITCHING or run_state == "finish-migrate":
        # On 7.2 the status stays `active` while the last of it travels, and a migration that failed then leaves the
        # guest stopped for a moment before QEMU runs it on: the run state tells.
        return S.SWITCHES
    if states.under_way(status):
        return S.SWITCHES if run_state == "postmigrate" else S.COPIES
    if run_state in states.RUNNING_STATES:
        return S.RUNS
    # A migration that failed leaves a guest that was stopped before it in `postmigrate` on 7.2, in `paused` later.
    return S.STOPPED if run_state in {"paused", "postmigrate"} else S.HALTED


def classify_destination(*, alive: bool | None, run_state: str | None, status: str | None) -> Destination:
    """Turn what was observed of the destination into a `Destination`; arguments as in `classify_source`."""
    if alive is False:
        return D.ABSENT
    if run_state is None or status is None:
        return D.HANGS if alive else D.UNKNOWN
    if status in states.POSTCOPY:
        return D.POSTCOPY
    if run_state in states.RUNNING_STATES:
        return D.RUNS
    if run_state == "inmigrate" or states.under_way(status):
        return D.INCOMING
    if run_state in {"paused", "prelaunch"} and status == "completed":
        return D.LOADED
    return D.HALTED if status == "completed" else D.INCOMING


def proves_never_ran(source: Source, status: str | None) -> bool:
    """Tell whether what the source says proves that the destination has not run the guest.

    ``cont`` is sent only after the source has said ``completed``, which it says for ever after. One that runs, copies,
    switches or is paused and has another status has never said it. That counts for the migration in question alone: not where
    another controller has held the guest since.

    Args:
        source: What it is.
        status: Its ``query-migrate`` status.
    """
    return status not in {None, "completed"} and source in {S.RUNS, S.STOPPED, S.COPIES, S.HOLDS, S.SWITCHES}


def decide(source: Source, destination: Destination, facts: Facts, goal: Goal) -> Decision:
    """Return the next action for a pair of observed states.

    Every cell of the table is listed in ``docs/handover.md``, made from this function.
    """
    decision = _decide(source, destination, facts, goal)
    if decision.action is A.PARK and facts.told is not None:
        return _as_told(source, destination, facts) or decision
    return decision


def _decide(source: Source, destination: Destination, facts: Facts, goal: Goal) -> Decision:
    if source is S.POSTCOPY or destination is D.POSTCOPY:
        return _postcopy(facts)
    if facts.split_brain and not (destination is D.RUNS and source in {S.RUNS, S.COPIES}):
        return Decision(A.PARK, "both copies have run: a person must say which one is the guest")
    if destination is D.RUNS:
        return _destination_runs(source)
    match source:
        case S.RUNS:
            return _source_owns(destination, facts, "the source runs the guest; what the destination holds is stale")
        case S.STOPPED if facts.stopped_by_us and facts.was_running:
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


def _destination_runs(source: Source) -> Decision:
    match source:
        case S.RUNS | S.COPIES:
            return Decision(A.SPLIT_BRAIN, "both copies run: the order was broken from outside")
        case S.DEAD:
            return Decision(A.FINISHED_AT_DESTINATION, "the destination runs the guest and the source is gone")
        case S.UNKNOWN:
            return Decision(A.PARK, "the destination runs the guest, but nobody can say what the source does")
        case S.HOLDS | S.SWITCHES | S.HANGS | S.POSTCOPY:
            # Cancel or yank would start the source: only its end is safe.
            return Decision(A.RELEASE_SOURCE, "the destination runs the guest; the source must not be woken")
        case S.COMPLETED | S.STOPPED | S.HALTED:
            return Decision(A.RELEASE_SOURCE, "the destination runs the guest; the source is stopped for good")


def _postcopy(facts: Facts) -> Decision:
    """The guest's memory is on both sides: nothing may be cancelled, resumed, killed or released."""
    why = "the guest's memory is on both hosts: the migration must end by itself or be recovered"
    return Decision(A.WAIT if facts.patience else A.PARK, why)


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
        D.POSTCOPY,
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
