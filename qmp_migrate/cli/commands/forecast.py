"""``forecast``: how a migration would go, before anything moves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from qmp_migrate.cli import migrate_options
from qmp_migrate.cli.commands import tune
from qmp_migrate.cli.context import Context, data, put, run, say
from qmp_migrate.cli.optional_value import Moving

if TYPE_CHECKING:
    from qmp_migrate.migration.forecast.measurement import ForecastReport
    from qmp_migrate.migration.preflight.planner import Plan


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(cls=Moving)(forecast)


def forecast(
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
    """Tell how a migration would go: time, blackout, end, and why.

    Measures what the guest dirties (some seconds) and what the link carries (some MiB). The guest is not touched.
    """

    async def work() -> tuple[ForecastReport, Plan]:
        from qmp_migrate.fleet.controller import Controller

        options: Context = context.obj
        settings = options.settings()
        request = migrate_options.request_of(settings, context.params)
        async with Controller.open(settings) as controller:
            return await controller.forecast(request)

    report, plan = run(work(), as_json=json)
    if json:
        put({**report.to_dict(), "refused": list(plan.refused)})
        return
    from qmp_migrate.cli.forecast_view import forecast_panel

    data().print(forecast_panel(report))
    for line in plan.refused:
        say().print(f"[bold red]but:[/] check would refuse it: {line}")
