"""The phases of one migration, as data (DESIGN §5).

The graph is checked when this module is imported: a phase that cannot be reached, or that has no way to an end, is a
programming error that must not wait for an unlucky night to show.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class Phase(StrEnum):
    """A phase. The values are what the journal, the bus and ``--json`` say."""

    REQUESTED = "requested"
    PREFLIGHT = "preflight"
    LOCKED = "locked"
    DESTINATION_LAUNCHED = "destination-launched"
    WIRED = "wired"
    DISKS_MIRRORING = "disks-mirroring"
    COPYING = "copying"
    PRE_SWITCHOVER = "pre-switchover"
    POSTCOPY = "postcopy"
    SWITCHING = "switching"
    COMMITTED = "committed"
    RUNNING_AT_DESTINATION = "running-at-destination"
    SOURCE_RELEASED = "source-released"
    DONE = "done"
    ROLLING_BACK = "rolling-back"
    ROLLED_BACK = "rolled-back"
    PARKED = "parked"


P = Phase

NEXT: Final[Mapping[Phase, frozenset[Phase]]] = MappingProxyType(
    {
        P.REQUESTED: frozenset({P.PREFLIGHT, P.ROLLED_BACK}),
        P.PREFLIGHT: frozenset({P.LOCKED, P.ROLLED_BACK}),
        P.LOCKED: frozenset({P.DESTINATION_LAUNCHED, P.ROLLING_BACK}),
        P.DESTINATION_LAUNCHED: frozenset({P.WIRED, P.ROLLING_BACK}),
        P.WIRED: frozenset({P.DISKS_MIRRORING, P.COPYING, P.ROLLING_BACK}),
        P.DISKS_MIRRORING: frozenset({P.COPYING, P.ROLLING_BACK}),
        P.COPYING: frozenset({P.PRE_SWITCHOVER, P.POSTCOPY, P.SWITCHING, P.ROLLING_BACK, P.PARKED}),
        # Entered before `migrate-start-postcopy` is sent: there is one direction from here. It may still end as pre-copy (the
        # rest was small enough), or fail before it has begun.
        P.POSTCOPY: frozenset({P.SWITCHING, P.RUNNING_AT_DESTINATION, P.ROLLING_BACK, P.PARKED}),
        P.PRE_SWITCHOVER: frozenset({P.SWITCHING, P.ROLLING_BACK, P.PARKED}),
        P.SWITCHING: frozenset({P.COMMITTED, P.ROLLING_BACK, P.PARKED}),
        # Back from here only with proof that the destination never ran (rule 4): `decision.decide` asks for it.
        P.COMMITTED: frozenset({P.RUNNING_AT_DESTINATION, P.ROLLING_BACK, P.PARKED}),
        P.RUNNING_AT_DESTINATION: frozenset({P.SOURCE_RELEASED, P.PARKED}),
        P.SOURCE_RELEASED: frozenset({P.DONE}),
        P.ROLLING_BACK: frozenset({P.ROLLED_BACK, P.PARKED}),
        # A person or `recover` settles a parked one.
        P.PARKED: frozenset({P.ROLLING_BACK, P.COMMITTED, P.RUNNING_AT_DESTINATION, P.SOURCE_RELEASED}),
        P.DONE: frozenset(),
        P.ROLLED_BACK: frozenset(),
    }
)
"""From each phase, the phases that may follow it."""

ENDS: Final = frozenset({P.DONE, P.ROLLED_BACK})
"""Nothing is left to do after these."""

AFTER_COMMIT: Final = frozenset({P.COMMITTED, P.RUNNING_AT_DESTINATION, P.SOURCE_RELEASED, P.DONE})
"""The destination runs the guest, or may."""


def check_step(before: Phase, after: Phase) -> None:
    """Refuse a step that is not in the graph.

    Raises:
        ValueError: It is not; a bug of ours.
    """
    if after not in NEXT[before]:
        raise ValueError(f"a migration cannot go from {before} to {after}")


def validate(graph: Mapping[Phase, frozenset[Phase]] = NEXT) -> None:
    """Check a phase graph: complete, all reachable from `requested`, an end reachable from all.

    Raises:
        ValueError: It is not sound.
    """
    if set(graph) != set(Phase):
        raise ValueError(f"phases without an entry: {set(Phase) - set(graph)}")
    reached, todo = set[Phase](), [Phase.REQUESTED]
    while todo:
        phase = todo.pop()
        if phase not in reached:
            reached.add(phase)
            todo.extend(graph[phase])
    if unreachable := set(Phase) - reached:
        raise ValueError(f"phases that cannot be reached: {sorted(unreachable)}")
    good = set(ENDS)
    while more := {phase for phase in graph if phase not in good and graph[phase] & good}:
        good |= more
    if stuck := set(Phase) - good:
        raise ValueError(f"phases without a way to an end: {sorted(stuck)}")


validate()
