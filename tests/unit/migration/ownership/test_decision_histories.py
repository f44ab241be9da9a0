"""What the decisions lead to: all histories of two QEMUs with faults and crashes at any moment, not a sample of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from qmp_migrate.migration.ownership.decision import Action, Goal, Source
from tests.support.models.exhaustive_model import FROM_AFAR, IN_POSTCOPY, World, explore, history, settle

REACHED = explore() | explore(World(stopped=True)) | explore(World(may_turn=True))
SETTLED = [world for world in REACHED if world.move is None]
"""Worlds in which the controller can begin to look."""


def never(what: str, broken: Callable[[World], bool], worlds: list[World] | None = None) -> None:
    """Fail with the shortest history that leads to a broken world."""
    for world in REACHED if worlds is None else worlds:
        if broken(world):
            pytest.fail(f"{what}\n{history(REACHED, world)}", pytrace=False)


def acts() -> list[tuple[World, World]]:
    """Return every act of the controller: the world before and after it."""
    return [
        (world, world._replace(move=None).act(world.move.action))
        for world in REACHED
        if world.move is not None and world.move.action is not None
    ]


def test_the_model_goes_everywhere() -> None:
    assert {world.src for world in REACHED} >= {"runs-on", "completed", "resumed", "dead", "holding", "failing"}
    assert "runs-again" in {world.src for world in REACHED}
    assert {world.dst for world in REACHED} == {"incoming", "loaded", "running", "halted", "dead", *IN_POSTCOPY}
    assert {world.move.action for world in REACHED if world.move} >= set(Action) - {Action.SPLIT_BRAIN}


def test_never_two_running_copies() -> None:
    never("two run", lambda world: world.source_runs and world.dst == "running")


def test_the_source_never_runs_after_the_destination_has() -> None:
    never("a copy that is older than its disks runs", lambda world: world.source_runs and world.ran)


def test_the_destination_never_runs_after_the_source_has_run_on() -> None:
    never("a copy that is older than its disks runs", lambda world: world.ran and world.stale)


def test_cont_is_never_sent_to_a_destination_that_still_loads() -> None:
    never("`cont` during inmigrate defeats -S", lambda world: world.on_its_way and world.dst == "incoming")


def test_commit_is_sent_only_where_the_source_is_completed_or_gone() -> None:
    never(
        "commit",
        lambda world: (
            world.move is not None
            and world.move.action is Action.COMMIT
            and world.src not in {"completed", "dead", *FROM_AFAR}
        ),
    )


def test_no_act_of_the_controller_loses_the_guest() -> None:
    """Not counted: the source dies in the instant between the look and the act; that takes two faults at once."""
    for before, after in acts():
        assert before.move is not None
        died_meanwhile = before.src == "dead" and before.move.source is not Source.DEAD
        if before.guest_exists and not after.guest_exists and not died_meanwhile:
            pytest.fail(f"{before.move.action} loses the guest\n{history(REACHED, before)}", pytrace=False)


def hangs(world: World) -> bool:
    """The device state was on its way when the stream went silent: QEMU's main loop answers nobody any more."""
    return world.src == "switching" and not world.flows


def ends_with_an_owner(world: World) -> bool:
    """Every loop ends, and with one owner unless both are dead or the facts allow none."""
    goal = Goal.FORWARD if world.sent else Goal.BACK
    end, decision = settle(world, goal)
    match decision.action:
        case Action.FINISHED_AT_SOURCE:
            return end.source_runs and end.dst == "dead"
        case Action.RELEASE_SOURCE | Action.FINISHED_AT_DESTINATION:
            return end.src == "dead" and end.dst in {"running", "halted"}
        case Action.GUEST_GONE:
            return end.src == "dead" and end.dst == "dead"
        case Action.PARK:
            # The destination died or the source hangs, and for all that is known the destination may have run: nobody
            # can prove that the source's memory is not older than the disks.
            unproven = not end.facts(patience=False).surely_never_ran
            # The source is dead and nobody heard it say `completed`: it may have run on after the destination had loaded.
            unheard = end.src == "dead" and end.dst == "loaded" and not end.seen_completed
            # Post-copy was asked for, and may begin as soon as the stream goes on; the guest runs at the source meanwhile. Or
            # the source has given up, and nobody can prove that this was before the destination ran.
            asked = end.asked and end.src == "copying" and not end.flows
            gave_up = end.asked and end.src in {"runs-on", "failing", "resumed"} and unproven
            return (
                unheard
                or asked
                or gave_up
                or devices_are_lost(end)
                or (unproven and (hangs(end) or (end.src == "completed" and end.dst == "dead")))
            )
    return False


def devices_are_lost(world: World) -> bool:
    """The stream went silent when post-copy had begun and the devices had not arrived: QEMU has no way back from there."""
    return world.src in FROM_AFAR and world.dst == "incoming" and not world.flows


def test_from_everywhere_it_ends_with_one_owner() -> None:
    worlds = [world for world in SETTLED if not hangs(world)]
    never("no owner", lambda world: not ends_with_an_owner(world), worlds)


def test_also_where_the_source_hangs_in_its_switchover() -> None:
    worlds = [world for world in SETTLED if hangs(world)]
    assert worlds
    never("no owner", lambda world: not ends_with_an_owner(world), worlds)


def test_a_guest_that_can_be_saved_is_saved() -> None:
    """Both QEMUs live and nothing more goes wrong: then the guest runs at the end, at one of them."""
    worlds = [world for world in SETTLED if not hangs(world) and world.src != "dead" and world.dst != "dead"]
    worlds = [world for world in worlds if not devices_are_lost(world)]

    def stopped(world: World) -> bool:
        end, _ = settle(world, Goal.FORWARD if world.sent else Goal.BACK)
        return not end.source_runs and end.dst not in {"running", "halted"}

    never("the guest stands still", stopped, worlds)
