"""Two controllers, their locks, the guardian, and a crash of everything at every step: no history has two owners or none.

What is walked through is in `multi_controller_model` and `controller_model`, what is judged in `random_histories`; the
decisions are the product's.
`HYPOTHESIS_PROFILE=deep` tries more than 20,000 histories with hypothesis, which shrinks what it finds, and a million
without it, which is faster.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from qmp_migrate.migration.ownership.decision import Goal
from tests.support.models.controller_model import by_its_own_plan, comes_and_goes
from tests.support.models.multi_controller_model import Bug, Variant, World
from tests.support.models.random_histories import (
    COARSE,
    REASONS,
    RULES,
    TAKING_OVER,
    Broken,
    History,
    Rule,
    walk,
)

DEEP = os.environ.get("HYPOTHESIS_PROFILE") == "deep"
VARIANTS = [
    pytest.param(Variant(), id="one journal"),
    pytest.param(Variant(shared=False), id="two journals"),
    pytest.param(Variant(guarded=True), id="guarded"),
    pytest.param(Variant(guarded=True, shared=False), id="guarded, two journals"),
    pytest.param(Variant(guarded=True, paused=True), id="paused guest"),
    pytest.param(Variant(stopped=True), id="stopped by us"),
    pytest.param(Variant(stopped=True, guarded=True, shared=False), id="stopped by us, guarded, two journals"),
    pytest.param(Variant(postcopy=True), id="post-copy"),
    pytest.param(Variant(postcopy=True, guarded=True, shared=False), id="post-copy, guarded, two journals"),
    pytest.param(Variant(postcopy=True, paused=True), id="post-copy, paused guest"),
]
TWO_JOURNALS = {Bug.RISE_IGNORED, Bug.RISE_FORGOTTEN}


def histories(variant: Variant) -> type[RuleBasedStateMachine]:
    """Return the machine that hypothesis drives: one rule for each of `RULES`."""

    class Histories(RuleBasedStateMachine):
        @initialize(number=st.integers(0, 1), goal=st.sampled_from(Goal), delivers=st.booleans(), flows=st.booleans())
        def begins(self, **how_it_ends: Any) -> None:
            self.history = History(World(variant))
            self.how_it_ends = how_it_ends

        def teardown(self) -> None:
            if not self.history.broken:
                self.history.ends(**self.how_it_ends)

    def step(wanted: Rule) -> Any:
        def happens(self: Any, number: int, pick: int) -> None:
            wanted(self.history, number, pick)

        happens.__name__ = wanted.__name__
        return rule(number=st.integers(0, 1), pick=st.integers(0, 23))(happens)

    return type("Histories", (Histories,), {wanted.__name__: step(wanted) for wanted in RULES})


@pytest.mark.timeout(7200 if DEEP else 120)
@pytest.mark.parametrize("variant", VARIANTS)
def test_no_history_has_two_owners_or_none(variant: Variant) -> None:
    run_state_machine_as_test(histories(variant), settings=settings(stateful_step_count=30))


@pytest.mark.timeout(7200 if DEEP else 120)
@pytest.mark.parametrize("variant", VARIANTS)
def test_nor_has_any_of_very_many(variant: Variant) -> None:
    for seed in range(75_000 if DEEP else 250):
        walk(World(variant), seed)
        walk(World(variant), seed, COARSE)


@pytest.mark.parametrize("bug", sorted(set(Bug) - {Bug.POSTCOPY_FORGOTTEN}))
def test_a_protection_that_is_missing_is_noticed(bug: Bug) -> None:
    """Each of them is needed: without it there is a history that must not be, and it is found."""
    variant = Variant(guarded=bug is Bug.GUARDIAN_RESUMES, shared=bug not in TWO_JOURNALS, bug=bug)
    world = World(variant)
    with pytest.raises(Broken):  # noqa: PT012
        for seed in range(50_000):
            walk(world, seed, COARSE)
            walk(world, seed, TAKING_OVER)


@pytest.mark.parametrize("bug", [None, Bug.POSTCOPY_FORGOTTEN])
def test_who_takes_over_does_not_cancel_what_may_turn_to_post_copy(bug: Bug | None) -> None:
    """Its cancel would arrive after that. Too long a history to be found by chance."""
    history = History(World(Variant(postcopy=True, bug=bug)))
    history.only(by_its_own_plan(history.world, 0), " starts post-copy")
    history.only(history.world.flying(), " arrives")
    history.only(comes_and_goes(history.world, 1), " is started, back")
    history.takes_over(1, 0)
    history.looks(1, 1)  # patience has ended
    history.acts(1, 0)
    history.only(history.world.by_itself(), " turns to post-copy")
    if bug is None:
        assert not list(history.world.flying())
        return
    with pytest.raises(Broken, match=r"`(cancel|yank)-source` in post-copy"):
        history.only(history.world.flying(), " arrives")


def test_the_model_goes_everywhere() -> None:
    """Else it would prove little: every state of both QEMUs, and every reason to ask a person, is reached."""
    ends = [walk(World(Variant()), seed, COARSE).world for seed in range(1500)]
    assert {world.src for world in ends} >= {"copying", "switching", "runs-on", "completed", "resumed", "dead"}
    assert {world.dst for world in ends} == {"incoming", "loaded", "running", "halted", "dead"}
    assert max(world.hosts[0].epoch for world in ends) > 4
    assert len({reason.__name__ for reason in REASONS}) == len(REASONS)
