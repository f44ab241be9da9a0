"""Settle a migration whose controller is gone: read the journal, ask both hosts and both QEMUs, decide, act, prove.

`recover` forgets what the dead controller had in mind and trusts only what can be asked now, together with what the journal
proves (DESIGN §5). A copy that still runs in QEMU is adopted and driven on. It ends with one owner, or parked with an account
of what is known and the commands that would settle it.

May be called again and again, and may itself die at any moment: it takes the guest's locks first, raises the epoch (so
that whoever held it before can do nothing more), and writes each act down before it is done.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from qmp_migrate.errors import FileFailed, MigrationFailed, QmpMigrateError, UsageError
from qmp_migrate.hosts.process import ProcessId, command_line, identify
from qmp_migrate.migration.endpoint import cleanup, guest_locks
from qmp_migrate.migration.endpoint.endpoint import Side
from qmp_migrate.migration.endpoint.launch import built_as, launch_over
from qmp_migrate.migration.journal.store import Entry, Journal, MigrationRecord, controller_lives
from qmp_migrate.migration.lifecycle import completion, delegation, disk_phase, reconciliation
from qmp_migrate.migration.lifecycle.context import Course
from qmp_migrate.migration.lifecycle.engine import Engine
from qmp_migrate.migration.lifecycle.hooks import Hooks
from qmp_migrate.migration.lifecycle.recorder import Chronicle
from qmp_migrate.migration.model.phases import AFTER_COMMIT, ENDS, Phase
from qmp_migrate.migration.model.reporter import Reporter
from qmp_migrate.migration.model.request import MigrationRequest, MigrationResult
from qmp_migrate.migration.ownership.decision import Destination, Goal, Source
from qmp_migrate.migration.transport import setup
from qmp_migrate.migration.transport.negotiation import Profile
from qmp_migrate.settings import Limits

LAUNCH_S: Final = 25.0
"""How long a launch that the dead controller had begun may still be under way on the host."""

BEFORE_LAUNCH: Final = frozenset({Phase.REQUESTED, Phase.PREFLIGHT})
GOING_BACK: Final = frozenset({Phase.ROLLING_BACK})
ADOPTED: Final = frozenset({Phase.COPYING, Phase.POSTCOPY, Phase.PRE_SWITCHOVER, Phase.SWITCHING})


@dataclass(frozen=True, slots=True)
class Wish:
    """What a person says beside "settle it".

    Attributes:
        back: Rather back to the source, as long as there is a choice.
        fenced: Hosts that are proven to be switched off: nothing runs there any more.
        owner: Which copy is to be the guest, where nothing can prove it.
        limits: See `MigrationRequest.limits`.
    """

    back: bool = False
    fenced: frozenset[str] = frozenset()
    owner: Literal["source", "destination"] | None = None
    limits: Limits = field(default_factory=Limits)


async def recover(
    record: MigrationRecord,
    source: Side,
    destination: Side,
    *,
    journal: Journal,
    reporter: Reporter,
    wish: Wish,
    cancel: asyncio.Event,
    hooks: Hooks | None = None,
) -> tuple[MigrationResult, QmpMigrateError | None]:
    """Settle one migration.

    Args:
        record: As the journal has it; its controller is gone.
        source: Where it was; nothing is asked yet.
        destination: Where it was going.
        journal: The journal.
        reporter: Told of everything.
        wish: What a person says.
        cancel: Set it to cancel one that is driven on.
        hooks: The user's commands; those of points that were passed already are not run again.

    Returns:
        The result document, and what is to be told: None where the guest runs at the destination; a `MigrationFailed` or
        `MigrationCancelled` that says where it runs else; an `OutcomeUnknown` where it is parked.

    Raises:
        LockBusy: Another controller has the guest.
        HostUnreachable: None of the two hosts answers.
        UsageError: A host that somebody vouches is switched off answers.
        JournalError: The journal cannot be written; nothing was done.
    """
    if record.phase in BEFORE_LAUNCH and controller_lives(record.controller) is False:
        course = _course(record, [], source, destination, journal, reporter, wish)
        gone = _gone(record, [])
        await course.chronicle.end(Phase.ROLLED_BACK, "rolled_back", "source", gone)
        return course.chronicle.result, gone
    async with contextlib.AsyncExitStack() as stack:
        lock = await guest_locks.take(source, destination, f"migration {record.id}", partial=True)
        stack.push_async_callback(lock.release)
        # Only now: while its locks were held by another, that one may have gone on.
        record = await journal.get(record.id)
        entries = await journal.entries(record.id)
        course = _course(record, entries, source, destination, journal, reporter, wish)
        gone = _gone(record, entries)
        course.hooks = hooks or Hooks()
        course.hooks.remember(entries)
        await stack.enter_async_context(course.holding(lock))
        if record.phase in ENDS:
            raise UsageError(
                f"migration {record.id} has ended meanwhile: {record.outcome}", hint="see: qmp-migrate history"
            )
        for side in (source, destination):
            if side.fenced and side.name not in lock.missing:
                raise UsageError(
                    f"{side.name} answers: it is not switched off", hint="leave --fenced out", host=side.name
                )
        for host in sorted(wish.fenced):
            course.chronicle.warn(f"{host} is taken for switched off: somebody has vouched for it")
        if wish.owner is not None:
            course.chronicle.warn(f"a person has decided for the {wish.owner}, where nothing could prove it")
        if lock.since > record.epoch:
            course.armed = course.held_by_others = True  # who knows what they sent
        await journal.claim(record.id, lock.epoch, may_have_run=course.armed)
        if record.phase in BEFORE_LAUNCH:
            await course.chronicle.end(Phase.ROLLED_BACK, "rolled_back", "source", gone)
            return course.chronicle.result, gone
        await _find_processes(course, record, entries)
        await _heed_agents(course)
        error = await _settle(course, record, entries, gone, wish, cancel)
    return course.chronicle.result, error


async def _heed_agents(course: Course) -> None:
    """Take note of what the hosts' agents have done without a controller (ADR 28)."""
    found = await delegation.records(course)
    if found.released:
        course.agents_released = True
        course.chronicle.event("step", reason="the source's agent had proven it completed, and ended it")
    if found.continued or (found.released and not found.certain):
        course.armed = True
        await course.chronicle.journal.arm_commit(course.request.id)
    if found.ran:
        course.completed = True
        course.chronicle.event("step", reason="the destination's agent had let the guest run there")


