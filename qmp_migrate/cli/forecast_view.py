"""How a forecast looks to people."""

from __future__ import annotations

from rich.console import RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from qmp_migrate.cli.render import duration
from qmp_migrate.migration.forecast.measurement import ForecastReport
from qmp_migrate.vm.units import about_size


def sentence(report: ForecastReport) -> str:
    """Return a forecast as one sentence."""
    forecast = report.forecast
    if forecast.outlook == "gives-up":
        return f"it will be given up after about {duration(forecast.total_ms)}: {forecast.why}"
    if forecast.outlook == "endless":
        return f"it will not end: {forecast.why}"
    return (
        f"about {duration(forecast.total_ms)}, {about_size(forecast.transferred_bytes)} in {forecast.passes} passes, "
        f"blackout about {forecast.blackout_ms:.0f} ms; {forecast.why}"
    )


def forecast_panel(report: ForecastReport) -> RenderableType:
    """Return a forecast with all that it rests on."""
    forecast = report.forecast
    colour, verdict = {
        "completes": ("green", "it will complete"),
        "gives-up": ("red", f"the policy {report.request.policy} will give it up"),
        "endless": ("red", "it will not end"),
    }[forecast.outlook]
    rows: list[tuple[str, Text]] = [("outlook", Text(verdict, style=f"bold {colour}")), ("why", Text(forecast.why))]
    if forecast.outlook != "endless":
        ends = "total" if forecast.converges else "until then"
        rows.append((ends, Text(f"about {duration(forecast.total_ms)}")))
    if forecast.converges:
        rows.append(("blackout", Text(f"about {forecast.blackout_ms:.0f} ms")))
        sent = f"about {about_size(forecast.transferred_bytes)} in {forecast.passes} passes"
        rows.append(("on the wire", Text(sent)))
    rows += [("policy", Text(step)) for step in forecast.steps]
    rows += [("would do", Text(need, style="bold")) for need in forecast.needs]
    rows.append(("guest", Text(_guest(report))))
    rows.append(("link", Text(_link(report))))
    rows += [("warning", Text(warning, style="yellow")) for warning in report.warnings]
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column()
    for name, value in rows:
        table.add_row(name, value)
    title = f"{report.request.vm}   {report.source} -> {report.request.destination}"
    return Panel(table, title=title, border_style=colour, expand=False)


def _guest(report: ForecastReport) -> str:
    guest = report.guest
    told = f"{about_size(guest.ram_bytes)} of memory, {about_size(guest.present_bytes)} of it in use"
    if not guest.running:
        return f"{told}; paused"
    if not guest.dirty.points:
        return f"{told}; dirties next to nothing"
    within = ", ".join(f"{about_size(one.size_bytes)} in {one.seconds:g} s" for one in report.dirtied)
    most = guest.dirty.working_set
    return f"{told}; dirties {within}" + (f", then no more ({about_size(int(most))} in all)" if most else "")


def _link(report: ForecastReport) -> str:
    parts = []
    if report.probed is not None:
        how = "encrypted" if report.probed.encrypted else "not encrypted"
        sent = about_size(report.probed.sent_bytes)
        parts.append(f"{about_size(int(report.probed.bytes_per_s))}/s, tried out with {sent}, {how}")
    if report.earlier is not None:
        reached = about_size(int(report.earlier.bytes_per_s))
        parts.append(f"{reached}/s reached in {report.earlier.count} earlier migrations")
    if report.request.bandwidth_bytes_per_s:
        parts.append(f"limited to {about_size(report.request.bandwidth_bytes_per_s)}/s by --bandwidth")
    return "; ".join(parts)
