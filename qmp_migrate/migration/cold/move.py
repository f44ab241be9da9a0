"""Move a guest that is shut down: its disks, where wanted, and its definition. Nothing is started.

The definition is at one place at any moment. It is put to the destination under a name that nobody starts; then, and that is
the hand-over, the source's loses its name; then the destination's gets it. A step is in the journal before it is done:
before the hand-over everything is taken back, after it everything goes forward, whoever takes it up.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from qmp_migrate.errors import Fenced, MigrationCancelled, MigrationFailed, OutcomeUnknown, QmpMigrateError
from qmp_migrate.hosts.process import identify
from qmp_migrate.hosts.scripts import script
from qmp_migrate.migration.cold import definition, storage_qemu
from qmp_migrate.migration.endpoint import cleanup, console
from qmp_migrate.migration.endpoint.endpoint import Side
from qmp_migrate.migration.endpoint.guest_locks import GuestLock
from qmp_migrate.migration.journal.operations import DONE, Operations
from qmp_migrate.migration.model.request import MigrationRequest, MigrationResult
from qmp_migrate.migration.storage import images
from qmp_migrate.migration.storage.disk_plan import DiskCopy
from qmp_migrate.migration.storage.mirror import DiskProgress, DiskStopped, Mirroring
from qmp_migrate.migration.transport import setup
from qmp_migrate.migration.transport.setup import Wires
from qmp_migrate.vm.commandline.command_line import CommandLine

MODE: Final = "shut-down"
"""What the result says of its mode."""

HANDED_OVER: Final = "handing-over"

_STAGE: Final = script("cold/stage")

_UNSTAGE: Final = script("cold/unstage")

_RETIRE: Final = script("cold/retire")

_INSTALL: Final = script("cold/install")

_FORGET: Final = script("cold/forget")


@dataclass(slots=True)
class Moving:
    """One move under way, or one that is being settled.

    Attributes:
        request: What is wanted; its id is the operation's.
        source, destination: The two sides; no QEMU of the guest runs on either.
        command: The source's definition: its images are opened for copying.
        derived: The destination's.
        copies: Disks that are copied.
        operations: Its row is there.
        lock: Held, on both.
        result: Grows.
        cancel: Set it to cancel; obeyed until the hand-over.
        step: The last step that was entered.
    """

    request: MigrationRequest
    source: Side
    destination: Side
    command: CommandLine
    derived: CommandLine
    copies: tuple[DiskCopy, ...]
    operations: Operations
    lock: GuestLock
    result: MigrationResult
    cancel: asyncio.Event
    on_progress: Callable[[DiskProgress], None] = lambda _progress: None
    step: str = "begun"

    async def _enter(self, step: str, **data: Any) -> None:
        await self.operations.enter(self.request.id, step, epoch=self.lock.epoch, **data)
        self.step = step

    async def run(self) -> QmpMigrateError | None:
        """Move it. Returns None once it is defined at the destination alone; else what is to be told.

        Raises:
            asyncio.CancelledError: The caller was cancelled; the definition is at one place.
            Fenced: Another controller has the guest.
        """
        task = asyncio.create_task(self._forward(), name=f"move {self.request.id}")
        failure: QmpMigrateError | None = None
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await asyncio.shield(self.settle(MigrationCancelled("the move was cancelled")))
            raise
        except Fenced:
            raise
        except QmpMigrateError as error:
            failure = error
        return await asyncio.shield(self.settle(failure)) if failure is not None else None

    async def _forward(self) -> None:
        if self.copies:
            await self._enter("copying")
            await self._copy()
        self._checkpoint()
        await self._enter("staging")
        words = [self.destination.directory, self.request.id]
        await self.destination.host.script(_STAGE, words, input=definition.written(self.derived))
        self._checkpoint()
        await self._enter(HANDED_OVER)
        await self._hand_over()

    def _checkpoint(self) -> None:
        if self.cancel.is_set():
            raise MigrationCancelled("the move was cancelled")

    async def _copy(self) -> None:
        """Copy the disks from one QEMU without a machine to another."""
        request, copies = self.request, self.copies
        source, destination = (
            storage_qemu.place(self.source, request.id),
            storage_qemu.place(self.destination, request.id),
        )
        await images.make(self.destination, request.id, copies)
        if images.needs_maker(copies):
            await images.fill(destination, request.id, copies)
        async with (
            storage_qemu.running(destination, storage_qemu.argv(destination, None)),
            storage_qemu.running(source, storage_qemu.argv(source, self.command)),
        ):
            wires, mirroring = Wires(), Mirroring(source, destination, request, copies)
            await setup.survey(source, destination, wires)
            if request.encrypt:
                await setup.place_keys(source, destination, request, wires)
            await mirroring.begin(wires)
            try:
                await mirroring.until_in_step(self.cancel, self.on_progress)
            except DiskStopped:
                raise MigrationCancelled("the move was cancelled") from None
            await mirroring.finish()
            self.result.disk_bytes, self.result.encrypted = mirroring.done_bytes, request.encrypt

    async def _hand_over(self) -> None:
        """From here on forward only; may be run again."""
        source, destination, request = self.source, self.destination, self.request
        await source.host.script(_RETIRE, [source.directory, request.id])
        await destination.host.script(_INSTALL, [destination.directory, request.id])
        await self._enter("installed")
        with self._tolerated("the guest's serial log stayed behind"):
            await console.carry_console_log(source, destination)
        with self._tolerated("the disks' images could not be tidied up"):
            await images.keep(destination, request.id, self.copies)
            self.result.warnings += await images.put_away(source, request.id, self.copies, request.source_images)
        with self._tolerated(f"{source.directory} on {source.name} could not be removed"):
            await source.host.script(_FORGET, [source.directory, request.id])
            await cleanup.remove_guest_directory(source)
        self.result.outcome, self.result.owner = "completed", "destination"
        await self._enter(DONE, outcome="completed", result=self.result.to_dict())

    @contextlib.contextmanager
    def _tolerated(self, what: str) -> Any:
        try:
            yield
        except Fenced:
            raise
        except QmpMigrateError as error:
            self.result.warnings.append(f"{what}: {error}")

    async def _started_meanwhile(self) -> bool:
        """Tell whether somebody has started it at the source before its definition had lost its name there."""
        return await identify(self.source.host, self.source.directory) is not None

    # -- to a proven end, whatever happened -------------------------------------------------------------------------

    async def settle(self, failure: QmpMigrateError) -> QmpMigrateError | None:
        """Bring the definition to one place: back before the hand-over, forward after it.

        Args:
            failure: What happened.

        Returns:
            What is to be told; None: it is at the destination.

        Raises:
            Fenced: Another controller has the guest.
        """
        result, request = self.result, self.request
        try:
            for side in (self.source, self.destination):
                await side.host.connect()
                await storage_qemu.end(storage_qemu.place(side, request.id))
            if self.step == "installed" or (self.step == HANDED_OVER and not await self._started_meanwhile()):
                await self._hand_over()
                result.warnings.append(f"went on after: {failure.message}")
                return None
            result.warnings += await images.remove(self.destination, request.id, self.copies)
            await self.destination.host.script(_UNSTAGE, [self.destination.directory, request.id])
        except Fenced:
            raise
        except QmpMigrateError as error:
            result.outcome, result.owner = "unknown", "unknown"
            final: QmpMigrateError = OutcomeUnknown(
                f"{failure.message}; the move of {request.vm} could not be settled: {error.message}",
                hint=f"it is started nowhere meanwhile; when both hosts answer: qmp-migrate recover {request.id}",
                host=error.host,
            )
            result.error = final.to_dict()
            return final
        cancelled = isinstance(failure, MigrationCancelled)
        result.outcome, result.owner = ("cancelled" if cancelled else "rolled_back"), "source"
        text = f"{failure.message}; {request.vm} is defined on {self.source.name}, as before"
        final = (
            MigrationCancelled(text, host=self.source.name)
            if cancelled
            else MigrationFailed(text, safe_at_source=True, code=failure.code, hint=failure.hint, host=failure.host)
        )
        result.error = final.to_dict()
        try:
            await self._enter(DONE, outcome=result.outcome, result=result.to_dict())
        except Fenced:
            raise
        except QmpMigrateError as error:
            result.warnings.append(f"the end of this move is not in the journal: {error}")
        return final
