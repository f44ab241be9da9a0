"""One run of the passes between two fake QEMUs, step by step as a test says."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from qmp_migrate.errors import QmpMigrateError
from qmp_migrate.migration.model.reporter import Progress
from qmp_migrate.migration.model.request import MigrationRequest
from qmp_migrate.migration.precopy.runner import Copying
from tests.support.fakes.fake_endpoints import side_of
from tests.support.fakes.fake_qemu import FakeQemu


@dataclass
class Rig:
    """Two fake QEMUs and one run of the passes between them."""

    source: FakeQemu
    destination: FakeQemu
    cancel: asyncio.Event = field(default_factory=asyncio.Event)
    progress: list[Progress] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    refuses: QmpMigrateError | None = None
    copying: Copying = field(init=False)
    task: asyncio.Task[None] = field(init=False)
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def start(self, *, one_pass: bool = False, **wanted: Any) -> Copying:
        """Begin; return once `migrate` has arrived at the source, or it has ended before that."""
        copying = self.copying = Copying(
            source=side_of("a", self.source),
            destination=side_of("b", self.destination),
            request=MigrationRequest("web1", "b", "a", **wanted),
            one_pass=one_pass,
            cancel=self.cancel,
            on_progress=self.progress.append,
            on_step=self.told.append,
            on_near_end=lambda: self.told.append("near end"),
            on_stopped=lambda: self.told.append("stopped"),
            on_held=self._held,
            on_stop=self._stops,
            on_postcopy=self._turns,
            on_postcopy_refused=self._refused,
            on_cancel_refused=lambda: self.told.append("cancel refused"),
        )

        await self.stack.enter_async_context(copying.watching())
        self.task = asyncio.create_task(copying.run("10.0.0.2", 49152))
        await self.unless_ended(self.source.until_asked("migrate"))
        return copying

    async def _held(self) -> None:
        self.told.append("held")
        if self.refuses is not None:
            raise self.refuses

    async def _stops(self, reason: str) -> None:
        self.told.append(f"will stop: {reason}")

    async def _turns(self, reason: str) -> None:
        self.told.append(f"will turn: {reason}")

    async def _refused(self) -> None:
        self.told.append("no post-copy")

    async def unless_ended(self, wait: Coroutine[Any, Any, None]) -> None:
        """Wait for something, or for the end of the copying if that comes first."""
        waiting = asyncio.create_task(wait)
        await asyncio.wait({self.task, waiting}, return_when="FIRST_COMPLETED")
        waiting.cancel()

    async def end(self, seconds: float = 5) -> None:
        """Wait for its end; raise what it raises."""
        await asyncio.wait_for(self.task, seconds)

    @property
    def ended(self) -> bool:
        return self.task.done()

    def says(self, qemu: FakeQemu, *events: str) -> None:
        """Emit events: ``STOP``, ``PASS 2``, or a migration status in lower case."""
        for event in events:
            word, _, number = event.partition(" ")
            if word == "PASS":
                qemu.emit("MIGRATION_PASS", {"pass": int(number)})
            elif word.isupper():
                qemu.emit(word)
            else:
                qemu.emit("MIGRATION", {"status": word})

    async def read(self) -> None:
        """Return once everything that was emitted so far has been dealt with."""
        for side in (self.copying.source, self.copying.destination):
            monitor = await side.attach()
            await monitor.execute("query-version")
        for _ in range(20):  # more turns of the loop than an event takes to get through
            await asyncio.sleep(0)

    async def numbers(self, reply: dict[str, Any]) -> None:
        """Let the source say these numbers from now on, and return when they have been dealt with."""
        self.source.on("query-migrate", reply)
        polls = len(self.source.asked("query-migrate"))
        for more in (1, 2):
            self.says(self.source, "PASS 1")  # a pass that begins is a reason to look
            await self.unless_ended(self.source.until_asked("query-migrate", polls + more))
        if not self.ended:
            await self.read()
