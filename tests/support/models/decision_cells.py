"""Every cell of the decision table, with what it says."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, fields

from qmp_migrate.migration.ownership.decision import (
    Action,
    Destination,
    Facts,
    Goal,
    Source,
    decide,
)


@dataclass(frozen=True)
class Cell:
    """One cell of the table and what it says."""

    source: Source
    destination: Destination
    facts: Facts
    goal: Goal
    action: Action
    reason: str


def all_cells() -> list[Cell]:
    cells = []
    values = [(None, "source", "destination") if field.name == "told" else (False, True) for field in fields(Facts)]
    known_all = itertools.product(*values)
    for source, destination, known, goal in itertools.product(Source, Destination, known_all, Goal):
        facts = Facts(*known)
        decision = decide(source, destination, facts, goal)
        cells.append(Cell(source, destination, facts, goal, decision.action, decision.reason))
    return cells


ALL = all_cells()

WAKES_THE_SOURCE = {Action.CANCEL_SOURCE, Action.YANK_SOURCE, Action.RESUME_SOURCE}
