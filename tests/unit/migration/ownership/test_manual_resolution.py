"""What a person is told who must settle a parked migration: every way out is a command that does what it says."""

from __future__ import annotations

import itertools
import re

from qmp_migrate.migration.ownership.decision import Action, Destination, Facts, Goal, Source, decide
from qmp_migrate.migration.ownership.manual_resolution import Names, ways_out

NAMES = Names("m1", "web1", "a", "b")
PARKED = [
    (source, destination, facts)
    for source, destination, armed, completed, torn in itertools.product(
        Source, Destination, (False, True), (False, True), (False, True)
    )
    if (facts := Facts(may_have_run=armed, source_completed=completed, split_brain=torn, patience=False))
    and decide(source, destination, facts, Goal.FORWARD).action is Action.PARK
]


def test_there_is_always_a_way_out() -> None:
    assert len(PARKED) > 50
    for source, destination, facts in PARKED:
        ways = ways_out(source, destination, facts, NAMES)
        assert any(way.startswith("qmp-migrate recover m1") for way in ways), (source, destination, facts)


def test_what_is_offered_to_decide_is_possible() -> None:
    """`--owner` is offered only where `decide` then does something, or where the text says what comes first."""
    for source, destination, facts in PARKED:
        for way in ways_out(source, destination, facts, NAMES):
            match = re.search(r"--owner (source|destination)", way)
            if match is None or facts.split_brain:
                continue
            told = Facts(may_have_run=facts.may_have_run, patience=False, told=match[1])  # type: ignore[arg-type]
            action = decide(source, destination, told, Goal.FORWARD).action
            assert action not in {Action.PARK, Action.WAIT}, (source, destination, way)


def test_a_host_is_offered_to_be_fenced_only_where_it_does_not_answer() -> None:
    for source, destination, facts in PARKED:
        text = "\n".join(ways_out(source, destination, facts, NAMES))
        assert ("--fenced a" in text) == (source is Source.UNKNOWN and not facts.split_brain)
        assert ("--fenced b" in text) == (destination is Destination.UNKNOWN and not facts.split_brain)
