"""How things look: progress while it runs, a summary at the end, checks and tables."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from qmp_migrate.migration.model.reporter import MigrationView, Progress
from qmp_migrate.migration.model.request import MigrationRequest, MigrationResult
from qmp_migrate.migration.preflight.planner import Plan
from qmp_migrate.migration.preflight.rules import Check
from qmp_migrate.vm.units import about_size

LINE_EVERY_S: Final = 2.0
"""Without a terminal: one line of numbers at most this often."""

_SHOWN: Final = {
    "locked": "locked on both hosts",
    "destination-launched": "destination QEMU waits",
    "wired": "wired: capabilities, parameters and encryption set and read back",
    "disks-mirroring": "copying disks",
    "copying": "copying memory",
    "postcopy": "post-copy: the guest runs at the destination before all of its memory is there; no cancel from here on",
    "committed": "handed over",
    "running-at-destination": "runs at the destination",
    "source-released": "source ended and cleaned",
    "rolling-back": "bringing the guest back to one proven owner",
    "rolled-back": "runs on at the source; the destination is cleaned",
    "parked": "parked: a person is needed",
}


def duration(milliseconds: float) -> str:
    """Return a time as people read it: ``42 ms``, ``1.3 s``, ``2 m 05 s``."""
    if milliseconds < 1000:
        return f"{milliseconds:.0f} ms"
    if milliseconds < 60_000:
        return f"{milliseconds / 1000:.1f} s"
    minutes, seconds = divmod(round(milliseconds / 1000), 60)
    return f"{minutes} m {seconds:02d} s"


class ProgressView:
    """A reporter that shows one migration on a console: a live bar on a terminal, plain lines elsewhere."""

    def __init__(self, console: Console, request: MigrationRequest) -> None:
        self._console = console
        self._request = request
        self._live = Live(console=console, transient=True, auto_refresh=False) if console.is_terminal else None
        self._last_line = 0.0
        self._begun = time.monotonic()

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the live display."""
        if self._live is not None:
            self._live.stop()

    def note(self, text: str) -> None:
        """Print one line above the bar."""
        elapsed = time.monotonic() - self._begun
        self._console.print(Text(f"{elapsed:7.2f}s ", style="dim") + Text(text))

    def plan(self, plan: Plan) -> None:
        """Show what is about to happen."""
        passed, failed = (sum(check.status == status for check in plan.checks) for status in ("ok", "fail"))
        end = f", {failed} failed" if failed else ""
        if not failed and plan.ram_bytes:  # a guest that is shut down has none
            end = f", {about_size(plan.ram_bytes)} of memory to move"
        self.note(f"preflight: {passed} checks passed{end}")
        for check in plan.checks:
            if check.status == "warn":
                self.note(f"warning: {check.text}")

    def phase(self, view: MigrationView) -> None:
        """See `Reporter.phase`."""
        if view.id != self._request.id:
            self._earlier(view)
        elif view.phase in _SHOWN and (view.outcome is None or view.phase == "rolled-back"):
            text = _SHOWN[view.phase]
            if view.phase == "rolled-back" and view.owner != "source":
                text = "ended; nothing is left at the destination"
            self.note(text)

    def _earlier(self, view: MigrationView) -> None:
        """Tell how an earlier migration of the guest ended, which is settled before this one begins."""
        if view.outcome is not None:
            end = "it is still open" if view.outcome == "unknown" else f"settled: {view.outcome}"
            self.note(f"earlier migration {view.id} had no controller any more; {end}")

    def event(self, kind: str, data: Mapping[str, Any]) -> None:
        """See `Reporter.event`."""
        if data.get("id") != self._request.id:
            return
        if kind == "step":
            self.note(f"policy: {data.get('reason')}")
        elif kind == "warning":
            self.note(f"warning: {data.get('text')}")
        elif kind == "switchover":
            self.note(f"blackout {data.get('blackout_ms')} ms")

    def progress(self, progress: Progress) -> None:
        """See `Reporter.progress`."""
        if self._live is not None:
            self._live.update(_bar(progress), refresh=True)
        elif time.monotonic() - self._last_line >= LINE_EVERY_S:
            self._last_line = time.monotonic()
            self.note(f"{progress.percent:5.1f} %  {_numbers(progress)}")


