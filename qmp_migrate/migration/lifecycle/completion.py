"""How a migration that did not simply go through ends: with one proven owner, or parked with an account of what is known.

Used by the engine after any failure, and by recovery. All decisions are `decision.decide`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Final

import structlog

from qmp_migrate.errors import (
    Fenced,
    MigrationCancelled,
    MigrationError,
    MigrationFailed,
    NotConverging,
    OutcomeUnknown,
    QmpMigrateError,
    SplitBrain,
)
from qmp_migrate.migration.endpoint import cleanup
from qmp_migrate.migration.endpoint.endpoint import Side
from qmp_migrate.migration.lifecycle import delegation, disk_phase, reconciliation, source_cleanup
from qmp_migrate.migration.lifecycle.context import Course
from qmp_migrate.migration.lifecycle.hooks import Point
from qmp_migrate.migration.lifecycle.reconciliation import Settled
from qmp_migrate.migration.model.phases import AFTER_COMMIT, Phase
from qmp_migrate.migration.model.request import Outcome, Owner
from qmp_migrate.migration.ownership import decision, manual_resolution
from qmp_migrate.migration.ownership.decision import Action, Destination, Goal, Source
from qmp_migrate.migration.ownership.manual_resolution import Names
from qmp_migrate.migration.precopy import failures
from qmp_migrate.migration.transport import setup
from qmp_migrate.qemu import migration as qmp

RELEASE_S: Final = 10.0
RELEASE_PAUSE_S: Final = 1.0
CONNECT_AGAIN_S: Final = 5.0
"""How long cleaning up after the hand-over is tried, with what pause, and how long connecting again may take each time."""

AFTER_WATCHDOG_S: Final = 2.0
"""What the watchdog has given up was waited for already."""

log = structlog.get_logger(__name__)


async def back(
    course: Course, error: QmpMigrateError, *, goal: Goal | None = None, settled: Settled | None = None
) -> QmpMigrateError | None:
    """Bring the guest to one proven owner after something failed, or a cancel was asked for.

    Args:
        course: The migration.
        error: What happened.
        goal: Where to, as long as there is a choice; default: back, unless ``cont`` was sent and not refused, or post-copy
            was asked for.
        settled: Where it has ended already.

    Returns:
        What is to be told, with where the guest is now; None: it runs at the destination after all.

    Raises:
        Fenced: Another controller has the guest.
    """
    log.info("settling", because=str(error), phase=course.chronicle.phase)
    _take_timeline(course)
    await course.finish_arming()
    stderr = await course.destination.stderr_tail() if course.destination.process else ""
    if course.postcopy:
        if goal is Goal.BACK:
            course.chronicle.warn("there is no way back: post-copy has begun, and the guest's memory is on both hosts")
        goal = Goal.FORWARD
    elif goal is None:
        goal = Goal.FORWARD if course.committed else Goal.BACK
    if goal is Goal.BACK:
        await disk_phase.free_source(course)
    course.chronicle.lenient = True  # whatever the journal can take, the guest must be brought to a proven state
    if goal is Goal.BACK:
        await course.chronicle.turn_back()
    waited = error.code in {"switchover_stuck", "stalled"}
    if settled is None:
        settled = await reconciliation.settle(course, goal=goal, patience_s=AFTER_WATCHDOG_S if waited else None)
    match settled.action:
        case Action.FINISHED_AT_SOURCE:
            return await _at_source(course, error, settled, stderr)
        case Action.GUEST_GONE:
            return await _nowhere(course, error)
        case Action.COMMIT | Action.RELEASE_SOURCE | Action.FINISHED_AT_DESTINATION:
            return await _at_destination(course, error, settled)
        case _:
            return await _parked(course, error, settled)


async def _at_source(course: Course, error: QmpMigrateError, settled: Settled, stderr: str) -> QmpMigrateError:
    chronicle, source = course.chronicle, course.source
    chronicle.result.warnings += await setup.unwire_source(source, course.wires)
    chronicle.result.warnings += await setup.remove_keys(course.wires)
    chronicle.result.warnings += await cleanup.discard_destination(course.destination)
    never_ran = course.facts(patience=False).surely_never_ran or (
        not course.held_by_others
        and decision.proves_never_ran(settled.source_state, settled.source.status, postcopy=course.postcopy)
    )
    chronicle.result.warnings += await disk_phase.take_back(course, never_ran=never_ran)
    await _withdraw(course)
    running = settled.source_state is Source.RUNS
    state = "runs on" if running else f"is {settled.source.run_state}"
    final = _retold(
        error,
        f"{error.message}; the guest {state} at {source.name}",
        safe=running or not course.running,
        stderr=getattr(error, "stderr", "") or stderr,
    )
    await course.hooks.run_after(Point.ROLLED_BACK, course)
    outcome: Outcome = "cancelled" if isinstance(error, MigrationCancelled) else "rolled_back"
    chronicle.event("rolled-back", owner="source", reason=error.message)
    await chronicle.end(Phase.ROLLED_BACK, outcome, "source", final)
    return final


async def _nowhere(course: Course, error: QmpMigrateError) -> QmpMigrateError:
    if course.held_by_others:
        moved = _superseded(course)
        await course.chronicle.end(Phase.ROLLED_BACK, "failed", "unknown", moved)
        return moved
    lost = await _lost(course) if course.postcopy else await _ended_here(course, error)
    await _withdraw(course)
    course.chronicle.result.warnings += await setup.remove_keys(course.wires)
    course.chronicle.result.warnings += await cleanup.discard_destination(course.destination)
    never_ran = course.facts(patience=False).surely_never_ran
    course.chronicle.result.warnings += await disk_phase.take_back(course, never_ran=never_ran)
    await course.chronicle.end(Phase.ROLLED_BACK, "failed", "none", lost)
    return lost


async def _ended_here(course: Course, error: QmpMigrateError) -> QmpMigrateError:
    """Say why the source's QEMU has ended: its own word, whatever of its end was noticed first."""
    source = course.source
    shutdown = await source.last_words()
    if shutdown is not None:
        return failures.ended(shutdown, source.name)
    return MigrationFailed(
        f"{error.message}; the source QEMU has ended: the guest runs nowhere",
        safe_at_source=False,
        code="guest_lost",
        stderr=await source.stderr_tail(),
        hint=f"see {source.directory}/qemu.log on {source.name}, then start the guest again",
        host=source.name,
    )


