"""What is done with guests beside migrating them live: saved to files, restored; and what a gone controller left of it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any

from qmp_migrate.errors import GuestExists, LockBusy, QmpMigrateError, UsageError
from qmp_migrate.fleet import cold_guests, guests
from qmp_migrate.fleet.guests import Guest
from qmp_migrate.fleet.inventory import Inventory
from qmp_migrate.hosts.process import ProcessId, command_line, identify
from qmp_migrate.migration.cold import plan
from qmp_migrate.migration.cold.move import MODE
from qmp_migrate.migration.endpoint import guest_locks
from qmp_migrate.migration.endpoint.endpoint import Side
from qmp_migrate.migration.endpoint.guest_locks import GuestLock
from qmp_migrate.migration.endpoint.launch import built_as, launch_over
from qmp_migrate.migration.journal.operations import Operation, Operations
from qmp_migrate.migration.model.reporter import Progress
from qmp_migrate.migration.model.request import MigrationRequest, MigrationResult
from qmp_migrate.migration.preflight.planner import Plan
from qmp_migrate.migration.savefile import restore_plan, save_plan
from qmp_migrate.migration.savefile.restore import Restoring
from qmp_migrate.migration.savefile.restore_completion import RestoreEnding
from qmp_migrate.migration.savefile.restore_request import RestoreRequest, RestoreResult
from qmp_migrate.migration.savefile.save import Saving
from qmp_migrate.migration.savefile.save_completion import SaveEnding
from qmp_migrate.migration.savefile.save_request import CHANNELS, FormatChoice, SaveRequest, SaveResult
from qmp_migrate.vm.names import validate_name

Tell = Callable[[str], None]
OnPlan = Callable[[Plan], None]


def _silent(_line: str) -> None:
    """Tell nobody."""


@dataclass(slots=True)
class Operating(Inventory):
    """Saves, restores, and the operations in the journal."""

    @property
    def operations(self) -> Operations:
        """The operations in the journal."""
        return Operations(self.journal)

    async def save(
        self,
        vm: str | SaveRequest,
        path: str = "",
        *,
        on: str | None = None,
        format: FormatChoice = "auto",
        channels: int | None = None,
        tell: Tell = _silent,
    ) -> SaveResult:
        """Save a guest to a file on its host and end its QEMU; `restore` brings it back.

        Args:
            vm: The guest's name, or a whole request.
            path: The file, absolute, on the guest's host; must not be there. Disks are not in it.
            on: The host, where two have a guest of that name.
            format: See `SaveRequest`.
            channels: Likewise.
            tell: Called with one line for each thing that happens.

        Returns:
            The result: the guest is in the file.

        Raises:
            PreflightRefused: It cannot be saved; nothing was touched.
            MigrationFailed: It goes on at its host where the error says so.
            OutcomeUnknown: It cannot be proven who has the guest.
            LockBusy: Another controller holds it.
            QmpMigrateError: Something could not be asked.
        """
        if isinstance(vm, SaveRequest):
            request = vm
        else:
            request = SaveRequest(vm, path, format, CHANNELS if channels is None else channels)
        await self._settle_earlier(request.vm)
        begun = time.monotonic()
        side = await self.find(request.vm, on=on)
        result = SaveResult(request.id, request.vm, side.name, request.path)
        try:
            plan = await save_plan.look(request, side, self.journal)
            result.format, result.channels = plan.document.format, plan.document.channels
            result.direct_io, result.warnings = plan.direct and plan.document.channels > 0, list(plan.warnings)
            assert side.process is not None
            data: dict[str, Any] = {
                "path": request.path,
                "format": request.format,
                "channels": request.channels,
                "running": plan.document.running,
                "process": side.process.words,
            }
            async with _holding(side, f"save {request.id}") as lock:
                await self.operations.begin(request.id, "save", request.vm, side.name, data)
                saving = Saving(request, side, self.operations, lock, result, tell, plan.document.running)
                error = await saving.run(plan)
            if error is not None:
                raise error
            return result
        except QmpMigrateError as error:
            result.error = result.error or error.to_dict()
            error.result = result
            raise
        finally:
            result.total_ms = round((time.monotonic() - begun) * 1000)
            await side.detach()

    async def restore_file(
        self,
        path: str | RestoreRequest,
        *,
        on: str = "",
        paused: bool = False,
        force: bool = False,
        keep: bool = False,
        tell: Tell = _silent,
    ) -> RestoreResult:
        """Restore a guest from a state file. Afterwards the file is gone: it must not be restored twice.

        Args:
            path: The file, absolute, on the host; or a whole request.
            on: The host: the one it was saved on, or another one that has the file and the guest's disks.
            paused: Do not let the guest go on.
            force: Restore although the disks have changed since.
            keep: Keep the file, under another name.
            tell: Called with one line for each thing that happens.

        Returns:
            The result: the guest is on the host.

        Raises:
            FileFailed, ConfigError: It is no whole state file.
            PreflightRefused: It cannot be restored there; nothing was touched.
            GuestExists: The guest is on a host already.
            MigrationFailed: It could not be; the message says where the guest is: in the file, as before, most likely.
            OutcomeUnknown: It cannot be proven who has the guest.
            LockBusy: Another controller holds it.
        """
        if isinstance(path, RestoreRequest):
            request = path
        else:
            request = RestoreRequest(path, on, paused=paused, force=force, keep=keep)
        begun = time.monotonic()
        host = self.host(request.host)
        await host.connect()
        document, stamp = await restore_plan.read_document(self.side(request.host, "any"), request.path)
        await self._settle_earlier(document.vm)
        side = self.side(request.host, document.vm)
        result = RestoreResult(request.id, document.vm, side.name, request.path, bytes=document.state_bytes)
        try:
            unseen = await self._nowhere_else(document.vm)
            origin = self.settings.hosts.get(document.host)
            plan = await restore_plan.look(
                document, stamp, request.path, side, origin, self.journal, force=request.force
            )
            result.warnings = [*plan.warnings, *(f"whether it runs there cannot be asked: {line}" for line in unseen)]
            wants_running = document.running and not request.paused
            data: dict[str, Any] = {
                "path": request.path,
                "stamp": stamp,
                "wants_running": wants_running,
                "keep": request.keep,
            }
            async with _holding(side, f"restore {request.id}") as lock:
                restoring = Restoring(
                    request, side, self.operations, lock, result, stamp, wants_running=wants_running, tell=tell
                )
                await restoring.verify(plan)
                await self.operations.begin(request.id, "restore", document.vm, side.name, data)
                error = await restoring.run(plan)
            if error is not None:
                raise error
            return result
        except QmpMigrateError as error:
            result.error = result.error or error.to_dict()
            error.result = result
            raise
        finally:
            result.total_ms = round((time.monotonic() - begun) * 1000)
            await side.detach()

    async def _nowhere_else(self, vm: str) -> list[str]:
        """Refuse a guest that a host has already; return the hosts that could not be asked, one line each."""
        found, unreachable = await guests.look_for([self.side(name, vm) for name in self.settings.hosts])
        if found:
            raise GuestExists(
                f"a guest named {vm} is already on {found[0].name}",
                hint="a guest is on one host at a time: stop that one first, if it is another one",
                host=found[0].name,
            )
        return unreachable

    # -- guests that are shut down ----------------------------------------------------------------------------------

    async def start_defined(self, vm: str, *, on: str) -> Guest:
        """Start a guest that is shut down, from its definition on a host; see `cold_guests.start`."""
        validate_name(vm, "guest name")
        await self._settle_earlier(vm)
        return await cold_guests.start(self, vm, on)

    async def plan_shut_down(self, request: MigrationRequest) -> tuple[Plan, Side, Side] | None:
        """Look at what moving a shut-down guest would need; None where no host has a definition of it.

        Raises:
            UsageError: It is at the destination already.
            GuestExists: A host runs it.
            ConfigError, TransportError, RemoteError, MonitorError: Something could not be read or asked.
        """
        source = await cold_guests.find_defined(self, request.vm, on=request.source)
        if source is None:
            return None
        if source.name == request.destination:
            raise UsageError(f"{request.vm} is already on {request.destination}, shut down", host=source.name)
        await self._nowhere_else(request.vm)
        destination = self.side(request.destination, request.vm)
        await destination.host.connect()
        request = replace(request, id="d" + request.id[1:])
        return await plan.look(request, source, destination, self.journal), source, destination

    async def _move_shut_down(
        self,
        request: MigrationRequest,
        result: MigrationResult,
        cancel: asyncio.Event,
        on_plan: OnPlan | None,
        on_progress: Callable[[Progress], None],
    ) -> MigrationResult | None:
        """Move a shut-down guest; None where there is none of that name. Raises as `cold_guests.move` does."""
        begun = time.monotonic()
        planned = await self.plan_shut_down(request)
        if planned is None:
            return None
        plan, source, destination = planned
        request = replace(request, id="d" + request.id[1:])
        result.id, result.source, result.mode = request.id, source.name, MODE
        try:
            if on_plan is not None:
                on_plan(plan)
            await cold_guests.move(request, plan, source, destination, self.operations, result, cancel, on_progress)
        finally:
            result.total_ms = round((time.monotonic() - begun) * 1000)
        return result

    # -- what was left --------------------------------------------------------------------------------------------

    async def unsettled_operations(self, *, vm: str | None = None) -> list[Operation]:
        """Return the saves, restores and moves that have not ended and that no living controller drives, oldest first."""
        return [operation for operation in await self.operations.unsettled(vm=vm) if operation.left]

    async def _settle_earlier(self, vm: str) -> None:
        for operation in await self.unsettled_operations(vm=vm):
            with contextlib.suppress(UsageError):
                result, error = await self.recover_operation(operation)
                if error is not None and result.owner == "unknown":
                    raise error

    async def recover_operation(self, found: str | Operation) -> tuple[Any, QmpMigrateError | None]:
        """Settle a save, a restore or a move whose controller is gone.

        Args:
            found: Its id, a unique beginning of it, or its row.

        Returns:
            The result document's object, and what is to be told: None where it has completed.

        Raises:
            MigrationUnknown: There is none.
            UsageError: It has ended already.
            LockBusy: A controller is at work on it.
            TransportError: Its host does not answer.
        """
        operation = found if isinstance(found, Operation) else await self.operations.get(found)
        _check_left(operation)
        if operation.kind == "move":
            return await self._recover_move(operation)
        side = self.side(operation.host, operation.vm)
        await side.host.connect()
        try:
            async with _holding(side, f"{operation.kind} {operation.id}") as lock:
                operation = await self.operations.get(
                    operation.id
                )  # only now: it may have gone on until its lock ended
                _check_left(operation)
                await self.operations.enter(operation.id, operation.step, epoch=lock.epoch)
                if operation.kind == "save":
                    return await self._recover_save(operation, side, lock)
                return await self._recover_restore(operation, side, lock)
        finally:
            await side.detach()

    async def _recover_move(self, operation: Operation) -> tuple[MigrationResult, QmpMigrateError | None]:
        source = self.side(operation.host, operation.vm)
        destination = self.side(operation.data["destination"], operation.vm)
        for side in (source, destination):
            await side.host.connect()
        lock = await guest_locks.take(source, destination, f"move {operation.id}")
        async with cold_guests.held(lock, source, destination):
            operation = await self.operations.get(operation.id)
            _check_left(operation)
            await self.operations.enter(operation.id, operation.step, epoch=lock.epoch)
            limits = self.settings.watchdog.limits
            return await cold_guests.recover(operation, source, destination, self.operations, lock, limits)

    async def _recover_save(
        self, operation: Operation, side: Side, lock: GuestLock
    ) -> tuple[SaveResult, QmpMigrateError | None]:
        data = operation.data
        request = SaveRequest(operation.vm, data["path"], data["format"], data["channels"], operation.id)
        result = SaveResult(operation.id, operation.vm, side.name, request.path)
        side.process = ProcessId.of(data["process"])
        ending = SaveEnding(
            request,
            side,
            self.operations,
            lock,
            result,
            _silent,
            was_running=data["running"],
            step=operation.step,
            stamp=data.get("stamp", ""),
            before=data.get("before", {}),
        )
        return result, await ending.settle_and_end(None, recovering=True)

    async def _recover_restore(
        self, operation: Operation, side: Side, lock: GuestLock
    ) -> tuple[RestoreResult, QmpMigrateError | None]:
        data = operation.data
        request = RestoreRequest(data["path"], side.name, keep=data["keep"], id=operation.id)
        result = RestoreResult(operation.id, operation.vm, side.name, request.path)
        # One that died while it launched has left no word of the process: what was started there with its command line is it.
        if "process" in data:
            side.process = ProcessId.of(data["process"])
        elif operation.step != "begun" and await launch_over(side):
            found = await identify(side.host, side.directory)
            if found is not None and built_as(await command_line(side.host, found), data["argv"]):
                side.process = found
        ending = RestoreEnding(
            request,
            side,
            self.operations,
            lock,
            result,
            data["stamp"],
            wants_running=data["wants_running"],
            tell=_silent,
            step=operation.step,
        )
        return result, await ending.settle_and_end(None, recovering=True)


def _check_left(operation: Operation) -> None:
    if operation.outcome is not None:
        raise UsageError(f"{operation.id} has ended already: {operation.outcome}", hint="see: qmp-migrate history")
    if not operation.left:
        raise LockBusy(
            f"{operation.id} is driven by process {operation.controller.get('pid')} on this machine",
            hint="let it end; if that process hangs, end it (kill -9) and try again",
        )


@contextlib.asynccontextmanager
async def _holding(side: Side, purpose: str) -> AsyncIterator[GuestLock]:
    """Act under the guest's lock: the host refuses what this controller asks once another one has the guest."""
    lock = await guest_locks.take_at(side, purpose)
    bare = side.host
    side.host = lock.fence(side)
    try:
        yield lock
    finally:
        side.host = bare
        await lock.release()