class RecoveryView:
    """A reporter that tells, in lines, what `recover` does to each migration."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last_line = 0.0

    def phase(self, view: MigrationView) -> None:
        """See `Reporter.phase`."""
        if view.outcome is None and view.phase in _SHOWN:
            self._tell(view.id, _SHOWN[view.phase])

    def event(self, kind: str, data: Mapping[str, Any]) -> None:
        """See `Reporter.event`."""
        if kind == "step":
            self._tell(str(data.get("id")), str(data.get("reason")))

    def progress(self, progress: Progress) -> None:
        """See `Reporter.progress`."""
        if time.monotonic() - self._last_line >= LINE_EVERY_S:
            self._last_line = time.monotonic()
            self._tell(progress.id, f"{progress.percent:5.1f} %  {_numbers(progress)}")

    def _tell(self, migration: str, text: str) -> None:
        self._console.print(Text(f"{migration} ", style="dim") + Text(text))


def _numbers(p: Progress) -> str:
    if p.status == "mirroring":
        disks = f"{about_size(p.disk_transferred_bytes)} of disks copied of {about_size(p.disk_total_bytes)}"
        parts = [disks]
        if p.throughput_bytes_per_s:
            parts.append(f"{about_size(p.throughput_bytes_per_s)}/s")
        if p.eta_ms is not None:
            parts.append(f"{duration(p.eta_ms)} left")
        return ", ".join(parts)
    parts = [f"{about_size(p.transferred_bytes)} sent of {about_size(p.total_bytes)}"]
    if not p.throughput_bytes_per_s and p.pass_number <= 1:
        # Nothing is measured yet: a rate of 0 and a blackout made of it would be wrong.
        return parts[0]
    parts += [f"{about_size(p.throughput_bytes_per_s)}/s", f"pass {p.pass_number}"]
    if p.status.startswith("postcopy"):
        # The guest runs at the destination: what it dirties is not sent any more, and its pause is over.
        return ", ".join([*parts, *([f"{duration(p.eta_ms)} left"] if p.eta_ms is not None else [])])
    if p.dirty_bytes_per_s:
        parts.append(f"dirtied {about_size(p.dirty_bytes_per_s)}/s")
    if p.throttle_percent:
        parts.append(f"throttled {p.throttle_percent} %")
    if p.expected_blackout_ms is not None:
        parts.append(f"blackout about {p.expected_blackout_ms} ms")
    parts.append(f"{duration(p.eta_ms)} left" if p.eta_ms is not None else "not converging yet")
    return ", ".join(parts)


def _bar(progress: Progress) -> RenderableType:
    grid = Table.grid(padding=(0, 1))
    grid.add_row(
        ProgressBar(total=100, completed=progress.percent, width=32), Text(f"{progress.percent:5.1f} %", style="bold")
    )
    return Group(grid, Text(_numbers(progress), style="dim", overflow="ellipsis", no_wrap=True))


def summary(result: MigrationResult) -> RenderableType:
    """Return the summary of a completed migration."""
    if result.mode == "shut-down":
        return _moved(result)
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column()
    qemu = result.qemu
    rows = [
        ("guest", Text(f"{result.vm}   {result.source} -> {result.destination}", style="bold")),
        ("owner now", Text(f"{result.destination} (the source is ended and cleaned)")),
        ("total", Text(f"{duration(result.total_ms)}   (QEMU itself: {duration(qemu['total_ms'])})")),
        ("blackout", Text(f"{result.blackout_ms:.1f} ms   (QEMU's own downtime: {qemu['downtime_ms']} ms)")),
        (
            "memory",
            Text(
                f"{about_size(result.ram_bytes)}, {about_size(result.transferred_bytes)} sent in {result.passes} passes "
                f"at {about_size(result.throughput_bytes_per_s)}/s"
            ),
        ),
        *([("disks", Text(f"{about_size(result.disk_bytes)} copied"))] if result.disk_bytes else []),
        ("encrypted", Text("yes, TLS with a key of its own") if result.encrypted else Text("NO", style="bold yellow")),
    ]
    if result.forecast is not None:
        rows.append(("forecast", Text(against(result.forecast))))
    rows += [("policy", Text(step)) for step in result.steps]
    rows += [("warning", Text(warning, style="yellow")) for warning in result.warnings]
    for name, value in rows:
        table.add_row(name, value)
    return Panel(table, title=f"migration {result.id} completed", border_style="green", expand=False)


def _moved(result: MigrationResult) -> RenderableType:
    """Return the summary of a guest that was moved while it was shut down."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column()
    rows = [
        ("guest", Text(f"{result.vm}   {result.source} -> {result.destination}, shut down", style="bold")),
        ("start it", Text(f"qmp-migrate vm start {result.vm} --on {result.destination}")),
        ("total", Text(duration(result.total_ms))),
    ]
    if result.disk_bytes:
        rows.append(
            ("disks", Text(f"{about_size(result.disk_bytes)} copied{', encrypted' if result.encrypted else ''}"))
        )
    rows += [("warning", Text(warning, style="yellow")) for warning in result.warnings]
    for name, value in rows:
        table.add_row(name, value)
    return Panel(table, title=f"move {result.id} completed", border_style="green", expand=False)


def against(forecast: Mapping[str, Any]) -> str:
    """Return in words what had been foretold (``forecast`` of a result document)."""
    told = f"{duration(forecast['total_ms'])}, blackout {forecast['blackout_ms']:.0f} ms"
    error = forecast["error_percent"]
    if error is None:
        return told
    off = "exact" if not error else f"{abs(error):.0f} % too {'long' if error > 0 else 'short'}"
    return f"{told}   (the time was {off})"


_MARKS: Final = {"ok": ("[ OK ]", "green"), "warn": ("[WARN]", "yellow"), "fail": ("[FAIL]", "bold red")}


def check_lines(checks: Sequence[Check]) -> list[Text]:
    """Return one line per check, and a last one with the verdict."""
    lines = []
    for check in checks:
        mark, style = _MARKS[check.status]
        line = Text(mark, style=style) + Text(f" {check.text}", style="not bold default")
        if check.hint and check.status != "ok":
            line += Text(f" ({check.hint})", style="dim not bold")
        lines.append(line)
    failed = sum(check.status == "fail" for check in checks)
    verdict = f"Preflight: {failed} blocker{'s' if failed != 1 else ''}." if failed else "Preflight: no blockers."
    return [*lines, Text(verdict, style="bold")]
