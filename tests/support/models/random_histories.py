"""Walks through `contested`: one history, made of what may happen next, and judged after every step and at its end."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from qmp_migrate.migration.ownership.decision import Action, Goal
from tests.support.models import controller_model
from tests.support.models.multi_controller_model import World


class Broken(AssertionError):
    """A history that must not be."""


@dataclass
class History:
    """What has happened so far.

    Attributes:
        world: Now.
        told: What has happened, in words.
        broken: Something was wrong: there is no more to see.
        faults_left: So many QEMUs may still die, so that most histories get somewhere.
    """

    world: World = field(default_factory=World)
    told: list[str] = field(default_factory=list)
    broken: bool = False
    faults_left: int = 2

    def happens(self, steps: Iterator[tuple[str, World]], pick: int) -> None:
        """Let one of the steps happen; nothing if there is none."""
        possible = list(steps)
        if possible:
            name, self.world = possible[pick % len(possible)]
            self.told.append(name)
            if wrong := [*self.world.wrong, *controller_model.wrong_beliefs(self.world)]:
                self.broken = True
                raise Broken("\n".join([*self.told, f"=> {'; '.join(wrong)}", str(self.world)]))

    # -- what may happen ------------------------------------------------------------------------------------------

    def qemus(self, _number: int, pick: int) -> None:
        """A QEMU does what it does by itself."""
        self.happens(self.world.by_itself(), pick)

    def fault(self, _number: int, pick: int) -> None:
        """A QEMU dies, or the stream fails."""
        if self.faults_left:
            self.faults_left -= 1
            self.happens(self.world.faults(), pick)

    def lock_ends(self, _number: int, pick: int) -> None:
        """A lease runs out."""
        self.happens(self.world.leases(), pick)

    def flight(self, _number: int, pick: int) -> None:
        """Something that was sent arrives, or never will."""
        self.happens(self.world.flying(), pick)

    def guardian(self, _number: int, pick: int) -> None:
        """The guardian looks or acts."""
        self.happens(self.world.guardians(), pick)

    def comes_and_goes(self, number: int, pick: int) -> None:
        """A controller is started, dies, is cut off, takes a lock, comes back."""
        self.happens(controller_model.comes_and_goes(self.world, number), pick)

    def goes_on(self, number: int, pick: int) -> None:
        """A controller does its next step: a question, a decision, an act."""
        self.happens(controller_model.goes_on(self.world, number), pick)

    def plans(self, number: int, pick: int) -> None:
        """A controller writes the commit or takes it back, turns back, starts post-copy."""
        if self.world.controllers[number].move is None:
            self.happens(controller_model.by_its_own_plan(self.world, number), pick)

    def starts(self, number: int, pick: int) -> None:
        """A controller is started."""
        self.only(controller_model.comes_and_goes(self.world, number), " is started", pick=pick)

    def dies(self, number: int, pick: int) -> None:
        """A controller dies, and mostly the hosts notice."""
        self.only(controller_model.comes_and_goes(self.world, number), " dies")
        for _ in range(pick % 3):
            self.only(self.world.leases(), f"of controller {number} ")

    def takes_over(self, number: int, pick: int) -> None:
        """A controller, started anew if need be, takes all locks that it can reach."""
        if not self.world.controllers[number].alive:
            self.happens(controller_model.comes_and_goes(self.world, number), pick)
        for what in (" takes the lock on a", " takes the lock on b", " raises the epoch", " claims "):
            self.only(controller_model.comes_and_goes(self.world, number), what)

    def comes_back(self, number: int, _pick: int) -> None:
        """A controller connects again where it may."""
        self.only(controller_model.comes_and_goes(self.world, number), " is back on a")
        self.only(controller_model.comes_and_goes(self.world, number), " is back on b")

    def looks(self, number: int, pick: int) -> None:
        """A controller looks at both QEMUs, which answer, and decides; it has not acted yet."""
        for _ in range(4):
            self.only(controller_model.goes_on(self.world, number), " looks at ", " sees ", pick=pick)

    def acts(self, number: int, _pick: int) -> None:
        """A controller does what it has decided; it has not arrived yet."""
        self.only(controller_model.goes_on(self.world, number), " does ")

    def works(self, number: int, pick: int) -> None:
        """A controller looks, decides and acts, and what it sends mostly arrives; the QEMUs go on meanwhile."""
        self.looks(number, pick)
        self.acts(number, pick)
        self.only(self.world.flying(), " arrives" if pick % 5 else " is lost")
        if pick % 3:
            self.qemus(number, 0)

    def only(self, steps: Iterator[tuple[str, World]], *words: str, pick: int = 0) -> None:
        """Let one of the steps happen whose name has one of the words in it."""
        self.happens(iter([step for step in steps if any(word in step[0] for word in words)]), pick)

    # -- the end --------------------------------------------------------------------------------------------------

    def ends(self, number: int, goal: Goal, *, delivers: bool, flows: bool) -> None:
        """Let everything heal; see that there is one owner then, or a reason why a person is asked."""
        end, decision = controller_model.settle(self.world, number, goal, delivers=delivers, flows=flows)
        if not ends_well(end, decision.action):
            raise Broken("\n".join([*self.told, f"=> {decision} in {end}"]))


Rule: TypeAlias = Callable[[History, int, int], None]

RULES: Final[list[Rule]] = [
    History.qemus,
    History.fault,
    History.lock_ends,
    History.flight,
    History.guardian,
    History.comes_and_goes,
    History.goes_on,
    History.plans,
    History.starts,
    History.dies,
    History.takes_over,
    History.comes_back,
    History.looks,
    History.acts,
    History.works,
]


COARSE: Final = [
    History.fault,
    History.guardian,
    History.flight,
    History.plans,
    History.starts,
    History.dies,
    History.takes_over,
    History.comes_back,
    History.looks,
    History.acts,
]
"""Gets far in few steps."""

TAKING_OVER: Final = [
    History.fault,
    History.plans,
    History.starts,
    History.dies,
    History.takes_over,
]
"""One controller after the other."""


def walk(world: World, seed: int, rules: Sequence[Rule] = RULES, length: int = 30) -> History:
    """Return a random history, the same one for the same seed.

    Raises:
        Broken: It must not be.
    """
    dice = random.Random(seed)
    history = History(world)
    # Not everything in every history: what is rare together comes up alone (swarm testing).
    some = [*dice.sample(rules, dice.randint(2, min(8, len(rules)))), History.works, History.works]
    for _ in range(dice.randint(1, length)):
        dice.choice(some)(history, dice.randrange(2), dice.randrange(24))
    history.ends(dice.randrange(2), dice.choice(list(Goal)), delivers=dice.random() < 0.5, flows=dice.random() < 0.5)
    return history


# -- what an end must be ----------------------------------------------------------------------------------------------


def ends_well(end: World, action: Action) -> bool:
    """One owner, and the other QEMU is gone; or a person is asked for a reason that is listed."""
    if end.wrong:
        return False
    paused = end.variant.paused
    match action:
        case Action.FINISHED_AT_SOURCE:
            return (end.source_runs or (paused and end.src != "dead")) and end.dst == "dead"
        case Action.FINISHED_AT_DESTINATION:
            return end.src == "dead" and end.dst in {"running", "halted", *(["loaded"] if paused else [])}
        case Action.GUEST_GONE:
            return end.src == "dead" and end.dst == "dead"
        case Action.PARK:
            return any(reason(end) for reason in REASONS)
    return False


def may_have_run(end: World) -> bool:
    return any(controller.alive and controller.armed for controller in end.controllers)


def nobody_heard_it_complete(end: World) -> bool:
    """The source is dead; for all that is known it may have run on after the destination had loaded."""
    return end.src == "dead" and end.dst == "loaded" and not any(c.heard or c.committed for c in end.controllers)


def destination_lost_after_it_may_have_run(end: World) -> bool:
    """Nobody can prove that the source's memory is not older than the disks."""
    return end.src == "completed" and end.dst == "dead" and may_have_run(end)


