"""The tables for people and the document for programs, ``bench-policies/1``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from bench.measure.environment import QUIET_LOAD
from bench.policies.measure.samples import Sample
from bench.policies.report import html_report
from bench.policies.report.markdown import markdown
from bench.policies.report.summary import Row, Summary
from bench.policies.report.targets import Goal, judge
from bench.policies.scenarios import ALL, BOUND_S, LINK_MIB_S, Scenario
from bench.report.summary import Spread

COLOURS: Final = {
    "completed": "green",
    "gave up": "yellow",
    "still going": "red",
    "failed": "bold red",
    "not available": "dim",
}
WORDS: Final = {"met": "green", "tie": "yellow", "NOT MET": "bold red", "not measured": "dim"}


def document(
    environment: Mapping[str, Any],
    samples: Sequence[Sample],
    *,
    link_mib_s: Sequence[float],
    tls_mib_s: Mapping[str, Sequence[float]],
    absent: Mapping[str, str],
    memory_kib: Mapping[str, int],
    complete: bool,
) -> dict[str, Any]:
    """Return every raw sample, and what was made of them."""
    summary = Summary(samples)
    return {
        "schema": "bench-policies/1",
        "complete": complete,
        "environment": dict(environment),
        "bound_s": BOUND_S,
        "link": {"aimed_mib_s": LINK_MIB_S, "measured_mib_s": list(link_mib_s)},
        "tls_mib_s": {name: list(rates) for name, rates in tls_mib_s.items()},
        "scenarios": {
            s.name: {
                "story": s.story,
                "group": s.group,
                "ratio": s.ratio,
                "ws_mib": s.ws_mib,
                "memory_kib": memory_kib[s.name],
            }
            for s in ALL
        },
        "absent": dict(absent),
        "goals": [asdict(goal) for goal in judge(summary, tls_mib_s)],
        "medians": {
            scenario.name: {
                row.contender: {
                    "outcomes": list(row.outcomes),
                    **{
                        name: {
                            "median": spread.median,
                            "least": spread.least,
                            "most": spread.most,
                            "count": spread.count,
                        }
                        for name, spread in row.spreads.items()
                    },
                }
                for row in summary.of(scenario.name)
            }
            for scenario in ALL
        },
        "samples": [sample.to_dict() for sample in samples],
    }


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write the document."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content) + "\n")


def again(content: Mapping[str, Any], output: Path, console: Console, tables: Path | None) -> int:
    """Tell a document that was measured before; goals and page are made anew. Returns the exit code."""
    samples = [Sample.of(told) for told in content["samples"]]
    fresh = {**content, "goals": [asdict(goal) for goal in judge(Summary(samples), content["tls_mib_s"])]}
    output.with_suffix(".html").write_text(html_report.html(fresh), "utf-8")
    if tables is not None:
        tables.write_text(markdown(fresh), "utf-8")
    show(console, fresh)
    return 0


def show(console: Console, content: Mapping[str, Any]) -> None:
    """Print all tables of a document."""
    summary = Summary(Sample.of(told) for told in content["samples"])
    environment, links = content["environment"], content["link"]["measured_mib_s"]
    console.print(
        f"[bold]{environment['cpu']}[/], {environment['cores']} cores, {environment['system']}, {environment['qemu']}, "
        f"accelerator {environment['accel']}, load {environment['load'][0]} at the beginning, "
        f"{environment['minutes']} minutes"
    )
    if links:
        console.print(
            f"link: {content['link']['aimed_mib_s']} MiB/s by tbf, measured {min(links):.1f} to {max(links):.1f} MiB/s; "
            f"bound {content['bound_s']:g} s; median (least - most)"
        )
    console.print(
        "blackout: STOP to RESUME on QEMU's clock; inside: the guest's clock against the machine's CMOS clock; gap: largest "
        "time between two 1 ms ticks of the guest on the wall clock, rounded up; lost: work missing at its end, as time"
    )
    if environment["load"][0] > QUIET_LOAD:
        console.print("[bold red]the machine was not quiet when this began[/]")
    for scenario in ALL:
        if rows := summary.of(scenario.name):
            console.print(_table(scenario, rows))
    for count, rates in content["tls_mib_s"].items():
        what = "without TLS" if count == "plain" else f"TLS over {count} connection(s)"
        console.print(f"two processes with nothing to migrate, {what}: {_spread(Spread.of(rates), 0)} MiB/s")
    for what, reason in content["absent"].items():
        console.print(f"[dim]not measured: {what}: {reason}[/]")
    console.print(_goals([Goal(**goal) for goal in content["goals"]]))


def _table(scenario: Scenario, rows: Sequence[Row]) -> Table:
    if scenario.group == "raw":
        return _rates(scenario, rows)
    rates = Spread.of(row.median("rate_mib_s") for row in rows)
    title = f"{scenario.story}" + (f" (dirtied before: {rates.median:.1f} MiB/s)" if rates else "")
    table = Table(title=title, title_justify="left")
    table.add_column("")
    table.add_column("outcome")
    for name in (
        "total s",
        "blackout ms",
        "inside ms",
        "gap ms",
        "MiB sent",
        "passes",
        "throttle %",
        "lost s",
        "lost %",
    ):
        table.add_column(name, justify="right")
    table.add_column("n", justify="right")
    for row in rows:
        get = row.spreads.get
        table.add_row(
            row.contender,
            _outcome(row),
            _spread(get("total_ms"), 1, 1000),
            _spread(get("blackout_ms"), 0),
            _spread(get("inside_ms"), 0),
            _spread(get("gap_ms"), 0),
            _spread(get("mib"), 0),
            _spread(get("passes"), 0),
            _spread(get("throttle_percent"), 0),
            _spread(get("lost_ms"), 2, 1000),
            _spread(get("lost_percent"), 0),
            str(len(row.outcomes)),
        )
    _reasons(table, rows)
    return table


def _rates(scenario: Scenario, rows: Sequence[Row]) -> Table:
    table = Table(title=scenario.story, title_justify="left")
    table.add_column("")
    table.add_column("outcome")
    for name in ("MiB/s", "total s", "blackout ms", "inside ms"):
        table.add_column(name, justify="right")
    table.add_column("n", justify="right")
    for row in rows:
        get = row.spreads.get
        table.add_row(
            row.contender,
            _outcome(row),
            _spread(get("throughput_mib_s"), 0),
            _spread(get("total_ms"), 2, 1000),
            _spread(get("blackout_ms"), 0),
            _spread(get("inside_ms"), 0),
            str(len(row.outcomes)),
        )
    _reasons(table, rows)
    return table


def _outcome(row: Row) -> str:
    lost = f" [bold red]{row.lost}x NOT SURVIVED[/]" if row.lost else ""
    return f"[{COLOURS[row.outcome]}]{row.story}[/]{lost}"


def _reasons(table: Table, rows: Sequence[Row]) -> None:
    told = [f"{row.contender}: {row.reason}" for row in rows if row.reason and row.outcome != "still going"]
    table.caption, table.caption_justify = "\n".join(told) or None, "left"


def _goals(goals: Sequence[Goal]) -> Table:
    table = Table(title="Goals", title_justify="left")
    for name in ("goal", "", "measured"):
        table.add_column(name)
    for goal in goals:
        table.add_row(goal.name, f"[{WORDS[goal.verdict]}]{goal.verdict}[/]", goal.told)
    return table


def _spread(spread: Spread | None, digits: int, per: float = 1) -> str:
    if spread is None:
        return "-"
    median, least, most = (f"{value / per:.{digits}f}" for value in (spread.median, spread.least, spread.most))
    return median if least == most else f"{median} ({least} - {most})"
