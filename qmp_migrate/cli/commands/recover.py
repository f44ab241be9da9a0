"""``recover``: settle migrations whose controller is gone."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from qmp_migrate.cli.context import Context, fail, put, run, say, tell
from qmp_migrate.errors import LockBusy, OutcomeUnknown, QmpMigrateError, TransportError

if TYPE_CHECKING:
    from qmp_migrate.fleet.controller import Controller
    from qmp_migrate.migration.journal.operations import Operation
    from qmp_migrate.migration.journal.store import MigrationRecord
    from qmp_migrate.migration.lifecycle.recovery import Wish
    from qmp_migrate.migration.model.request import MigrationResult

AGAIN_S: Final = 2.0
"""With ``--wait``: how long between two tries."""


def recover(
    context: typer.Context,
    migration: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="One migration; default: all that were left.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Go on trying until it is settled.")] = False,
    back: Annotated[bool, typer.Option("--back", help="Rather back to the source than on to the destination.")] = False,
    fenced: Annotated[
        list[str] | None,
        typer.Option("--fenced", metavar="HOST", help="You have proof that this host is switched off; repeatable."),
    ] = None,
    owner: Annotated[
        str | None,
        typer.Option(
            "--owner", metavar="SIDE", help="source or destination: which copy is to be the guest, if parked."
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON to standard output.")] = False,
) -> None:
    """Settle what a lost controller has left: one proven owner.

    A copy that still runs in QEMU is driven on. Where no owner can be proven, it tells what is known.
    Exit code 0: every guest has one proven owner.
    """
    code = run(_recover(context.obj, migration, wait, _wish(back, fenced, owner, migration, json), json), as_json=json)
    if code:
        raise typer.Exit(code)


def _wish(back: bool, fenced: list[str] | None, owner: str | None, migration: str | None, json: bool) -> Wish:
    from qmp_migrate.errors import UsageError
    from qmp_migrate.migration.lifecycle.recovery import Wish

    if owner not in {None, "source", "destination"}:
        fail(
            UsageError(f"--owner {owner} is not possible", hint="say: --owner source, or: --owner destination"),
            as_json=json,
        )
    if (owner or fenced) and migration is None:
        fail(
            UsageError("--owner and --fenced are said of one migration", hint="name it: qmp-migrate recover ID"),
            as_json=json,
        )
    return Wish(back=back, fenced=frozenset(fenced or ()), owner=owner)  # type: ignore[arg-type]  # checked above


async def _recover(options: Context, migration: str | None, wait: bool, wish: Wish, json: bool) -> int:
    from qmp_migrate.cli.render import RecoveryView
    from qmp_migrate.fleet.controller import Controller

    view = RecoveryView(say())
    async with Controller.open(options.settings(), reporters=[view]) as controller:
        for host in wish.fenced:
            controller.settings.host(host)
        records, operations = await _named(controller, migration)
        if not records and not operations:
            say().print("nothing to recover: no migration was left by its controller (under way: qmp-migrate status)")
        ends = [await _one(controller, record, wish, wait) for record in records]
        others = [await _operation(controller, operation, wait) for operation in operations]
    if json:
        found = {"migrations": [document for document, _ in ends], "operations": [document for document, _ in others]}
        put({"schema": "recoveries/1", **found})
    codes = [code for _, code in [*ends, *others] if code]
    return OutcomeUnknown.exit_code if OutcomeUnknown.exit_code in codes else max(codes, default=0)


async def _named(controller: Controller, id: str | None) -> tuple[list[MigrationRecord], list[Operation]]:
    """Return what is to be settled: the one that was named, or all that was left."""
    from qmp_migrate.migration.journal.operations import either

    if id is None:
        return await controller.unsettled(), await controller.unsettled_operations()
    return await either(controller.journal, id)


async def _operation(controller: Controller, operation: Operation, wait: bool) -> tuple[dict[str, Any], int]:
    """Settle one save, restore or move; return its document and the exit code that it stands for."""
    console, told = say(), ""
    console.print(f"{operation.kind} {operation.id} of {operation.vm}: asking {operation.host}")
    while True:
        try:
            result, error = await controller.recover_operation(operation)
        except (LockBusy, TransportError) as failure:
            result, error = None, failure
        if result is not None and result.owner != "unknown":
            place = _place(operation, result)
            console.print(f"{operation.kind} {operation.id} of {operation.vm}: {result.outcome}; {place}", markup=False)
            for line in [*([f"because: {error.message}"] if error else []), *result.warnings]:
                console.print(line, markup=False)
            return result.to_dict(), 0
        assert error is not None
        if str(error) != told:
            told = str(error)
            tell(error)
        if not wait:
            return result.to_dict() if result is not None else {"error": error.to_dict()}, error.exit_code
        await asyncio.sleep(AGAIN_S)


def _place(operation: Operation, result: Any) -> str:
    """Say where a guest is after an operation was settled."""
    if result.owner == "file":
        return f"the guest is in {result.file}"
    if result.owner == "none":
        return "the guest runs nowhere"
    there = operation.data.get("destination", operation.host)
    return f"the guest is on {there if result.owner == 'destination' else operation.host}"


async def _one(controller: Controller, record: MigrationRecord, wish: Wish, wait: bool) -> tuple[dict[str, Any], int]:
    """Settle one; return its document and the exit code that it stands for."""
    console, told = say(), ""
    console.print(f"migration {record.id} of {record.vm}: asking {record.source} and {record.destination}")
    while True:
        try:
            result = await controller.recover(record, wish)
        except (OutcomeUnknown, LockBusy, TransportError) as error:
            if str(error) != told:
                told = str(error)
                tell(error)
            if not wait:
                return _document(record, error), error.exit_code
            await asyncio.sleep(AGAIN_S)
            record = await controller.journal.get(record.id)
            continue
        console.print(f"migration {record.id} of {record.vm}: {result.outcome}; {_where(result)}")
        if result.error is not None:
            console.print(f"because: {result.error['message']}", markup=False)
        for warning in result.warnings:
            console.print(f"warning: {warning}", markup=False)
        return result.to_dict(), 0


def _where(result: MigrationResult) -> str:
    host = {"source": result.source, "destination": result.destination}.get(result.owner)
    return f"the guest is on {host}" if host else "the guest runs nowhere"


def _document(record: MigrationRecord, error: QmpMigrateError) -> dict[str, Any]:
    from qmp_migrate.migration.model.request import MigrationResult

    if isinstance(error.result, MigrationResult):
        return error.result.to_dict()
    result = MigrationResult(record.id, record.vm, record.source, record.destination, record.mode)
    result.outcome, result.owner, result.error = "unknown", "unknown", error.to_dict()
    return result.to_dict()
