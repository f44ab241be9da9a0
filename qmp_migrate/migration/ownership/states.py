"""What is known of the two QEMUs of a migration, in words: what was seen, sorted, and what may be done about it.

The words of `decision.decide`. Sorting is pure, like deciding: what a QEMU said goes in, one word comes out.
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
    POSTCOPY = "postcopy"  # stopped for good; the destination still needs pages from here (DESIGN rule 6)
    INTERRUPTED = "interrupted"  # the same, and the connection is lost
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
    WAITING = "waiting"  # post-copy: has the guest's devices, not yet all of its memory; paused, waits for `cont`
    POSTCOPY = "postcopy"  # the same, and it has run: still needs pages from the source
    INTERRUPTED = (
        "interrupted"  # the same, and the connection is lost; it may say that it runs while it waits for a page
    )
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
    CONTINUE_DESTINATION = "continue-destination"  # the same in post-copy, where memory still comes afterwards
    PAUSE_POSTCOPY = "pause-postcopy"  # migrate-pause, out of band: a connection that stands still is given up
    RECOVER_POSTCOPY = "recover-postcopy"  # migrate-recover there, migrate with resume here: over a new connection
    RELEASE_SOURCE = "release-source"  # quit the source: the destination owns the guest
    END_SOURCE = "end-source"  # kill what is left of a guest that post-copy has lost; with proof
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
        postcopy: ``migrate-start-postcopy`` may have been sent (written before it is sent) and was not refused: from then on
            there is only one direction.
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
    postcopy: bool = False
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
        return S.INTERRUPTED if status == states.INTERRUPTED else S.POSTCOPY
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
    if run_state == "inmigrate":
        return D.INCOMING  # in post-copy, too: its devices are not there yet
    if status == states.INTERRUPTED:
        return D.INTERRUPTED
    if status in states.POSTCOPY:
        return D.WAITING if run_state in {"paused", "prelaunch"} else D.POSTCOPY
    if run_state in states.RUNNING_STATES:
        return D.RUNS
    if states.under_way(status):
        return D.INCOMING
    if run_state in {"paused", "prelaunch"} and status == "completed":
        return D.LOADED
    return D.HALTED if status == "completed" else D.INCOMING