async def _lost(course: Course) -> MigrationFailed:
    shutdown = await course.destination.last_words()
    if shutdown is not None and shutdown.data.get("guest"):
        return failures.ended(shutdown, course.destination.name)
    host = course.lost_with
    which = f"the QEMU on {host} has ended in post-copy" if host else "both QEMUs have ended in post-copy"
    return MigrationFailed(
        f"{which}, and with it memory of the guest that existed nowhere else: the guest is lost. It runs nowhere now",
        safe_at_source=False,
        code="guest_lost",
        stderr=await course.destination.stderr_tail(),
        hint="start it again from its disks: qmp-migrate vm start. Why that QEMU ended: the kernel's log on "
        f"{host or 'both hosts'} may say it",
        host=host or None,
    )


async def _at_destination(course: Course, error: QmpMigrateError, settled: Settled) -> QmpMigrateError | None:
    """It had been handed over, or only the destination still holds it: finish there."""
    chronicle = course.chronicle
    chronicle.warn(f"went on after: {error.message}")
    if settled.action is Action.COMMIT and course.running:
        try:
            await course.still_ours()
            if not course.cont_sent:
                await chronicle.journal.arm_commit(course.request.id)
            course.armed = course.cont_sent = True
            course.cont_refused = False
            await (await course.destination.attach()).execute("cont")
        except Fenced:
            raise
        except QmpMigrateError as failure:
            return await _parked(course, failure, settled)
    if chronicle.phase not in AFTER_COMMIT:
        if chronicle.phase in {Phase.COPYING, Phase.PRE_SWITCHOVER, Phase.POSTCOPY}:
            chronicle.pass_through(Phase.SWITCHING)
        elif chronicle.phase not in {Phase.SWITCHING, Phase.PARKED}:
            await chronicle.enter(Phase.PARKED)  # the graph's only way forward from a roll-back
        await chronicle.enter(Phase.COMMITTED)
    if chronicle.phase is Phase.COMMITTED:
        await chronicle.enter(Phase.RUNNING_AT_DESTINATION)
    with chronicle.tolerate("the guest's network addresses were not announced again"):
        await qmp.announce(await course.destination.attach(), *course.request.announce)
    return await finish(course)


