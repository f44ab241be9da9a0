"""``cancel``, ``status``, ``history`` and ``report``: migrations that are under way, or over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from qmp_migrate.cli.commands.recover import recover
from qmp_migrate.cli.context import Context, data, put, run, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qmp_migrate.migration.journal.operations import Operation
    from qmp_migrate.migration.journal.store import Entry, MigrationRecord

Id = Annotated[str, typer.Argument(metavar="ID", help="A migration's id, or a unique beginning of it.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to standard output.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (cancel, status, recover, history, report):
        app.command()(command)


def cancel(context: typer.Context, migration: Id, json: Json = False) -> None:
    """Cancel a migration of another process, and wait for its end."""

    async def work() -> MigrationRecord:
        from qmp_migrate.fleet.controller import Controller

        options: Context = context.obj
        async with Controller.open(options.settings()) as controller:
            return await controller.cancel(migration)

    record = run(work(), as_json=json)
    if json:
        put(_record_document(record))
    else:
        host = {"source": record.source, "destination": record.destination}.get(record.owner or "")
        where = f"the guest is on {host}" if host else f"the guest's owner: {record.owner}"
        say().print(f"migration {record.id} of {record.vm}: {record.outcome}; {where}")
    if record.outcome == "completed":
        raise typer.Exit(1)


def _with_journal(context: typer.Context, work: Any, *, json: bool) -> Any:
    async def call() -> Any:
        from qmp_migrate.migration.journal.store import Journal

        options: Context = context.obj
        async with await Journal.open(options.settings().controller.state) as journal:
            return await work(journal)

    return run(call(), as_json=json)


def status(
    context: typer.Context,
    migration: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="One migration; default: all under way.")
    ] = None,
    json: Json = False,
) -> None:
    """Show what is under way, and what a lost controller has left.

    With what settles it.
    """

    async def work(journal: Any) -> tuple[list[MigrationRecord], list[Operation]]:
        from qmp_migrate.migration.journal.operations import Operations, either

        if migration is not None:
            return await either(journal, migration)
        return await journal.unsettled(), await Operations(journal).unsettled()

    records, operations = _with_journal(context, work, json=json)
    if json:
        found = {
            "migrations": [_record_document(record) for record in records],
            "operations": [_operation_document(operation) for operation in operations],
        }
        put({"schema": "migrations/1", **found})
        return
    if records or not operations:
        _table(records)
    for operation in operations:
        if operation.outcome is not None:
            _table([], [operation])
            continue
        ways = f"settle it with: qmp-migrate recover {operation.id}" if operation.left else "it is under way"
        say().print(f"{operation.kind} {operation.id} of {operation.vm} on {operation.host}: {operation.step}; {ways}")


def history(
    context: typer.Context,
    vm: Annotated[str | None, typer.Option("--vm", metavar="VM", help="Only this guest.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many.")] = 20,
    json: Json = False,
) -> None:
    """List migrations, saves, restores and moves, newest first."""

    async def work(journal: Any) -> tuple[list[MigrationRecord], list[Operation]]:
        from qmp_migrate.migration.journal.operations import Operations

        records = await journal.migrations(vm=vm, limit=limit)
        operations = await Operations(journal).latest(vm=vm, limit=limit)
        newest = sorted([one.started_at for one in [*records, *operations]], reverse=True)[:limit]
        since = newest[-1] if newest else 0.0
        return [one for one in records if one.started_at >= since], [o for o in operations if o.started_at >= since]

    records, operations = _with_journal(context, work, json=json)
    if json:
        found = {
            "migrations": [_record_document(record) for record in records],
            "operations": [_operation_document(operation) for operation in operations],
        }
        put({"schema": "migrations/1", **found})
        return
    _table(records, operations)
    for operation in operations:
        if operation.left:
            _say_left(operation.id)


def report(context: typer.Context, migration: Id, json: Json = False) -> None:
    """Tell the whole story of one of them, from the journal."""

    async def work(journal: Any) -> tuple[MigrationRecord | Operation, list[Entry]]:
        from qmp_migrate.migration.journal.operations import either

        records, operations = await either(journal, migration)
        return (records[0], await journal.entries(records[0].id)) if records else (operations[0], [])

    found, entries = _with_journal(context, work, json=json)
    from qmp_migrate.migration.journal.operations import Operation

    if isinstance(found, Operation):
        from qmp_migrate.cli.history_view import operation_story

        if json:
            put(_operation_document(found))
        else:
            data().print(operation_story(found))
        return
    if json:
        from dataclasses import asdict

        put({**_record_document(found), "entries": [asdict(entry) for entry in entries]})
        return
    from qmp_migrate.cli.history_view import story

    data().print(story(found, entries))


def _record_document(record: MigrationRecord) -> dict[str, Any]:
    from qmp_migrate.migration.journal.store import controller_lives

    lives = None if record.outcome is not None else controller_lives(record.controller)
    return {
        "schema": "migration/1",
        "id": record.id,
        "vm": record.vm,
        "source": record.source,
        "destination": record.destination,
        "mode": record.mode,
        "phase": record.phase.value,
        "outcome": record.outcome,
        "owner": record.owner,
        "controller_alive": lives,
        "started_at": record.started_at,
        "result": record.result,
    }


def _operation_document(operation: Operation) -> dict[str, Any]:
    from qmp_migrate.cli.history_view import owner

    names = ("id", "kind", "vm", "host", "step", "outcome", "started_at", "updated_at")
    return {
        "schema": "operation/1",
        **{name: getattr(operation, name) for name in names},
        "owner": owner(operation),
        "left": operation.left,
        "file": operation.data.get("path"),
        "destination": operation.data.get("destination"),
        "result": operation.data.get("result"),
    }


def _table(records: list[MigrationRecord], operations: Sequence[Operation] = ()) -> None:
    from qmp_migrate.cli.history_view import left_behind, past_table

    data().print(past_table(records, operations))
    for record in left_behind(records):
        _say_left(record.id)


def _say_left(id: str) -> None:
    say().print(f"[yellow]{id}:[/] no controller drives it; settle it with: qmp-migrate recover {id}")
