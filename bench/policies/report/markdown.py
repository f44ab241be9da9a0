"""The same tables for the documentation. Pure: the document in, Markdown out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from bench.policies.measure.samples import Sample
from bench.policies.report.summary import Row, Summary
from bench.policies.scenarios import ALL, RAW

COLUMNS: Final = (
    ("total, s", "total_ms", 1000, 1),
    ("blackout, ms", "blackout_ms", 1, 0),
    ("inside, ms", "inside_ms", 1, 0),
    ("gap, ms", "gap_ms", 1, 0),
    ("sent, MiB", "mib", 1, 0),
    ("passes", "passes", 1, 0),
    ("throttle, %", "throttle_percent", 1, 0),
    ("lost, s", "lost_ms", 1000, 2),
)
RATES: Final = (
    ("MiB/s", "throughput_mib_s", 1, 0),
    ("total, s", "total_ms", 1000, 2),
    ("blackout, ms", "blackout_ms", 1, 0),
)


def markdown(content: Mapping[str, Any]) -> str:
    """Return goals and tables of a document (``bench-policies/1``): median, and least to most where they differ."""
    summary = Summary(Sample.of(told) for told in content["samples"])
    parts = ["| goal | | measured |", "|---|---|---|"]
    parts += [f"| {goal['name']} | {goal['verdict']} | {goal['told']} |" for goal in content["goals"]]
    for scenario in ALL:
        rows = summary.of(scenario.name)
        if not rows:
            continue
        columns = RATES if scenario is RAW else COLUMNS
        parts += ["", f"**{scenario.story[0].upper()}{scenario.story[1:]}**", ""]
        parts.append("| | outcome | " + " | ".join(name for name, *_ in columns) + " | n |")
        parts.append("|---|---|" + "---|" * (len(columns) + 1))
        parts += [_row(row, columns) for row in rows]
    return "\n".join(parts) + "\n"


def _row(row: Row, columns: tuple[tuple[str, str, int, int], ...]) -> str:
    cells = [row.contender, row.story]
    for _, metric, per, digits in columns:
        spread = row.spreads.get(metric)
        if spread is None or row.outcome == "not available":
            cells.append("")
            continue
        median, least, most = (f"{value / per:.{digits}f}" for value in (spread.median, spread.least, spread.most))
        cells.append(median if least == most else f"{median} ({least} to {most})")
    return "| " + " | ".join([*cells, str(len(row.outcomes))]) + " |"