async def finish(course: Course) -> QmpMigrateError | None:
    """The guest is the destination's: take the numbers, end the source, clean up, and say so.

    Returns:
        None; or what is to be told where the destination's QEMU has ended meanwhile.
    """
    chronicle, destination = course.chronicle, course.destination
    _take_timeline(course)
    await after_commit(course)
    if not course.source.fenced and await _alive(course.source):
        with chronicle.tolerate("the source's last numbers are missing"):
            await source_cleanup.take_numbers(
                course.source, course.copying, chronicle.result, course.profile, running=course.running
            )
            if chronicle.result.channels != course.profile.channels:
                chronicle.warn("QEMU's figures show no memory on the channels that were set up")
    problems = await _released(course)
    await _withdraw(course)
    if not problems and chronicle.phase is not Phase.SOURCE_RELEASED:
        await chronicle.enter(Phase.SOURCE_RELEASED)
    if (await destination.observe()).alive is False:
        ended = await _ended_there(course)
        await chronicle.end(Phase.DONE, "failed", "unknown" if course.held_by_others else "none", ended)
        return ended
    if problems:
        for problem in problems:
            chronicle.warn(problem)
        await _completed_but(course)
        return None
    await course.hooks.run_after(Point.DONE, course)
    await chronicle.end(Phase.DONE, "completed", "destination", None)
    return None


async def _withdraw(course: Course) -> None:
    if course.mandated or not course.witnessed:
        await delegation.withdraw(course)


async def after_commit(course: Course) -> None:
    """Run the hooks for a guest that runs at its destination now, once."""
    if await course.hooks.run_after(Point.AFTER_COMMIT, course):  # they may have swallowed the first announcement
        with course.chronicle.tolerate("the guest's network addresses were not announced again"):
            await qmp.announce(await course.destination.attach(), *course.request.announce)


async def _ended_there(course: Course) -> MigrationFailed:
    if course.held_by_others:
        return _superseded(course)
    host = course.destination.name
    shutdown = await course.destination.last_words()
    by_guest = shutdown is not None and bool(shutdown.data.get("guest"))
    since = "it has ended by itself since" if by_guest else "its QEMU there has ended since"
    return MigrationFailed(
        f"the guest was handed over and ran at {host}; {since}: it runs nowhere",
        safe_at_source=False,
        code="guest_shutdown" if by_guest else "destination_ended",
        stderr=await course.destination.stderr_tail(),
        hint="the source's memory was older than the disks and is gone: start the guest again from its disks",
        host=host,
    )


async def _released(course: Course) -> list[str]:
    """Release the source; where a connection is away, try again for some seconds. Return what is left to be done."""
    deadline = time.monotonic() + RELEASE_S
    while True:
        problems = await source_cleanup.release_source(
            course.source, course.destination, course.wires, course.chronicle
        )
        problems = problems or await disk_phase.conclude(course)
        if not problems or time.monotonic() > deadline or (await course.destination.observe()).alive is False:
            return problems
        await asyncio.sleep(RELEASE_PAUSE_S)
        for side in (course.source, course.destination):
            if not side.fenced:
                with contextlib.suppress(QmpMigrateError, TimeoutError):
                    async with asyncio.timeout(CONNECT_AGAIN_S):
                        await side.host.connect()
        with contextlib.suppress(MigrationFailed):
            await course.still_ours()


def _superseded(course: Course) -> MigrationFailed:
    return MigrationFailed(
        "nothing of this migration is left; another controller has had the guest since",
        safe_at_source=False,
        code="superseded",
        hint=f"where it is now: qmp-migrate vm show {course.request.vm}",
    )


