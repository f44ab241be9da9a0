"""The table for people and the document for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.measure.environment import QUIET_LOAD
from bench.measure.samples import Sample
from bench.report.summary import Row, Spread, Summary
from bench.report.targets import Target
from bench.scenarios import ALL, DOWNTIME_LIMIT_MS, MEMORY_KIB


def document(
    environment: Mapping[str, Any],
    samples: Sequence[Sample],
    help_ms: Sequence[float],
    targets: Sequence[Target],
    absent: Mapping[str, str],
    *,
    complete: bool,
) -> dict[str, Any]:
    """Return ``bench/1``: every raw sample, and what was made of them."""
    summary = Summary(samples)
    return {
        "schema": "bench/1",
        "complete": complete,
        "environment": dict(environment),
        "memory_kib": MEMORY_KIB,
        "downtime_limit_ms": DOWNTIME_LIMIT_MS,
        "scenarios": {scenario.name: scenario.story for scenario in ALL},
        "absent": dict(absent),
        "help_ms": list(help_ms),
        "samples": [sample.to_dict() for sample in samples],
        "medians": {
            scenario.name: {
                row.contender: {**{name: spread.median for name, spread in row.spreads.items()}, "stages": row.stages}
                for row in summary.of(scenario.name)
            }
            for scenario in ALL
            if summary.of(scenario.name)
        },
        "targets": [
            {"name": t.name, "limit": t.limit, "unit": t.unit, "values": t.values, "met": t.met} for t in targets
        ],
    }


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write the document."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


def show(
    console: Console,
    environment: Mapping[str, Any],
    samples: Sequence[Sample],
    help_ms: Sequence[float],
    targets: Sequence[Target],
    absent: Mapping[str, str],
) -> None:
    """Print all tables."""
    summary = Summary(samples)
    memory_mib = environment.get("guest_memory_mib", MEMORY_KIB // 1024)
    guest = f"{environment.get('guest', 'linux')} guest of {memory_mib} MiB"
    console.print(
        f"[bold]{environment['cpu']}[/], {environment['cores']} cores, {environment['system']}, "
        f"{environment['qemu']}, accelerator {environment['accel']}, load {environment['load'][0]} at the beginning"
    )
    console.print(
        f"{guest}, downtime-limit {DOWNTIME_LIMIT_MS} ms for all; median (least - most)\n"
        "blackout: STOP to RESUME on QEMU's clock; its end: the part after the source had completed; as told: what "
        "qmp-migrate told its user"
    )
    if environment["load"][0] > QUIET_LOAD:
        console.print("[yellow]warning:[/] the machine was not quiet: the numbers are noisy")
    for scenario in ALL:
        if summary.of(scenario.name):
            console.print()
            console.print(_scenario(scenario.name, scenario.story, summary))
    _stages(console, summary)
    if (spread := Spread.of(help_ms)) is not None:
        console.print(f"\nqmp-migrate --help: {_spread(spread)} ms")
    for name, reason in absent.items():
        console.print(f"[yellow]{name} was not measured:[/] {reason}")
    console.print()
    console.print(_targets(targets))


def _scenario(name: str, story: str, summary: Summary) -> Table:
    table = Table(title=f"{name}: {story}", title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("")
    for heading in (
        "whole action, ms",
        "x raw",
        "QEMU total, ms",
        "above it, ms",
        "blackout, ms",
        "its end, ms",
        "as told, ms",
        "passes",
        "MiB/s",
        "CPU, %",
    ):
        table.add_column(heading, justify="right")
    table.add_column("remarks")
    floor = summary.median(name, "raw", "wall_ms")
    for row in summary.of(name):
        wall = row.median("wall_ms")
        table.add_row(
            row.contender,
            _cell(row, "wall_ms"),
            f"{wall / floor:.2f}" if wall and floor else "-",
            _cell(row, "total_ms"),
            _cell(row, "overhead_ms"),
            _cell(row, "blackout_ms", digits=1),
            _cell(row, "handover_ms", digits=1),
            _cell(row, "told_blackout_ms", digits=1),
            _cell(row, "passes"),
            _cell(row, "throughput_mib_s"),
            _cell(row, "controller_cpu_percent", digits=1),
            _remarks(row),
        )
    return table


def _remarks(row: Row) -> str:
    remarks = [f"{len(row.failures)} failed: {row.failures[0].strip().splitlines()[0][:60]}"] if row.failures else []
    if row.lost:
        remarks.append(f"guest did not go on {row.lost} times")
    return "; ".join(remarks)


def _cell(row: Row, metric: str, *, digits: int = 0) -> str:
    spread = row.spreads.get(metric)
    return _spread(spread, digits) if spread else "-"


def _spread(spread: Spread, digits: int = 0) -> str:
    return f"{spread.median:.{digits}f} ({spread.least:.{digits}f} - {spread.most:.{digits}f})"


def _stages(console: Console, summary: Summary) -> None:
    """Where the time of qmp-migrate goes, without QEMU's own."""
    rows = [row for row in summary.rows.values() if row.stages]
    if not rows:
        return
    names = list(dict.fromkeys(name for row in rows for name in row.stages))
    table = Table(
        title="where the time goes, median ms", title_justify="left", title_style="bold", box=None, pad_edge=False
    )
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            f"{row.scenario} {row.contender}",
            *(f"{row.stages[name]:.0f}" if name in row.stages else "-" for name in names),
        )
    console.print()
    console.print(table)


def _targets(targets: Sequence[Target]) -> Table:
    table = Table(title="what is promised", title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("")
    table.add_column("limit", justify="right")
    table.add_column("measured (worst)", justify="right")
    table.add_column("in")
    table.add_column("")
    for target in targets:
        bound = (">=" if target.at_least else "<=") if target.inclusive else "<"
        colour = {True: "green", False: "red", None: "yellow"}[target.met]
        table.add_row(
            target.name,
            f"{bound} {target.limit:g} {target.unit}",
            f"{_number(target.worst[1])} {target.unit}" if target.worst else "-",
            target.worst[0] if target.worst else "",
            f"[{colour}]{target.word}[/]",
        )
    return table


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
