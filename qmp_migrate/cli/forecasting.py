"""``forecast``: how a migration would go, before anything moves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from qmp_migrate.cli import moving, tuning
from qmp_migrate.cli.bare import Moving
from qmp_migrate.cli.context import Context, data, put, run, say

if TYPE_CHECKING:
    from qmp_migrate.migration.forecasting import ForecastReport
    from qmp_migrate.migration.plan import Plan


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(cls=Moving)(forecast)


def forecast(
    context: typer.Context,
    vm: moving.Vm,
    to: moving.To,
    source: moving.From = None,
    mode: moving.Mode = "live",
    downtime_limit: moving.DowntimeLimit = None,
    bandwidth: moving.Bandwidth = None,
    policy: tuning.Policy = None,
    allow_postcopy: tuning.AllowPostcopy = None,
    allow_stop: tuning.AllowStop = None,
    max_throttle: tuning.MaxThrottle = None,
    max_bandwidth: tuning.MaxBandwidth = None,
    switchover_bandwidth: tuning.SwitchoverBandwidth = None,
    timeout: tuning.Timeout = None,
    channels: moving.Channels = 1,
    compress: moving.Compress = None,
    copy_storage: moving.CopyStorage = None,
    source_images: moving.SourceImages = "keep",
    no_encrypt: moving.NoEncrypt = False,
    guarded: moving.Guarded = None,
    json: moving.Json = False,
) -> None:
    """Tell how a migration would go: time, bytes, blackout, whether it ends, and why.

    Measures what the guest dirties (some seconds) and what the link carries (some MiB). The guest is not touched.
    """

    async def work() -> tuple[ForecastReport, Plan]:
        from qmp_migrate.fleet.controller import Controller

        options: Context = context.obj
        settings = options.settings()
        request = moving._request(
            settings,
            vm,
            to,
            source,
            mode=mode,
            downtime_limit=downtime_limit,
            bandwidth=bandwidth,
            policy=policy,
            allow_postcopy=allow_postcopy,
            allow_stop=allow_stop,
            max_throttle=max_throttle,
            max_bandwidth=max_bandwidth,
            switchover_bandwidth=switchover_bandwidth,
            timeout=timeout,
            channels=channels,
            compress=compress,
            copy_storage=copy_storage,
            source_images=source_images,
            encrypt=not no_encrypt,
            guarded=guarded,
        )
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