async def _completed_but(course: Course) -> None:
    """The guest is the destination's, proven; what is left to be done elsewhere is done by `recover`."""
    course.chronicle.warn(
        f"something is left to be cleaned up; when both hosts answer: qmp-migrate recover {course.request.id}"
    )
    await course.chronicle.end(Phase.PARKED, "completed", "destination", None)


async def _alive(side: Side) -> bool:
    return (await side.observe()).run_state is not None


def _take_timeline(course: Course) -> None:
    """Put into the result what was seen while copying."""
    copying, result = course.copying, course.chronicle.result
    if copying is None:
        return
    result.blackout_ms = copying.timeline.blackout_ms
    result.steps = list(copying.steps)
    if copying.timeline.resets:
        course.chronicle.warn("the guest reset itself during the migration")
    if copying.timeline.stop_missed:
        course.chronicle.warn("the blackout was not measured: the guest had stopped before this controller listened")


async def _parked(course: Course, error: QmpMigrateError, settled: Settled) -> QmpMigrateError | None:
    """Nothing that is surely right is left to do. Say exactly what is known, and what would settle it."""
    source, destination, request = course.source, course.destination, course.request
    facts = course.facts(patience=False)
    if facts.source_completed and settled.destination_state is Destination.RUNS and not course.split_brain:
        await _completed_but(course)  # the source has stopped for good; it only cannot be ended now
        return None
    alone = settled.destination_state is Destination.ABSENT and facts.surely_never_ran
    at_source = settled.source_state is Source.RUNS or (
        alone and settled.source_state not in {Source.DEAD, Source.UNKNOWN}
    )
    at_source = at_source and not course.split_brain
    names = Names(request.id, request.vm, source.name, destination.name)
    ways = manual_resolution.ways_out(settled.source_state, settled.destination_state, facts, names)
    if at_source and settled.source_state is Source.RUNS and settled.destination_state is Destination.UNKNOWN:
        # Safe: it runs at the source, and what may be left over there waits paused, never to be continued.
        final: QmpMigrateError = _retold(
            error,
            f"{error.message}; the guest runs on at {source.name}. {destination.name} cannot be asked: "
            f"its QEMU for {request.vm} may be left there, paused, and must be ended",
            safe=True,
        )
        final.hint = f"when {destination.name} answers again: qmp-migrate recover {request.id}"
        await course.chronicle.end(Phase.PARKED, "rolled_back", "source", final)
        return final
    known = f"source {source.name}: {settled.source}; destination {destination.name}: {settled.destination}"
    kind = SplitBrain if course.split_brain else OutcomeUnknown
    whose = f"the guest is the source's, on {source.name}, but" if at_source else "who owns the guest cannot be proven:"
    final = kind(
        f"{error.message}; {whose} {settled.reason}. Known: {known}",
        hint="do nothing by hand that starts or continues a copy. What settles it:\n  " + "\n  ".join(ways),
    )
    owner: Owner = "source" if at_source else "unknown"
    await course.chronicle.end(Phase.PARKED, "unknown", owner, final)
    return final


def _retold(error: QmpMigrateError, message: str, *, safe: bool, stderr: str = "") -> QmpMigrateError:
    """Return the error with a message that says where the guest is now, as the kind that has the right exit code."""
    if isinstance(error, MigrationCancelled | NotConverging) and safe:
        return type(error)(message, hint=error.hint, host=error.host)
    code = error.code if not isinstance(error, MigrationError) or error.code != "cancelled" else None
    return MigrationFailed(message, safe_at_source=safe, code=code, stderr=stderr, hint=error.hint, host=error.host)


def gave_way(course: Course, error: Fenced) -> QmpMigrateError:
    """Another controller has the guest: do nothing more, write nothing more, and say so."""
    result = course.chronicle.result
    result.outcome, result.owner = "unknown", "unknown"
    error.hint = (
        "this controller does nothing more. Another one has the guest, or the hosts' agents have handed it over: "
        f"qmp-migrate status {course.request.id}, then qmp-migrate recover {course.request.id}"
    )
    result.error = error.to_dict()
    return error
