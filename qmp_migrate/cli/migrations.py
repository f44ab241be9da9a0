"""``check``, ``migrate``, ``cancel``, ``status``, ``history`` and ``report``."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import typer

from qmp_migrate.cli.context import Context, data, put, run, say, tell
from qmp_migrate.cli.recovering import recover
from qmp_migrate.errors import PreflightRefused, QmpMigrateError

if TYPE_CHECKING:
    from qmp_migrate.fleet.controller import Controller
    from qmp_migrate.migration.journal import Entry, MigrationRecord
    from qmp_migrate.migration.plan import Plan
    from qmp_migrate.migration.request import MigrationRequest, MigrationResult
    from qmp_migrate.settings import Settings

ONE_PRESS_S: Final = 1.0
"""Signals within this time are one press: `timeout`, shells and terminals may send a signal twice."""

Vm = Annotated[str, typer.Argument(metavar="VM", help="The guest's name.")]
To = Annotated[str, typer.Option("--to", metavar="HOST", help="Where it goes.")]
From = Annotated[str | None, typer.Option("--from", metavar="HOST", help="Where it is, if two hosts have the name.")]
Id = Annotated[str, typer.Argument(metavar="ID", help="A migration's id, or a unique beginning of it.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to standard output.")]
NoEncrypt = Annotated[bool, typer.Option("--no-encrypt", help="Send the guest's memory in the clear.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (check, migrate, cancel, status, recover, history, report):
        app.command()(command)


def check(
    context: typer.Context,
    vm: Vm,
    to: To,
    source: From = None,
    no_encrypt: NoEncrypt = False,
    json: Json = False,
) -> None:
    """Tell whether a guest can be moved to a host. Changes nothing."""

    async def work() -> Plan:
        from qmp_migrate.fleet.controller import Controller
        from qmp_migrate.migration.request import MigrationRequest

        request = MigrationRequest(vm, to, source, encrypt=not no_encrypt)
        options: Context = context.obj
        async with Controller.open(options.settings()) as controller:
            return await controller.check(request)

    plan = run(work(), as_json=json)
    if json:
        put(_plan_document(vm, to, plan))
    else:
        _print_checks(plan)
    if plan.refused:
        raise typer.Exit(PreflightRefused.exit_code)


def migrate(
    context: typer.Context,
    vm: Vm,
    to: To,
    source: From = None,
    mode: Annotated[str, typer.Option(help="live: the guest runs while its memory is copied.")] = "live",
    downtime_limit: Annotated[
        str | None, typer.Option(metavar="TIME", help="Longest pause allowed, for example 300ms (the default).")
    ] = None,
    bandwidth: Annotated[
        str | None, typer.Option(metavar="RATE", help="Rate limit, for example 1Gbit or 80MiB; default: none.")
    ] = None,
    no_encrypt: NoEncrypt = False,
    guarded: Annotated[
        bool | None,
        typer.Option(
            "--guarded/--not-guarded",
            help="Hand over only past a stop at which the source's agent takes the guest back if this program dies.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and show the plan; change nothing.")] = False,
    json: Json = False,
) -> None:
    """Move a running guest to another host.

    First Ctrl-C: cancel, and wait until the guest is proven to run on at its source. Second: stop waiting.
    """
    options: Context = context.obj
    try:
        settings = options.settings()
        request = _request(
            settings, vm, to, source, mode, downtime_limit, bandwidth, encrypt=not no_encrypt, guarded=guarded
        )
    except QmpMigrateError as error:
        _fail(error, None, json)
    if dry_run:
        _dry_run(settings, request, json)
        return
    if no_encrypt:
        say().print("[yellow]warning:[/] --no-encrypt: the guest's memory travels in the clear")
    from qmp_migrate.cli.render import ProgressView, summary

    view = ProgressView(say(), request)
    try:
        with view:
            result = asyncio.run(_migrate(settings, request, view))
    except QmpMigrateError as error:
        _fail(error, request, json)
    if json:
        put(result.to_dict())
    else:
        say().print(summary(result))


def _request(
    settings: Settings,
    vm: str,
    to: str,
    source: str | None,
    mode: str,
    downtime_limit: str | None,
    bandwidth: str | None,
    *,
    encrypt: bool,
    guarded: bool | None,
) -> MigrationRequest:
    from qmp_migrate.errors import UsageError
    from qmp_migrate.migration.request import MigrationRequest
    from qmp_migrate.vm.units import parse_rate, parse_time_ms

    if mode != "live":
        raise UsageError(f"there is no mode {mode!r} in this version", hint="the mode is: live")
    rate = bandwidth if bandwidth is not None else settings.migration.bandwidth
    return MigrationRequest(
        vm,
        to,
        source,
        downtime_limit_ms=parse_time_ms(downtime_limit or settings.migration.downtime_limit),
        bandwidth_bytes_per_s=parse_rate(rate) if rate is not None else 0,
        encrypt=encrypt,
        guarded=settings.migration.guarded if guarded is None else guarded,
        limits=settings.watchdog.limits,
    )


async def _migrate(settings: Settings, request: MigrationRequest, view: Any) -> MigrationResult:
    from qmp_migrate.fleet.controller import Controller

    async with Controller.open(settings, reporters=[view]) as controller:
        _obey_signals(controller, request, view)
        return await controller.migrate(request, on_plan=view.plan)


def _obey_signals(controller: Controller, request: MigrationRequest, view: Any) -> None:
    """First SIGINT or SIGTERM: cancel and wait for proof. Second: leave, and say what is left open."""
    first: float | None = None

    def on_signal() -> None:
        nonlocal first
        now = time.monotonic()
        if first is not None and now - first < ONE_PRESS_S:
            return
        if first is None:
            first = now
            view.note("cancelling: waiting until the guest is proven to run on at its source (again: stop waiting)")
            controller.cancel_here()
            return
        view.close()
        say().print(
            f"[bold red]left[/] migration {request.id} of {request.vm} before its end was proven; what is known: "
            f"qmp-migrate status {request.id}"
        )
        sys.stdout.flush()
        os._exit(130)  # a clean exit would wait for what is being left here

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)


def _dry_run(settings: Settings, request: MigrationRequest, json: bool) -> None:
    async def work() -> Plan:
        from qmp_migrate.fleet.controller import Controller

        async with Controller.open(settings) as controller:
            return await controller.check(request)

    plan = run(work(), as_json=json)
    if json:
        put(_plan_document(request.vm, request.destination, plan))
    else:
        _print_checks(plan)
        console = say()
        console.print("[bold]what would differ at the destination[/]")
        for line in plan.derived.changes:
            console.print(f"  {line}", markup=False)
        console.print("dry run: nothing was touched")
    if plan.refused:
        raise typer.Exit(PreflightRefused.exit_code)


def _fail(error: QmpMigrateError, request: MigrationRequest | None, json: bool) -> NoReturn:
    """Tell the error; with ``--json`` end with the result document, also where nothing was begun."""
    if json:
        from qmp_migrate.migration.request import MigrationResult

        result = error.result
        if result is None and request is not None:
            result = MigrationResult(
                request.id, request.vm, request.source or "", request.destination, request.mode, error=error.to_dict()
            )
        put(result.to_dict() if result is not None else {"schema": "error/1", "error": error.to_dict()})
    tell(error)
    sys.exit(error.exit_code)


def cancel(context: typer.Context, migration: Id, json: Json = False) -> None:
    """Cancel a migration that another process drives, and wait until it has ended."""

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
        from qmp_migrate.migration.journal import Journal

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
    """Show migrations that have not ended, and what settles those whose controller is gone."""

    async def work(journal: Any) -> list[MigrationRecord]:
        if migration is not None:
            return [await journal.get(migration)]
        unsettled: list[MigrationRecord] = await journal.unsettled()
        return unsettled

    records = _with_journal(context, work, json=json)
    if json:
        put({"schema": "migrations/1", "migrations": [_record_document(record) for record in records]})
    else:
        _table(records)


def history(
    context: typer.Context,
    vm: Annotated[str | None, typer.Option("--vm", metavar="VM", help="Only this guest.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many.")] = 20,
    json: Json = False,
) -> None:
    """List past migrations, newest first."""

    async def work(journal: Any) -> list[MigrationRecord]:
        records: list[MigrationRecord] = await journal.migrations(vm=vm, limit=limit)
        return records

    records = _with_journal(context, work, json=json)
    if json:
        put({"schema": "migrations/1", "migrations": [_record_document(record) for record in records]})
    else:
        _table(records)


def report(context: typer.Context, migration: Id, json: Json = False) -> None:
    """Tell the whole story of one migration, from the journal."""

    async def work(journal: Any) -> tuple[MigrationRecord, list[Entry]]:
        record = await journal.get(migration)
        return record, await journal.entries(record.id)

    record, entries = _with_journal(context, work, json=json)
    if json:
        from dataclasses import asdict

        put({**_record_document(record), "entries": [asdict(entry) for entry in entries]})
        return
    from qmp_migrate.cli.render import story

    data().print(story(record, entries))


def _plan_document(vm: str, to: str, plan: Plan) -> dict[str, Any]:
    return {
        "schema": "check/1",
        "vm": vm,
        "destination": to,
        "ok": not plan.refused,
        "checks": [check.to_dict() for check in plan.checks],
        "argv": plan.derived.command.argv(),
        "changes": list(plan.derived.changes),
    }


def _print_checks(plan: Plan) -> None:
    from qmp_migrate.cli.render import check_lines

    console = data()
    for line in check_lines(plan.checks):
        console.print(line)


def _record_document(record: MigrationRecord) -> dict[str, Any]:
    from qmp_migrate.migration.journal import controller_lives

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


def _table(records: list[MigrationRecord]) -> None:
    from qmp_migrate.cli.render import left_behind, migrations_table

    data().print(migrations_table(records))
    for record in left_behind(records):
        say().print(f"[yellow]{record.id}:[/] no controller drives it; settle it with: qmp-migrate recover {record.id}")
