"""The same eyes for everybody: an extra monitor on both QEMUs that only listens, and asks the source once at the end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

from bench.measure.qmp import Qmp, QmpFailed, event_time
from bench.measure.samples import Numbers

FINISH_S: Final = 10.0
ASK_AGAIN: Final = 40
ASK_AGAIN_S: Final = 0.005


class Observer:
    """What both QEMUs did, by their own clocks (they are on one machine, so it is one clock).

    Attributes:
        active_at, stopped_at, completed_at: The source's, seconds since the epoch; None: not yet.
        resumed_at: The destination's.
        numbers: The source's own figures; None: not yet.
    """

    def __init__(self, on_active: Callable[[], None], on_stopped: Callable[[], None]) -> None:
        self.active_at: float | None = None
        self.stopped_at: float | None = None
        self.completed_at: float | None = None
        self.resumed_at: float | None = None
        self.numbers: Numbers | None = None
        self._on_active = on_active
        self._on_stopped = on_stopped
        self._completed = asyncio.Event()
        self._resumed = asyncio.Event()

    @classmethod
    @contextlib.asynccontextmanager
    async def watching(
        cls, source: Path, destination: Path, *, on_active: Callable[[], None], on_stopped: Callable[[], None]
    ) -> AsyncIterator[Observer]:
        """Listen to the source now, and to the destination as soon as it is there.

        Args:
            source: The observer's socket at the source.
            destination: The one that the destination will make.
            on_active: Called when copying begins.
            on_stopped: Called when the source stops the guest.
        """
        self = cls(on_active, on_stopped)
        at_source = await Qmp.open(source, self._on_source)
        tasks = [asyncio.create_task(self._ask(at_source)), asyncio.create_task(self._listen_there(destination))]
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await at_source.close()

    async def finish(self) -> None:
        """Wait until the guest was seen to run at the destination.

        Raises:
            TimeoutError: It was not.
        """
        async with asyncio.timeout(FINISH_S):
            await self._resumed.wait()

    @property
    def blackout_ms(self) -> float | None:
        """STOP to RESUME, milliseconds."""
        if self.stopped_at is None or self.resumed_at is None:
            return None
        return round((self.resumed_at - self.stopped_at) * 1000, 2)

    @property
    def handover_ms(self) -> float | None:
        """The source's ``completed`` to RESUME, milliseconds; below 0 where the destination did not wait for it."""
        if self.completed_at is None or self.resumed_at is None:
            return None
        return round((self.resumed_at - self.completed_at) * 1000, 2)

    @property
    def copying_ms(self) -> float | None:
        """``active`` to STOP, milliseconds."""
        if self.active_at is None or self.stopped_at is None:
            return None
        return round((self.stopped_at - self.active_at) * 1000, 2)

    def _on_source(self, event: dict[str, Any]) -> None:
        match event["event"], event.get("data", {}).get("status"):
            case "STOP", _:
                self.stopped_at = event_time(event)
                self._on_stopped()
            case "MIGRATION", "active":
                self.active_at = event_time(event)
                self._on_active()
            case "MIGRATION", "completed":
                self.completed_at = event_time(event)
                self._completed.set()

    def _on_destination(self, event: dict[str, Any]) -> None:
        if event["event"] == "RESUME" and self.resumed_at is None:
            self.resumed_at = event_time(event)
            self._resumed.set()

    async def _listen_there(self, path: Path) -> None:
        monitor = await Qmp.open(path, self._on_destination)
        try:
            await asyncio.Event().wait()
        finally:
            await monitor.close()

    async def _ask(self, source: Qmp) -> None:
        """Ask for the source's figures, before its owner ends it; 7.2 may still say 0 right after ``completed``."""
        await self._completed.wait()
        with contextlib.suppress(QmpFailed):
            for _ in range(ASK_AGAIN):
                numbers = Numbers.of(await source.execute("query-migrate"))
                if numbers.total_ms and numbers.downtime_ms:
                    self.numbers = numbers
                    return
                await asyncio.sleep(ASK_AGAIN_S)
