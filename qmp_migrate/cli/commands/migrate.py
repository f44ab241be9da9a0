"""``check`` and ``migrate``: the wish in words, the plan, and the way of one guest to another host."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import typer

from qmp_migrate.cli import migrate_options
from qmp_migrate.cli.commands import tune
from qmp_migrate.cli.context import Context, data, put, run, say, tell
from qmp_migrate.cli.optional_value import Moving
from qmp_migrate.cli.signals import go_on_without_terminal
from qmp_migrate.errors import PreflightRefused, QmpMigrateError

if TYPE_CHECKING:
    from qmp_migrate.fleet.controller import Controller
    from qmp_migrate.migration.model.request import MigrationRequest, MigrationResult
    from qmp_migrate.migration.preflight.planner import Plan
    from qmp_migrate.settings import Settings

ONE_PRESS_S: Final = 1.0
"""Signals within this time are one press: `timeout`, shells and terminals may send a signal twice."""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (check, migrate):
        app.command(cls=Moving)(command)


def check(
    context: typer.Context,
    vm: migrate_options.Vm,
    to: migrate_options.To,
    source: migrate_options.From = None,
    mode: migrate_options.Mode = "live",
    downtime_limit: migrate_options.DowntimeLimit = None,
    bandwidth: migrate_options.Bandwidth = None,
    policy: tune.Policy = None,
    allow_postcopy: tune.AllowPostcopy = None,
    allow_stop: tune.AllowStop = None,
    max_throttle: tune.MaxThrottle = None,
    max_bandwidth: tune.MaxBandwidth = None,
    switchover_bandwidth: tune.SwitchoverBandwidth = None,
    timeout: tune.Timeout = None,
    channels: migrate_options.Channels = 1,
    compress: migrate_options.Compress = None,
    copy_storage: migrate_options.CopyStorage = None,
    source_images: migrate_options.SourceImages = "keep",
    no_encrypt: migrate_options.NoEncrypt = False,
    guarded: migrate_options.Guarded = None,
    json: migrate_options.Json = False,
) -> None:
    """Tell whether a guest can be moved to a host. Changes nothing.

    The options are those of migrate: it tells whether that would go, and what is in the way.
    """

    async def work() -> Plan:
        from qmp_migrate.fleet.controller import Controller

        options: Context = context.obj
        settings = options.settings()
        request = migrate_options.request_of(settings, context.params)
        async with Controller.open(settings) as controller:
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
    vm: migrate_options.Vm,
    to: migrate_options.To,
    source: migrate_options.From = None,
    mode: migrate_options.Mode = "live",
    downtime_limit: migrate_options.DowntimeLimit = None,
    bandwidth: migrate_options.Bandwidth = None,
    policy: tune.Policy = None,
    allow_postcopy: tune.AllowPostcopy = None,
    allow_stop: tune.AllowStop = None,
    max_throttle: tune.MaxThrottle = None,
    max_bandwidth: tune.MaxBandwidth = None,
    switchover_bandwidth: tune.SwitchoverBandwidth = None,
    timeout: tune.Timeout = None,
    channels: migrate_options.Channels = 1,
    compress: migrate_options.Compress = None,
    copy_storage: migrate_options.CopyStorage = None,
    source_images: migrate_options.SourceImages = "keep",
    no_encrypt: migrate_options.NoEncrypt = False,
    guarded: migrate_options.Guarded = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and show the plan; change nothing.")] = False,
    forecast: Annotated[
        bool, typer.Option("--forecast", help="Measure first, and tell how it will go; see the command forecast.")
    ] = False,
    json: migrate_options.Json = False,
) -> None:
    """Move a guest to another host: while it runs, or shut down.

    First Ctrl-C: cancel, and wait until the guest is proven to run on at its source. Second: stop waiting.
    """
    options: Context = context.obj
    try:
        settings = options.settings()
        request = migrate_options.request_of(settings, context.params)
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
            result = asyncio.run(_migrate(settings, request, view, forecast=forecast))
    except QmpMigrateError as error:
        _fail(error, request, json)
    if json:
        put(result.to_dict())
    else:
        say().print(summary(result))


async def _migrate(settings: Settings, request: MigrationRequest, view: Any, *, forecast: bool) -> MigrationResult:
    from qmp_migrate.fleet.controller import Controller

    async with Controller.open(settings, reporters=[view]) as controller:
        _obey_signals(controller, request, view)
        return await controller.migrate(
            request, on_plan=view.plan, on_forecast=(lambda report: _foretell(view, report)) if forecast else None
        )


def _foretell(view: Any, report: Any) -> None:
    from qmp_migrate.cli.forecast_view import sentence

    view.note(f"forecast: {sentence(report)}")


def _obey_signals(controller: Controller, request: MigrationRequest, view: Any) -> None:
    """First SIGINT or SIGTERM: cancel and wait for proof. Second: leave, and say what is left open. SIGHUP: go on."""
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
    go_on_without_terminal()


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
        from qmp_migrate.migration.model.request import MigrationResult

        result = error.result
        if result is None and request is not None:
            result = MigrationResult(
                request.id, request.vm, request.source or "", request.destination, request.mode, error=error.to_dict()
            )
        put(result.to_dict() if result is not None else {"schema": "error/1", "error": error.to_dict()})
    tell(error)
    sys.exit(error.exit_code)


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
