"""The phases of a migration in which faults come, and how each one is reached exactly: by a trap, never by a sleep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

QUIET: Final = "qm.rate=4 qm.ws=8 qm.tick=10"
BUSY: Final = "qm.rate=12 qm.ws=24 qm.tick=10"


@dataclass(frozen=True, slots=True)
class Phase:
    """A phase.

    Attributes:
        name: For case names.
        traps: Traps of `tests.faults.lab.controller`, in their order; the fault comes while it stands in the last one.
        words: More words for ``migrate``.
        append: The guest's workload.
        states: ``query-status`` of source and destination while the fault comes; ``""``: not asked.
        stalled: The migration cable is held when the first trap is reached: so the switchover lasts as long as it must.
        story: For people.
    """

    name: str
    traps: tuple[str, ...]
    story: str
    words: tuple[str, ...] = ()
    append: str = QUIET
    stalled: bool = False
    states: tuple[str, str] = ("", "")


_COPIES: Final = ("running", "inmigrate")
_HANDED_OVER: Final = ("postmigrate", "running")

_POSTCOPY: Final = ("--mode", "postcopy", "--bandwidth", "12MiB", "--downtime-limit", "10ms")

PHASES: Final = (
    Phase("preflight", ("preflight",), "the guest was found and is being looked at", states=("running", "")),
    Phase("launch", ("launched",), "the destination's QEMU is up, the journal does not know it yet", states=_COPIES),
    Phase("wired", ("phase:wired",), "both sides are set up, nothing travels", states=_COPIES),
    Phase("first-pass", ("pass:1",), "memory travels for the first time", ("--bandwidth", "16MiB")),
    Phase(
        "converging", ("pass:2",), "memory travels again", ("--bandwidth", "24MiB", "--downtime-limit", "500ms"), BUSY
    ),
    Phase(
        "pre-switchover",
        ("held",),
        "the source is stopped and waits for migrate-continue",
        ("--guarded",),
        states=("finish-migrate", "inmigrate"),
    ),
    Phase(
        "switching",
        ("held", "after:migrate-continue@a"),
        "the device state travels (the link holds it)",
        ("--guarded",),
        stalled=True,
    ),
    Phase(
        "completed", ("before:cont@b",), "both sides have completed, cont is not sent", states=("postmigrate", "paused")
    ),
    Phase("unacknowledged", ("after:cont@b",), "cont was sent, its answer is not taken in yet", states=_HANDED_OVER),
    Phase("running", ("phase:running-at-destination",), "the destination runs, the source exists", states=_HANDED_OVER),
    Phase("release", ("before:quit@a",), "the source is about to be ended", states=_HANDED_OVER),
)
"""In the order in which a live migration goes through them."""

OTHER_MODES: Final = (
    Phase(
        "offline",
        ("pass:1",),
        "the guest stands still, its memory travels",
        ("--mode", "offline", "--bandwidth", "16MiB"),
        states=("paused", "inmigrate"),
    ),
    Phase("turning", ("before:cont@b",), "post-copy has begun, the destination waits for cont", _POSTCOPY, BUSY),
    Phase(
        "postcopy",
        ("after:announce-self@b",),
        "the guest runs at the destination, memory follows",
        _POSTCOPY,
        BUSY,
        states=("finish-migrate", "running"),
    ),
)
"""Of the modes offline and post-copy. `tests/system/test_modes` has the most important of their cases."""

BY_NAME: Final = {phase.name: phase for phase in (*PHASES, *OTHER_MODES)}


def span(first: str, last: str) -> tuple[str, ...]:
    """Return the names of all phases from one to another, both included."""
    names = [phase.name for phase in PHASES]
    return tuple(names[names.index(first) : names.index(last) + 1])
