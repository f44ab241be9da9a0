"""``forecast``: how a migration would go, before anything moves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from qmp_migrate.cli import tuning, wish
from qmp_migrate.cli.bare import Moving
from qmp_migrate.cli.context import Context, data, put, run, say

if TYPE_CHECKING:
    from qmp_migrate.migration.forecast.measurement import ForecastReport
    from qmp_migrate.migration.preflight.planner import Plan


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(cls=Moving)(forecast)


def forecast(
    context: typer.Context,
    vm: wish.Vm,
    to: wish.To,
    source: wish.From = None,
    mode: wish.Mode = "live",
    downtime_limit: wish.DowntimeLimit = None,
    bandwidth: wish.Bandwidth = None,
    policy: tuning.Policy = None,
    allow_postcopy: tuning.AllowPostcopy = None,
    allow_stop: tuning.AllowStop = None,
    max_throttle: tuning.MaxThrottle = None,
    max_bandwidth: tuning.MaxBandwidth = None,
    switchover_bandwidth: tuning.SwitchoverBandwidth = None,
    timeout: tuning.Timeout = None,
    channels: wish.Channels = 1,
    compress: wish.Compress = None,
    copy_storage: wish.CopyStorage = None,
    source_images: wish.SourceImages = "keep",
    no_encrypt: wish.NoEncrypt = False,
    guarded: wish.Guarded = None,
    json: wish.Json = False,
) -> None:
    """Tell how a migration would go: time, blackout, end, and why.

    Measures what the guest dirties (some seconds) and what the link carries (some MiB). The guest is not touched.
    """

    async def work() -> tuple[ForecastReport, Plan]:
        from qmp_migrate.fleet.controller import Controller

        options: Context = context.obj
        settings = options.settings()
        request = wish.request_of(settings, context.params)
        async with Controller.open(settings) as controller:
            return await controller.forecast(request)

    report, plan = run(work(), as_json=json)
    if json:
        put({**report.to_dict(), "refused": list(plan.refused)})
        return
    from qmp_migrate.cli.forecast_lines import forecast_panel

    data().print(forecast_panel(report))
    for line in plan.refused:
        say().print(f"[bold red]but:[/] check would refuse it: {line}")