def _gone(record: MigrationRecord, entries: Sequence[Entry]) -> MigrationFailed:
    reached = [entry.act for entry in entries if entry.kind == "phase" and entry.act not in {"rolling-back", "parked"}]
    return MigrationFailed(
        f"the controller of this migration is gone (it was in phase {(reached or [record.phase.value])[-1]})",
        safe_at_source=True,
        code="controller_gone",
        hint="start it again when you like: qmp-migrate migrate",
    )


async def _settle(
    course: Course,
    record: MigrationRecord,
    entries: Sequence[Entry],
    gone: MigrationFailed,
    wish: Wish,
    cancel: asyncio.Event,
) -> QmpMigrateError | None:
    wired = _last(entries, "intent", "wire")
    course.wires = await setup.find(
        course.source,
        course.destination,
        record.id,
        encrypt=course.request.encrypt and wired is not None,
        dirty_limit=course.profile.dirty_ring > 0,
        before=dict(wired.get("source_parameters", {})) if wired else {},
        destination_before=dict(wired.get("destination_parameters", {})) if wired else {},
    )
    disk_phase.found(course, entries)
    known = course.wires.source
    if course.held_by_others and known is not None and known.capabilities.get("postcopy-ram"):
        # Whoever had the guest meanwhile may have asked for it; the next recovery must know that, too.
        await course.chronicle.journal.intent(
            record.id, "start-postcopy", reason="another controller may have begun it"
        )
        course.postcopy = True
    course.wires.port = int((_last(entries, "intent", "migrate") or {}).get("port", 0))
    back = wish.back or record.cancel_requested or record.phase in GOING_BACK
    if (not back or course.postcopy) and record.phase in ADOPTED and not course.split_brain:
        _, _, source_state, destination_state = await reconciliation.look(course.source, course.destination)
        going = source_state in {Source.COPIES, Source.HOLDS, Source.SWITCHES}
        if going and destination_state is Destination.INCOMING:
            course.chronicle.event("step", reason="the copy that still runs is driven on by another controller")
            engine = Engine(course=course, argv=(), cancel=cancel)
            await engine.adopt()
            return engine.error
    return await completion.back(course, gone, goal=Goal.BACK if back else Goal.FORWARD)


