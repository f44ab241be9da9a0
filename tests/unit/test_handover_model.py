"""Two controllers, their locks, the guardian and every crash: random histories, and no one with two owners or none.

What is walked through is in `contested` and `contenders`; decisions are the product's. `HYPOTHESIS_PROFILE=deep` tries
20,000 histories of each kind of migration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from qmp_migrate.migration.handover import Action, Goal
from tests.support import contenders
from tests.support.contested import Bug, Variant, World

Steps = Iterator[tuple[str, World]]
PICK = st.integers(0, 23)


class Histories(RuleBasedStateMachine):
    """One history; every rule lets one of those who may do something next do it."""

    variant = Variant()

    def __init__(self) -> None:
        super().__init__()
        self.world = World(variant=self.variant)
        self.told: list[str] = []
        self.goal = Goal.FORWARD
        self.number = 0
        self.delivers = self.flows = False

    @initialize(number=st.integers(0, 1), goal=st.sampled_from(Goal), delivers=st.booleans(), flows=st.booleans())
    def how_it_ends(self, number: int, goal: Goal, delivers: bool, flows: bool) -> None:
        self.number, self.goal, self.delivers, self.flows = number, goal, delivers, flows

    def happens(self, steps: Steps, pick: int) -> None:
        possible = list(steps)
        if not possible:
            return
        name, self.world = possible[pick % len(possible)]
        self.told.append(name)
        self.judge()

    def judge(self) -> None:
        if self.world.wrong:
            raise AssertionError("\n".join([*self.told, f"=> {'; '.join(self.world.wrong)}", str(self.world)]))

    @rule(pick=PICK)
    def qemus(self, pick: int) -> None:
        self.happens(self.world.by_itself(), pick)

    @rule(pick=PICK)
    def fault(self, pick: int) -> None:
        self.happens(self.world.faults(), pick)

    @rule(pick=PICK)
    def lock_ends(self, pick: int) -> None:
        self.happens(self.world.leases(), pick)

    @rule(pick=PICK)
    def flight(self, pick: int) -> None:
        self.happens(self.world.flying(), pick)

    @rule(pick=PICK)
    def guardian(self, pick: int) -> None:
        self.happens(self.world.guardians(), pick)

    @rule(number=st.integers(0, 1), pick=PICK)
    def controller_comes_or_goes(self, number: int, pick: int) -> None:
        self.happens(contenders.comes_and_goes(self.world, number), pick)

    @rule(number=st.integers(0, 1), pick=PICK)
    def controller_goes_on(self, number: int, pick: int) -> None:
        self.happens(contenders.goes_on(self.world, number), pick)

    @rule(number=st.integers(0, 1), pick=PICK, turns=st.integers(1, 2))
    def controller_does_its_work(self, number: int, pick: int, turns: int) -> None:
        """A whole look, decision and act, in which everybody answers at once."""
        for _ in range(7 * turns):
            steps = list(contenders.goes_on(self.world, number))
            if not steps:
                return
            last = [step for step in steps if "looks" in step[0] or " sees " in step[0] or " does " in step[0]]
            self.happens(iter(last or steps), pick if " sees " in steps[0][0] else -1)

    def teardown(self) -> None:
        if self.world.wrong:
            return
        end, decision = contenders.settle(
            self.world, self.number, self.goal, delivers=self.delivers, flows=self.flows
        )
        if not ends_well(end, decision.action):
            raise AssertionError("\n".join([*self.told, f"=> {decision} in {end}"]))


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
    return contenders.hangs(end) and may_have_run(end)


def memory_on_both_hosts(end: World) -> bool:
    """Post-copy was interrupted, or waits for its controller: nothing may be cancelled, resumed or ended."""
    return end.src in {"postcopy", "interrupted"}


REASONS: list[Callable[[World], bool]] = [
    nobody_heard_it_complete,
    destination_lost_after_it_may_have_run,
    source_stuck_and_destination_may_have_run,
    memory_on_both_hosts,
]
"""Why a person may be asked; everything else must end with an owner."""

VARIANTS = [
    Variant(),
    Variant(guarded=True),
    Variant(guarded=True, shared=False),
    Variant(shared=False),
    Variant(guarded=True, paused=True),
    Variant(postcopy=True),
]


def histories(variant: Variant) -> type[RuleBasedStateMachine]:
    return type("Contested", (Histories,), {"variant": variant})


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_no_history_has_two_owners_or_none(variant: Variant) -> None:
    run_state_machine_as_test(histories(variant), settings=settings(stateful_step_count=40))


@pytest.mark.parametrize("bug", Bug)
def test_the_model_notices_what_is_missing(bug: Bug) -> None:
    variant = Variant(guarded=bug is Bug.GUARDIAN_RESUMES, shared=bug is not Bug.RISE_IGNORED, bug=bug)
    quick = settings(
        max_examples=20000, stateful_step_count=40, phases=[Phase.generate], database=None, derandomize=True,
        report_multiple_bugs=False,
    )
    with pytest.raises(AssertionError, match="=>"):
        run_state_machine_as_test(histories(variant), settings=quick)
