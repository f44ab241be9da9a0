"""Who has the guest, a QEMU or a state file, and what is to be done next. Pure: seen in, action out.

A save hands the guest over to a file; the hand-over is the renaming of the proven file to its final name. Before it the QEMU
goes on, after it the QEMU must never run again. A restore hands it back; there the hand-over is the renaming of the file to
its used name, before ``cont`` is sent. Whoever comes later, a controller that saw an error or `recover`, looks at names and
QEMU and asks here: the guest runs on, or the file is complete; never neither, and never both.
"""

from __future__ import annotations

from enum import StrEnum

from qmp_migrate.qemu import states


class Qemu(StrEnum):
    """The QEMU of the guest, as one look gave it."""

    GONE = "gone"
    RUNS = "runs"
    STANDS = "stands"
    """It is alive and not running: paused, or stopped for the save."""
    WRITES = "writes"
    """A migration is under way: the state is being written."""
    WAITS = "waits"
    """It waits for a state, or is reading it."""
    UNKNOWN = "unknown"


class Name(StrEnum):
    """What is found under one name of a file."""

    OURS = "ours"
    OTHER = "other"
    ABSENT = "absent"
    UNKNOWN = "unknown"


class Act(StrEnum):
    """What to do next. After each act one looks again; the last four are ends."""

    CANCEL = "cancel"
    CONTINUE = "continue"
    QUIT = "quit"
    KILL = "kill"
    RENAME = "rename"
    MARK_USED = "mark-used"
    MARK_UNUSED = "mark-unused"
    VOID = "void"
    AT_QEMU = "at-qemu"
    IN_FILE = "in-file"
    GUEST_GONE = "guest-gone"
    PARK = "park"


ENDS = frozenset({Act.AT_QEMU, Act.IN_FILE, Act.GUEST_GONE, Act.PARK})


def classify(*, alive: bool | None, run_state: str | None, status: str | None) -> Qemu:
    """Turn what was observed of a QEMU into a `Qemu`; arguments as in `decision.classify_source`."""
    if alive is False:
        return Qemu.GONE
    if run_state is None or status is None:
        return Qemu.UNKNOWN
    if run_state == "inmigrate":
        return Qemu.WAITS
    if states.under_way(status) or run_state == "finish-migrate":
        return Qemu.WRITES
    return Qemu.RUNS if run_state in states.RUNNING_STATES else Qemu.STANDS


def after_save(
    qemu: Qemu, final: Name, part: Name, *, sealed: bool, renaming: bool, renamed: bool, was_running: bool
) -> tuple[Act, str]:
    """Return what is next for a save that did not simply go through, and why.

    Args:
        qemu: The guest's QEMU.
        final: What is under the file's final name; ``ours``: the proven file, on the disk.
        part: What is under its working name.
        sealed: The journal says that the file is complete and on the disk, and that the guest was not continued since.
        renaming: The journal says that it may have been renamed.
        renamed: The journal says that it was.
        was_running: The guest ran when the save began.
    """
    if Name.UNKNOWN in {final, part}:
        return Act.PARK, "the state file cannot be looked at"
    if final is Name.OURS:
        return {
            Qemu.GONE: (Act.IN_FILE, "the file is complete and the QEMU has ended"),
            Qemu.RUNS: (Act.VOID, "the file is complete, but somebody has continued the guest: the file is stale"),
            Qemu.STANDS: (Act.QUIT, "the file is complete: the QEMU must not go on"),
            Qemu.WAITS: (Act.PARK, "another QEMU of that name waits for a state there"),
            Qemu.WRITES: (Act.PARK, "the file is complete, yet the QEMU writes a state"),
            Qemu.UNKNOWN: (Act.PARK, "the file is complete, and nobody can say what the QEMU does"),
        }[qemu]
    if (renamed or renaming) and part is Name.ABSENT:
        # It had its final name, or may have had: somebody may have restored it elsewhere since.
        if qemu is Qemu.GONE and renamed:
            return Act.IN_FILE, "the file was complete, and somebody has moved, restored or removed it since"
        if qemu is Qemu.RUNS and not renamed:
            return Act.AT_QEMU, "the guest runs here"
        return Act.PARK, "the file is not where it was put: it may have been restored elsewhere"
    match qemu:
        case Qemu.WRITES:
            return Act.CANCEL, "nothing has been handed over: the guest goes on"
        case Qemu.STANDS if was_running:
            return Act.CONTINUE, "nothing has been handed over: the guest goes on"
        case Qemu.STANDS | Qemu.RUNS:
            return Act.AT_QEMU, "nothing has been handed over: the guest is where it was"
        case Qemu.GONE if sealed and part is Name.OURS:
            return Act.RENAME, "the QEMU has ended, and the file was complete already"
        case Qemu.GONE:
            return Act.GUEST_GONE, "the QEMU has ended before its state was complete"
        case _:
            return Act.PARK, "nobody can say what the QEMU does"


def after_restore(qemu: Qemu, final: Name, used: Name, *, continuing: bool) -> tuple[Act, str]:
    """Return what is next for a restore that did not simply go through, and why.

    Args:
        qemu: The QEMU that was started for it.
        final: What is under the name that was given.
        used: What is under the name that says that the file was used.
        continuing: The journal says that ``cont`` may have been sent.
    """
    if Name.UNKNOWN in {final, used}:
        return Act.PARK, "the state file cannot be looked at"
    if qemu is Qemu.UNKNOWN:
        return Act.PARK, "nobody can say what the QEMU does"
    if final is Name.OURS:
        if qemu is Qemu.RUNS:
            return Act.MARK_USED, "the guest runs already: its file must not be used again"
        return (
            (Act.IN_FILE, "the file was not used")
            if qemu is Qemu.GONE
            else (Act.KILL, "nothing was handed over: the file has the guest")
        )
    match qemu:
        case Qemu.RUNS | Qemu.STANDS:
            return Act.AT_QEMU, "the file is marked as used: the QEMU has the guest"
        case Qemu.WAITS | Qemu.WRITES:
            return Act.KILL, "the QEMU has not read the state"
        case _ if continuing:
            return Act.GUEST_GONE, "the guest ran and has ended since"
        case _ if used is Name.OURS:
            return Act.MARK_UNUSED, "the guest has not run since: its file may be used"
        case _:
            return Act.PARK, "the file is not where it was"