def _course(
    record: MigrationRecord,
    entries: Sequence[Entry],
    source: Side,
    destination: Side,
    journal: Journal,
    reporter: Reporter,
    wish: Wish,
) -> Course:
    asked: dict[str, Any] = record.request
    request = MigrationRequest.again(
        asked,
        vm=record.vm,
        destination=record.destination,
        source=record.source,
        mode=record.mode,
        limits=wish.limits,
        id=record.id,
    )
    result = MigrationResult(record.id, record.vm, record.source, record.destination, record.mode)
    result.encrypted = bool((_last(entries, "result", "wire") or {}).get("encrypted", False))
    begun = _last(entries, "intent", "migrate") or {}
    source.fenced, destination.fenced = source.name in wish.fenced, destination.name in wish.fenced
    return Course(
        request=request,
        source=source,
        destination=destination,
        chronicle=Chronicle(
            request, journal, reporter, result, phase=record.phase, rev=record.rev, started_at=record.started_at
        ),
        running=bool(begun.get("running", asked.get("running", True))),
        profile=Profile.again((_last(entries, "intent", "wire") or {}).get("transport", {})),
        one_pass=bool(begun.get("one_pass", False)),
        postcopy=_may_be_in_postcopy(entries),
        continued=_last(entries, "intent", "continued") is not None,
        stopped_by_us=_last(entries, "intent", "stop-guest") is not None,
        witnessed=False,
        armed=record.may_have_run,
        completed=any(entry.kind == "phase" and entry.act in AFTER_COMMIT for entry in entries),
        split_brain=_last(entries, "intent", "split-brain") is not None,
        told=wish.owner,
    )


def _may_be_in_postcopy(entries: Sequence[Entry]) -> bool:
    """Tell whether ``migrate-start-postcopy`` may have been sent: written down before, and not taken back since.

    Nobody turns back once it was sent; who did, knew that it was not, or that QEMU has refused it.
    """
    words = [entry.act for entry in entries if entry.act in {"start-postcopy", "no-postcopy", "rolling-back"}]
    return bool(words) and words[-1] == "start-postcopy"


def _last(entries: Sequence[Entry], kind: str, act: str) -> dict[str, Any] | None:
    return next((entry.data for entry in reversed(entries) if (entry.kind, entry.act) == (kind, act)), None)


async def _find_processes(course: Course, record: MigrationRecord, entries: Sequence[Entry]) -> None:
    """Say which two processes are meant: those that the journal names, by pid, start time and boot."""
    words = record.request.get("source_process")
    course.source.process = ProcessId.of(words) if words else None
    launched = _last(entries, "result", "launch-destination")
    if launched is not None:
        course.destination.process = ProcessId.of(launched["process"])
        return
    intended = _last(entries, "intent", "launch-destination")
    if intended is None or course.destination.fenced:
        return
    # It died while it launched: whatever is there by now, or comes in the next seconds, is ours if it has our command line.
    side = course.destination
    try:
        await _find_launched(side, list(intended["argv"]))
    except QmpMigrateError as error:
        side.unidentified = f"what was being launched there cannot be asked for: {error}"


async def _find_launched(side: Side, argv: list[str]) -> None:
    if not await launch_over(side):
        return
    process = await identify(side.host, side.directory)
    if process is not None and built_as(await command_line(side.host, process), argv):
        side.process = process
    elif process is None and await _launched_there(side) == argv:
        await cleanup.remove_guest_directory(side)  # it was ours, and has ended


async def _launched_there(side: Side) -> object:
    """Return the command line that was launched last in a guest's directory; None where that cannot be told."""
    try:
        return json.loads(await side.host.read_file(f"{side.directory}/argv.json"))
    except (FileFailed, ValueError):
        return None
