"""Guests that are shut down: where they are defined, moved from host to host, started again from there."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from qmp_migrate.errors import ConfigError, GuestExists, MigrationFailed, PreflightRefused, QmpMigrateError
from qmp_migrate.fleet import guests
from qmp_migrate.fleet.guests import Guest
from qmp_migrate.fleet.inventory import Inventory
from qmp_migrate.hosts.process import identify, launch
from qmp_migrate.migration.cold import definition
from qmp_migrate.migration.cold.move import MODE, Moving
from qmp_migrate.migration.endpoint import guest_locks
from qmp_migrate.migration.endpoint.endpoint import Side
from qmp_migrate.migration.endpoint.guest_locks import GuestLock
from qmp_migrate.migration.journal.operations import Operation, Operations
from qmp_migrate.migration.model.progress import ProgressMeter
from qmp_migrate.migration.model.reporter import Progress
from qmp_migrate.migration.model.request import MigrationRequest, MigrationResult
from qmp_migrate.migration.preflight.planner import Plan
from qmp_migrate.migration.storage.disk_plan import DiskCopy
from qmp_migrate.migration.storage.mirror import DiskProgress
from qmp_migrate.settings import Limits
from qmp_migrate.vm.commandline.command_line import CommandLine


async def find_defined(inventory: Inventory, vm: str, *, on: str | None = None) -> Side | None:
    """Return the one host that a shut-down guest is defined on; None where there is none.

    Args:
        inventory: The hosts.
        vm: The guest.
        on: Only this host.

    Raises:
        ConfigError: More than one.
        TransportError, CommandFailed: The host that was named cannot be asked.
    """

    async def ask(side: Side) -> Side | None:
        try:
            await side.host.connect()
            return side if await definition.is_defined(side) else None
        except QmpMigrateError:
            if on is not None:
                raise
            return None

    names = [on] if on is not None else list(inventory.settings.hosts)
    answers = await asyncio.gather(*(ask(inventory.side(name, vm)) for name in names))
    found = [side for side in answers if side is not None]
    if len(found) > 1:
        hosts = ", ".join(sorted(side.name for side in found))
        raise ConfigError(f"{vm!r} is shut down and defined on more than one host: {hosts}", hint="say --from HOST")
    return found[0] if found else None


async def start(inventory: Inventory, vm: str, on: str) -> Guest:
    """Start a guest that is defined on a host.

    Raises:
        GuestUnknown: It is not defined there.
        GuestExists: A host that answers runs it.
        LockBusy: Another controller holds it.
        LaunchFailed: QEMU did not start; carries its standard error.
    """
    side = inventory.side(on, vm)
    await side.host.connect()
    found, _unreachable = await guests.look_for([inventory.side(name, vm) for name in inventory.settings.hosts])
    if found:
        raise GuestExists(
            f"a guest named {vm} is already on {found[0].name}", hint="see: qmp-migrate vm list", host=found[0].name
        )
    lock = await guest_locks.hold(side, "vm start")
    try:
        command = definition.bootable(await definition.read(side))
        side.process = await launch(
            side.host, directory=side.directory, argv=command.argv(), timeout=side.launch_limit_s
        )
        await guests.see_it_up(side)
        return await guests.look_at(side)
    finally:
        with contextlib.suppress(QmpMigrateError):
            await lock.release()


async def move(
    request: MigrationRequest,
    plan: Plan,
    source: Side,
    destination: Side,
    operations: Operations,
    result: MigrationResult,
    cancel: asyncio.Event,
    on_progress: Callable[[Progress], None],
) -> None:
    """Move a shut-down guest; see `qmp_migrate.migration.cold.move`. `on_progress` is told how far its disks are.

    Raises:
        PreflightRefused: A check failed; nothing was touched.
        MigrationFailed, MigrationCancelled: It is defined where it was.
        OutcomeUnknown: It is on its way: startable nowhere, until `recover`.
        LockBusy: Another controller holds it.
    """
    if plan.refused:
        raise PreflightRefused(
            f"{request.vm} cannot be moved to {request.destination}: {plan.refused[0]}"
            + (f" (and {len(plan.refused) - 1} more)" if len(plan.refused) > 1 else ""),
            failures=plan.refused,
            hint="nothing was touched; see: qmp-migrate check",
            host=request.destination,
        )
    result.warnings += [check.text for check in plan.checks if check.status == "warn"]
    async with _holding(source, destination, request.id) as lock:
        if await identify(source.host, source.directory) is not None:
            raise MigrationFailed(
                f"{request.vm} was started on {source.name} just now; nothing was done",
                safe_at_source=True,
                code="started_meanwhile",
                host=source.name,
            )
        command = definition.bootable(await definition.read(source))
        data: dict[str, Any] = {
            "destination": destination.name,
            "command": command.argv(),
            "derived": plan.derived.command.argv(),
            "copies": [copy.to_dict() for copy in plan.copies],
            "asked": request.asked,
        }
        await operations.begin(request.id, "move", request.vm, source.name, data)
        meter, begun = ProgressMeter(request.id), time.monotonic()

        def on_disks(disks: DiskProgress) -> None:
            elapsed_ms = round((time.monotonic() - begun) * 1000)
            on_progress(meter.read_disks(disks.done, disks.total, elapsed_ms=elapsed_ms))

        moving = Moving(
            request,
            source,
            destination,
            command,
            plan.derived.command,
            plan.copies,
            operations,
            lock,
            result,
            cancel,
            on_disks,
        )
        error = await moving.run()
    if error is not None:
        raise error


async def recover(
    operation: Operation, source: Side, destination: Side, operations: Operations, lock: GuestLock, limits: Limits
) -> tuple[MigrationResult, QmpMigrateError | None]:
    """Settle a move whose controller is gone; the guest's locks are held.

    Returns:
        The result document's object, and what is to be told: None where it is at the destination.
    """
    data = operation.data
    request = MigrationRequest.again(
        data["asked"],
        vm=operation.vm,
        destination=destination.name,
        source=source.name,
        mode="live",
        limits=limits,
        id=operation.id,
    )
    result = MigrationResult(operation.id, operation.vm, source.name, destination.name, MODE)
    moving = Moving(
        request,
        source,
        destination,
        CommandLine.parse(data["command"]),
        CommandLine.parse(data["derived"]),
        tuple(DiskCopy.of(copy) for copy in data["copies"]),
        operations,
        lock,
        result,
        asyncio.Event(),
        step=operation.step,
    )
    gone = MigrationFailed(
        f"the controller of this move is gone (it was at: {operation.step})",
        safe_at_source=True,
        code="controller_gone",
        hint="move it again when you like",
    )
    return result, await moving.settle(gone)


@contextlib.asynccontextmanager
async def _holding(source: Side, destination: Side, id: str) -> AsyncIterator[GuestLock]:
    """Act under the guest's locks, on both hosts."""
    lock = await guest_locks.take(source, destination, f"move {id}")
    async with held(lock, source, destination):
        yield lock


@contextlib.asynccontextmanager
async def held(lock: GuestLock, *sides: Side) -> AsyncIterator[None]:
    """Put the lock's fence between this controller and the hosts, and give the lock back in the end."""
    bare = [side.host for side in sides]
    for side in sides:
        side.host = lock.fence(side)
    try:
        yield
    finally:
        for side, host in zip(sides, bare, strict=True):
            side.host = host
        await lock.release()
