"""Both QEMUs' events, by their own clocks, taken from a monitor that nobody else uses. What follows from them is pure."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.measure.qmp import Qmp, QmpFailed, event_time
from bench.measure.samples import Numbers

SEEN_S: Final = 10.0
ASK_AGAIN: Final = 40
ASK_AGAIN_S: Final = 0.005


@dataclass(frozen=True, slots=True)
class Seen:
    """One event.

    Attributes:
        at: Seconds since the epoch, by QEMU's clock (they are on one machine, so it is one clock).
        source: The source's; False: the destination's.
        name: The event's; for ``MIGRATION`` its status, for ``MIGRATION_PASS`` the pass with it.
    """

    at: float
    source: bool
    name: str


@dataclass(frozen=True, slots=True)
class Course:
    """What the events say about a migration. Milliseconds; None: it did not come to that.

    Attributes:
        moved_ms: From its begin until the guest runs at the destination and all of its memory is there.
        blackout_ms: STOP at the source until RESUME, wherever; the longest one.
        first_pass_ms: What one full copy took: until pass 2.
        passes_at_ms: When each pass began, from pass 1.
        handed_over_ms: When the destination began to run.
        ended_ms: When the source said that it had completed, failed or been cancelled.
    """

    moved_ms: float | None
    blackout_ms: float | None
    first_pass_ms: float | None
    passes_at_ms: tuple[float, ...]
    handed_over_ms: float | None
    ended_ms: float | None


def course(events: Iterable[Seen]) -> Course:
    """Return what follows from the events."""
    ordered = sorted(events, key=lambda seen: seen.at)
    began = next((seen.at for seen in ordered if seen.source and seen.name in {"setup", "active"}), None)
    if began is None:
        return Course(None, None, None, (), None, None)
    stopped: float | None = None
    blackouts: list[float] = []
    passes: list[float] = []
    completed = resumed = ended = None
    for seen in ordered:
        after_ms = (seen.at - began) * 1000
        if seen.source and seen.name == "STOP" and stopped is None:
            stopped = after_ms
        elif seen.name == "RESUME":
            if not seen.source:
                resumed = after_ms if resumed is None else resumed
            if stopped is not None:
                blackouts.append(after_ms - stopped)
                stopped = None
        elif seen.source and seen.name in {"completed", "failed", "cancelled"}:
            ended = round(after_ms, 1)
            completed = after_ms if seen.name == "completed" else None
        elif seen.source and seen.name.startswith("pass "):
            # QEMU 11 does not tell of pass 1.
            passes += [0.0] if not passes and seen.name != "pass 1" else []
            passes.append(after_ms)
    return Course(
        moved_ms=None if completed is None or resumed is None else round(max(completed, resumed), 1),
        blackout_ms=round(max(blackouts), 2) if blackouts else None,
        first_pass_ms=round(passes[1], 1) if len(passes) > 1 else None,
        passes_at_ms=tuple(round(at, 1) for at in passes),
        handed_over_ms=None if resumed is None else round(resumed, 1),
        ended_ms=ended,
    )


class Watch:
    """Listens, and asks the source once at its end.

    Attributes:
        events: What was seen so far.
        numbers: The source's own figures at its end; None where it was gone too soon.
    """

    def __init__(self) -> None:
        self.events: list[Seen] = []
        self.numbers: Numbers | None = None
        self._completed = asyncio.Event()
        self._resumed = asyncio.Event()

    @classmethod
    @contextlib.asynccontextmanager
    async def over(cls, source: Path, destination: Path) -> AsyncIterator[Watch]:
        """Listen to the source now, and to the destination as soon as it is there.

        Args:
            source: The socket at the source.
            destination: The one that the destination will make.
        """
        self = cls()
        at_source = await Qmp.open(source, lambda event: self._on_event(event, source=True))
        tasks = [asyncio.create_task(self._ask(at_source)), asyncio.create_task(self._listen_there(destination))]
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await at_source.close()

    async def seen_running(self) -> None:
        """Wait until the guest was seen to run at the destination.

        Raises:
            TimeoutError: It was not.
        """
        async with asyncio.timeout(SEEN_S):
            await self._resumed.wait()

    def _on_event(self, event: dict[str, Any], *, source: bool) -> None:
        name, data = str(event["event"]), event.get("data", {})
        if name == "MIGRATION":
            name = str(data.get("status"))
        elif name == "MIGRATION_PASS":
            name = f"pass {data.get('pass')}"
        self.events.append(Seen(event_time(event), source, name))
        if source and name == "completed":
            self._completed.set()
        elif not source and name == "RESUME":
            self._resumed.set()

    async def _listen_there(self, path: Path) -> None:
        monitor = await Qmp.open(path, lambda event: self._on_event(event, source=False))
        try:
            await asyncio.Event().wait()
        finally:
            await monitor.close()

    async def _ask(self, source: Qmp) -> None:
        """Ask for the figures before the source is ended; 7.2 may still say 0 right after ``completed``."""
        await self._completed.wait()
        with contextlib.suppress(QmpFailed):
            for _ in range(ASK_AGAIN):
                numbers = Numbers.of(await source.execute("query-migrate"))
                if numbers.total_ms:
                    self.numbers = numbers
                    return
                await asyncio.sleep(ASK_AGAIN_S)
