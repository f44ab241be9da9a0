"""What everybody who is measured can do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from bench.guest import Guest
from bench.measure.samples import Numbers


class MoveFailed(Exception):
    """A contender did not move the guest; the message says what it said."""


@dataclass(frozen=True, slots=True)
class Moved:
    """How a move went.

    Attributes:
        wall_ms: The whole action, as its user waits for it.
        result: ``migration.result/1`` where there is one.
        numbers: QEMU's own figures as the contender read them, where it does.
        stages: Where the time went, milliseconds; empty where nobody knows.
    """

    wall_ms: float
    result: Mapping[str, Any] | None = None
    numbers: Numbers | None = None
    stages: dict[str, float] = field(default_factory=dict)


class Contender(Protocol):
    """Starts, moves and removes guests, one at a time."""

    name: str

    @property
    def controller_pid(self) -> int | None:
        """The process that drives the move now; None where there is none or it does not matter."""

    def directories(self, guest: Guest) -> tuple[Path, Path]:
        """Return a guest's directory at the source and at the destination."""

    async def start(self, guest: Guest) -> None:
        """Start a guest at the source. Raises `MoveFailed`."""

    async def move(self, guest: Guest) -> Moved:
        """Move it, and return when all is done and the source is gone. Raises `MoveFailed`."""

    async def discard(self, guest: Guest) -> None:
        """End it wherever it is and remove what it left; also one that was never started."""
