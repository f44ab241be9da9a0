"""``build/bench-policies.html``: one file with everything in it. The document in, HTML out; ``page.css`` and ``method.html``
are its constant parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

from bench.policies.measure.samples import Sample
from bench.policies.report import plots
from bench.policies.report.summary import Row, Summary
from bench.policies.scenarios import MODES, POLICIES, RAW
from bench.report.summary import Spread

COLUMNS: Final = (
    ("total, s", "total_ms", 1000, 2),
    ("STOP to RESUME, ms", "blackout_ms", 1, 1),
    ("inside, ms", "inside_ms", 1, 1),
    ("largest tick gap, ms", "gap_ms", 1, 0),
    ("stall while running, ms", "stall_ms", 1, 0),
    ("MiB sent", "mib", 1, 0),
    ("passes", "passes", 1, 0),
    ("throttle, %", "throttle_percent", 1, 0),
    ("dirtied before, MiB/s", "rate_mib_s", 1, 1),
    ("work lost, s", "lost_ms", 1000, 2),
    ("work lost, %", "lost_percent", 1, 1),
)

HERE: Final = Path(__file__).parent
BADGES: Final = {"met": "met", "tie": "tie", "NOT MET": "missed", "not measured": "open"}


def html(content: Mapping[str, Any]) -> str:
    """Return the page for a document (``bench-policies/1``)."""
    summary = Summary(Sample.of(told) for told in content["samples"])
    body = [
        _head(content, summary),
        _goals(content["goals"]),
        _policies(summary),
        _modes(summary),
        _rates(summary, content["tls_mib_s"]),
        _figures(summary),
        _steps(summary),
        _method(content, summary),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>qmp-migrate: the shoot-out</title>'
        f'<meta name="viewport" content="width=device-width"><style>{(HERE / "page.css").read_text("utf-8")}</style></head>'
        f"<body>{''.join(body)}</body></html>\n"
    )


def _head(content: Mapping[str, Any], summary: Summary) -> str:
    around, links = content["environment"], content["link"]["measured_mib_s"]
    link = f"measured {min(links):.1f} to {max(links):.1f} MiB/s" if links else "not measured"
    lost = sum(row.lost for row in summary.rows.values())
    judged = sum(sample.survived is not None for row in summary.rows.values() for sample in row.samples)
    survival = f"all {judged} guests that were judged survived"
    if lost:
        survival = f'<span class="warn">{lost} of {judged} guests did not survive</span>'
    partial = "" if content["complete"] else '<p class="warn">Interrupted: not all was measured.</p>'
    return (
        "<h1>The shoot-out</h1>"
        "<p>The same guest over the same link, moved by different policies and in different ways: who ends, when, and with "
        "which pause.</p>"
        f'<p class="muted">{escape(around["at"])} · {escape(around["cpu"])}, {around["cores"]} cores · '
        f"{escape(around['system'])} · {escape(around['qemu'])} · accelerator {escape(around['accel'])} · "
        f"commit {escape(around['commit'])} · load {around['load'][0]} at the beginning · {around['minutes']} minutes<br>"
        f"Link: {content['link']['aimed_mib_s']} MiB/s ({link}). {survival}.</p>{partial}"
    )


def _goals(goals: Sequence[Mapping[str, str]]) -> str:
    rows = "".join(
        f'<tr><td>{escape(goal["name"])}</td><td><span class="badge {BADGES[goal["verdict"]]}">{goal["verdict"]}</span></td>'
        f"<td>{escape(goal['told'])}</td></tr>"
        for goal in goals
    )
    return f'<h2>Goals</h2><table class="goals">{rows}</table>'


def _legend() -> str:
    words = "".join(
        f'<span><b style="background:{colour}"></b>{outcome}</span>'
        for outcome, colour in plots.COLOURS.items()
        if outcome != "not available"
    )
    return f'<p class="legend muted">{words} dots: samples; bar: median; line: least to most; ours in bold</p>'


def _policies(summary: Summary) -> str:
    rows = [row for scenario in POLICIES for row in summary.of(scenario.name)]
    if not rows:
        return ""
    most_s = _most(rows, "total_ms", 1000)
    lost_s = _most(rows, "lost_ms", 1000)
    parts = ["<h2>Policies: who ends, when, and with which pause</h2>", _legend()]
    for scenario in POLICIES:
        if found := summary.of(scenario.name):
            parts.append(f"<h3>{escape(scenario.story)}</h3>{plots.endings(found, most_s=most_s, lost_s=lost_s)}")
    curves = [point.remaining_bytes for row in rows for sample in row.samples for point in sample.curve]
    most_mib = max(curves, default=1) / 2**20 * 1.25
    measured = [scenario for scenario in POLICIES if summary.of(scenario.name)]
    parts.append(
        "<h2>Policies: what was left to send</h2>"
        f"<p>Height: up to {most_mib:.0f} MiB. Each tooth is a pass: a guest that dirties as fast as the link carries comes "
        "back to the same height for ever. Orange: how much the guest is slowed down (full height: 100 %). Dot: it runs at "
        "the destination; cross: given up, or cancelled at the bound.</p>"
        + plots.courses(measured, summary.row, most_s=most_s, most_mib=most_mib)
    )
    return "".join(parts)


def _modes(summary: Summary) -> str:
    rows = summary.of(MODES.name)
    if not rows:
        return ""
    picture = plots.endings(rows, most_s=_most(rows, "total_ms", 1000), lost_s=_most(rows, "lost_ms", 1000))
    return f"<h2>{escape(MODES.story.capitalize())}</h2><p>All with the policy <code>default</code>.</p>{picture}"


def _rates(summary: Summary, tls: Mapping[str, Sequence[float]]) -> str:
    rows = summary.of(RAW.name)
    if not rows:
        return ""
    names = {"plain": "two processes, no TLS", "1": "TLS itself, 1 connection"}
    allowed = [
        (names.get(count, f"TLS itself, {count} connections"), spread)
        for count, rates in tls.items()
        if (spread := Spread.of(rates)) is not None
    ]
    allowed.sort(key=lambda pair: pair[1].median)
    return (
        f"<h2>Throughput: {escape(RAW.story)}</h2><p>Dashed: what two processes of QEMU with nothing to migrate reach over "
        f"the same path (NBD).</p>{plots.rates(rows, allowed)}"
    )


def _most(rows: Sequence[Row], metric: str, per: float) -> float:
    return max((row.spreads[metric].most / per for row in rows if metric in row.spreads), default=1.0) * 1.02 or 1.0


def _figures(summary: Summary) -> str:
    parts = ["<h2>All figures</h2><p>Median, below it least to most, of the samples that ended as most did.</p>"]
    for scenario in (*POLICIES, MODES, RAW):
        rows = summary.of(scenario.name)
        if not rows:
            continue
        columns = [c for c in COLUMNS if any(c[1] in row.spreads for row in rows)]
        if scenario is RAW:
            columns = [("MiB/s", "throughput_mib_s", 1, 0), *columns]
        head = "".join(f"<th>{escape(name)}</th>" for name in ("", "outcome", *(c[0] for c in columns), "n"))
        parts.append(f'<h3>{escape(scenario.story)}</h3><div class="scroll"><table><tr>{head}</tr>')
        parts += [_figures_of(row, columns) for row in rows]
        parts.append("</table></div>")
    return "".join(parts)


def _figures_of(row: Row, columns: Sequence[tuple[str, str, int, int]]) -> str:
    cells = [f"<td>{escape(row.contender)}</td><td>{escape(row.story)}</td>"]
    for _, metric, per, digits in columns:
        spread = row.spreads.get(metric)
        if spread is None or row.outcome == "not available":
            cells.append("<td></td>")
            continue
        median, least, most = (f"{value / per:.{digits}f}" for value in (spread.median, spread.least, spread.most))
        between = f'<br><span class="muted">{least} to {most}</span>' if least != most else ""
        cells.append(f"<td>{median}{between}</td>")
    return f"<tr>{''.join(cells)}<td>{len(row.outcomes)}</td></tr>"


def _steps(summary: Summary) -> str:
    parts = ["<h2>What the policies did, and why it ended</h2>"]
    for scenario in (*POLICIES, MODES, RAW):
        told = []
        for row in summary.of(scenario.name):
            last = row.samples[-1] if row.samples else None
            words = [*(last.steps if last else []), *([row.reason] if row.reason else [])]
            if words:
                lines = "".join(f"<li>{escape(word)}</li>" for word in words)
                told.append(f"<p><b>{escape(row.contender)}</b></p><ul>{lines}</ul>")
        if told:
            parts.append(f"<details><summary>{escape(scenario.story)}</summary>{''.join(told)}</details>")
    return "".join(parts)


def _method(content: Mapping[str, Any], summary: Summary) -> str:
    kib = content["scenarios"][POLICIES[0].name]["memory_kib"]
    exact = Spread.of(s.inside.exact_ms for row in summary.rows.values() for s in row.samples if s.inside)
    method = (
        (HERE / "method.html")
        .read_text("utf-8")
        .format(
            memory=f"{kib / 1024:g}",
            ws=content["scenarios"][POLICIES[0].name]["ws_mib"],
            bound=content["bound_s"],
            limit=plots.LIMIT_MS,
            exact=exact.median if exact else 0,
        )
    )
    absent = "".join(f"<li>Not measured: {escape(what)}: {escape(why)}</li>" for what, why in content["absent"].items())
    return f"<h2>Method</h2>{method}<ul>{absent}</ul>"
