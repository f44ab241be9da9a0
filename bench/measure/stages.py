"""Where the time of one migration went: the phases of its journal, laid between the command's start and its end."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

UNTIL: Final = {
    "preflight": "start and preflight",
    "locked": "lock",
    "destination-launched": "launch",
    "wired": "wire",
    "copying": "begin",
    "committed": "copy",
    "running-at-destination": "verify",
    "source-released": "release",
    "done": "note the end",
}
"""The phase that is entered when a stage is over, and the stage's name."""

LAST: Final = "leave"
"""From the last phase until the caller has the answer (for a command: until its process has ended)."""


def stages(began: float, phases: Iterable[tuple[str, float]], ended: float) -> dict[str, float]:
    """Return what each stage took, milliseconds, in order.

    Args:
        began: When the action began, seconds since the epoch.
        phases: Each phase that was entered, with its time (the journal's ``phase`` entries).
        ended: When the caller had its answer.
    """
    found: dict[str, float] = {}
    before = began
    for phase, at in phases:
        name = UNTIL.get(phase)
        if name is not None:
            found[name] = found.get(name, 0.0) + (at - before) * 1000
            before = at
    found[LAST] = (ended - before) * 1000
    return {name: round(value, 1) for name, value in found.items()}
