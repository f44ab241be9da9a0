"""Back to one proven owner: observe both sides, ask `decision.decide`, do the one thing it says, and again.

Used for a cancel, for every failure after the destination was launched, and by recovery. It ends when a state is proven, or
parks with an account of what is known once patience is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, replace
from typing import Final

from qmp_migrate.errors import Fenced, JournalError, MigrationFailed, QmpMigrateError
from qmp_migrate.migration.endpoint.endpoint import LOOK_S, Observation, Side
from qmp_migrate.migration.lifecycle import postcopy
from qmp_migrate.migration.lifecycle.context import Course
from qmp_migrate.migration.ownership import decision as ownership_decision
from qmp_migrate.migration.ownership.decision import Action, Destination, Goal, Source
from qmp_migrate.migration.ownership.decision_postcopy import AT_DESTINATION, AT_SOURCE
from qmp_migrate.qemu import migration as qmp

PATIENCE_S: Final = 10.0
"""How long a state that may settle by itself is waited for, before it is acted upon."""

LIMIT_S: Final = 25.0
"""After this, what is not proven is parked."""

EFFECT_S: Final = LOOK_S + 2.0
"""So long, and more on a slow host, nothing is parked after the first act of its kind: a QEMU that it has freed answers when
it can."""

LOOK_AGAIN_S: Final = 0.1
POSTCOPY_LOOK_S: Final = 0.15
"""So much longer while memory comes in post-copy, which takes a while."""


@dataclass(frozen=True, slots=True)
class Settled:
    """Where it ended.

    Attributes:
        action: ``FINISHED_AT_SOURCE``, ``FINISHED_AT_DESTINATION``, ``COMMIT``, ``RELEASE_SOURCE`` (the caller goes
            forward), ``GUEST_GONE``, ``SPLIT_BRAIN`` or ``PARK``.
        source, destination: The last look at both.
        source_state: The source's, sorted.
        reason: In words.
    """

    action: Action
    source: Observation
    destination: Observation
    source_state: Source
    destination_state: Destination
    reason: str


async def look(source: Side, destination: Side) -> tuple[Observation, Observation, Source, Destination]:
    """Observe both sides at once and sort what is seen."""
    of_source, of_destination = await asyncio.gather(source.observe(), destination.observe())
    return (
        of_source,
        of_destination,
        ownership_decision.classify_source(
            alive=of_source.alive, run_state=of_source.run_state, status=of_source.status
        ),
        ownership_decision.classify_destination(
            alive=of_destination.alive, run_state=of_destination.run_state, status=of_destination.status
        ),
    )


async def settle(course: Course, *, goal: Goal, patience_s: float | None = None) -> Settled:
    """Act until one owner is proven.

    Args:
        course: The migration. Every act is written into its journal before it is done.
        goal: Where to, as long as there is a choice.
        patience_s: How long a state that may settle by itself is waited for; default `PATIENCE_S`.

    Raises:
        Fenced: Another controller has the guest: nothing was done since.
    """
    source, destination = course.source, course.destination
    slow = max(source.settings.time_factor, destination.settings.time_factor)
    patience = PATIENCE_S if patience_s is None else patience_s
    begun, yanked = time.monotonic(), False
    acted, effect_until = set[Action](), begun
    follow, tried = postcopy.Follow(course), 0
    while True:
        await _prove_ours(course)  # also ends what is left of a lost connection, which would keep the monitors busy
        of_source, of_destination, source_state, destination_state = await look(source, destination)
        if source_state is Source.HOLDS and course.disks_behind:
            goal = Goal.BACK  # nobody has proven here that its disks are whole over there: it is not let go on
            await _not_yet_in_postcopy(course)
        waited = time.monotonic() - begun
        yanked = yanked and source_state is not Source.INTERRUPTED  # it has helped: it may again
        patient = waited < patience
        if in_postcopy := source_state in AT_SOURCE or destination_state in AT_DESTINATION:
            begun = time.monotonic()  # it takes as long as it takes, as long as it goes on
            patient = follow.look(of_source, source_state, of_destination)
        facts = replace(course.facts(patient), yanked=yanked)
        proven = ownership_decision.proves_never_ran(source_state, of_source.status, postcopy=course.postcopy)
        if not course.held_by_others and proven:
            facts = replace(facts, never_ran=True)
        decision = ownership_decision.decide(source_state, destination_state, facts, goal)
        settled = Settled(decision.action, of_source, of_destination, source_state, destination_state, decision.reason)
        match decision.action:
            case (
                Action.FINISHED_AT_SOURCE
                | Action.FINISHED_AT_DESTINATION
                | Action.GUEST_GONE
                | Action.COMMIT
                | Action.RELEASE_SOURCE
            ):
                return settled
            case Action.PARK if not patient and time.monotonic() > effect_until:
                return settled
            case Action.PARK | Action.WAIT:
                pass
            case action:
                if action in {Action.KILL_DESTINATION, Action.RESUME_SOURCE}:
                    await course.disarm()
                if in_postcopy and action in {Action.END_SOURCE, Action.KILL_DESTINATION}:
                    gone = destination if action is Action.END_SOURCE else source
                    course.lost_with = gone.name if source_state in {*AT_SOURCE, Source.DEAD} else ""
                # The way back starts no second copy: it is taken even where the journal's disk is full.
                with contextlib.suppress(JournalError):
                    await course.chronicle.journal.intent(
                        course.request.id, action.value, source=str(of_source), destination=str(of_destination)
                    )
                outcome = await _act(action, course, tried)
                if action not in acted:
                    acted.add(action)
                    effect_until = time.monotonic() + slow * EFFECT_S
                # A way on which nothing moved is not the first that is tried again.
                tried += action is Action.RECOVER_POSTCOPY or (action is Action.PAUSE_POSTCOPY and not tried)
                yanked = yanked or action is Action.YANK_SOURCE
                course.chronicle.did(action.value, outcome=outcome)
                if action is Action.SPLIT_BRAIN:
                    course.split_brain = True
                    return replace(settled, reason=f"both copies ran: {outcome}")
        now = time.monotonic()
        if not in_postcopy and now > max(begun + LIMIT_S, effect_until):
            reason = f"no proven state within {now - begun:.0f} s; last: {decision.reason}"
            return replace(settled, action=Action.PARK, reason=reason)
        await asyncio.sleep(LOOK_AGAIN_S)
        if in_postcopy and decision.action is not Action.CONTINUE_DESTINATION:
            await asyncio.sleep(POSTCOPY_LOOK_S)


async def _not_yet_in_postcopy(course: Course) -> None:
    """Take post-copy back that was asked for: the source stands before it, and only ``migrate-continue`` leads into it.

    QEMU has stopped the guest for it; 7.2 leaves it so after a cancel: it is told to run again, as one that we have stopped.
    """
    if course.postcopy:
        if course.running:
            course.stopped_by_us = True
            with contextlib.suppress(JournalError):
                await course.will_stop("stopped by QEMU for post-copy, which has not begun")
        await course.no_postcopy()
        await course.chronicle.turn_back()


async def _prove_ours(course: Course) -> None:
    """Let only the guest's controller act.

    A host that cannot be reached does not keep us from acting on the other one: its lock is held, so no other controller
    has got both, and the one that has lost its connection can do nothing over there.
    """
    with contextlib.suppress(MigrationFailed):
        await course.still_ours()


async def _act(action: Action, course: Course, tried: int) -> str:
    """Do one thing. What it brought about is observed next, so an error here is a word for the journal only.

    Args:
        action: What.
        course: The migration.
        tried: How often post-copy was recovered before.

    Raises:
        Fenced: The host refused: another controller has the guest.
    """
    source, destination = course.source, course.destination
    try:
        match action:
            case Action.CANCEL_SOURCE:
                await qmp.cancel(await source.attach())
            case Action.CONTINUE_SOURCE:
                await (await source.attach()).execute("migrate-continue", {"state": "pre-switchover"})
            case Action.YANK_SOURCE:
                if course.mirroring is not None:
                    await course.mirroring.cut()
                monitor = await source.attach()
                await monitor.execute("yank", {"instances": [{"type": "migration"}]}, oob=True)
            case Action.RESUME_SOURCE:
                await (await source.attach()).execute("cont")
            case Action.KILL_DESTINATION:
                return "proven gone" if await destination.kill() else "not proven gone"
            case Action.END_SOURCE:
                return "proven gone" if await source.kill() else "not proven gone"
            case Action.CONTINUE_DESTINATION:
                await postcopy.continue_destination(course)
            case Action.PAUSE_POSTCOPY:
                return await postcopy.pause(course)
            case Action.RECOVER_POSTCOPY:
                if tried > 1:
                    await asyncio.sleep(postcopy.RECOVER_PAUSE_S)
                return await postcopy.recover(course, tried)
            case Action.SPLIT_BRAIN:
                # Where `cont` may have been sent, the destination's copy is the one that the disks belong to.
                stale = source if course.armed else destination
                await (await stale.attach()).execute("stop")
                return f"the one on {stale.name} was stopped"
    except Fenced:
        raise
    except QmpMigrateError as error:
        return str(error)
    return "done"