def source_stuck_and_destination_may_have_run(end: World) -> bool:
    """What answers nobody cannot say that it was not completed before it hung."""
    return controller_model.hangs(end) and may_have_run(end)


def source_gave_up_in_post_copy_and_destination_may_have_run(end: World) -> bool:
    """From 8.2 on, a source whose last answer is lost at the end of post-copy runs on, although the destination has run."""
    asked = any(controller.alive and controller.postcopy for controller in end.controllers)
    return asked and end.src in {"runs-on", "resumed"} and may_have_run(end)


def post_copy_was_asked_for_and_nothing_moves(end: World) -> bool:
    """The guest runs at the source; when the stream goes on it turns, so a cancel could come too late."""
    asked = any(controller.alive and controller.postcopy for controller in end.controllers)
    return asked and end.src == "copying" and end.stream == "silent"


def post_copy_has_begun_and_the_devices_do_not_arrive(end: World) -> bool:
    """Neither can run the guest, and a cancel would destroy it; when the stream goes on, all goes on by itself."""
    return end.src == "postcopy" and end.dst == "incoming" and end.stream == "silent"


REASONS: Final[list[Callable[[World], bool]]] = [
    nobody_heard_it_complete,
    destination_lost_after_it_may_have_run,
    source_stuck_and_destination_may_have_run,
    source_gave_up_in_post_copy_and_destination_may_have_run,
    post_copy_was_asked_for_and_nothing_moves,
    post_copy_has_begun_and_the_devices_do_not_arrive,
]
"""Why a person may be asked; everything else must end with an owner."""
