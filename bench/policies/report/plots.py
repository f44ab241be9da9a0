"""The pictures of the page: who ends, when, with which pause; the courses; the rates. Pure: summary in, SVG out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from bench.policies.measure.samples import Outcome, Sample
from bench.policies.report import svg as policies_svg
from bench.policies.report.summary import Row
from bench.policies.report.svg import INK, MUTED, Scale, cross, dot, line, path, rect, svg, text
from bench.policies.scenarios import CONTENDERS, OURS, Scenario
from bench.report.summary import Spread

COLOURS: Final[dict[Outcome, str]] = {
    "completed": "#1f7a5c",
    "gave up": "#c27c0e",
    "still going": "#b3372f",
    "failed": "#7a1f5c",
    "not available": "#a5aeb8",
}
INSIDE: Final = "#2b5fa8"
THROTTLE: Final = "#c27c0e"
LIMIT_MS: Final = 300
"""The downtime limit that our policies were allowed."""

ROW: Final = 30
TOP: Final = 46
LABELS: Final = 118
WIDTH: Final = 1120
SHORTEST_MS: Final = 10
LONGEST_MS: Final = 20_000
ENDINGS: Final = {"completed": "ends", "gave up": "gives up", "still going": "still going", "failed": "fails"}


def endings(rows: Sequence[Row], *, most_s: float, lost_s: float) -> str:
    """Return one scenario: for each contender a bar of the time, the pauses, and the work that the guest lost.

    Args:
        rows: The scenario's.
        most_s: Right end of the time axis, seconds; the same for all scenarios that stand below each other.
        lost_s: Right end of the axis of lost work.
    """
    height = TOP + ROW * len(rows) + 8
    time = Scale(0, most_s, LABELS, 560)
    pause = Scale(SHORTEST_MS, LONGEST_MS, 590, 880, log=True)
    lost = Scale(0, lost_s, 915, 1050)
    parts = [
        text(LABELS, 14, "time until it ended, s", bold=True),
        text(590, 14, "pause, ms", bold=True),
        dot(670, 10, fill=INK),
        text(678, 14, "STOP to RESUME", fill=MUTED, size=11),
        dot(782, 10, fill=INSIDE, hollow=True),
        text(790, 14, "seen by the guest", fill=MUTED, size=11),
        text(915, 14, "work lost, s", bold=True),
    ]
    bottom = TOP + ROW * len(rows)
    for value in policies_svg.ticks(most_s):
        parts += [line(time(value), TOP - 8, time(value), bottom), text(time(value), TOP - 13, f"{value:g}", **_TICK)]
    for value in (10, 30, 100, 300, 1000, 3000, 10_000):
        parts += [
            line(
                pause(value),
                TOP - 8,
                pause(value),
                bottom,
                dash="3 3" if value == LIMIT_MS else "",
                stroke=_grid(value),
            ),
            text(pause(value), TOP - 13, f"{value}", **_TICK),
        ]
    for value in policies_svg.ticks(lost_s, 4):
        parts += [line(lost(value), TOP - 8, lost(value), bottom), text(lost(value), TOP - 13, f"{value:g}", **_TICK)]
    for number, row in enumerate(rows):
        parts += _ending(row, TOP + ROW * number + ROW / 2, time, pause, lost)
    return svg(WIDTH, height, parts, f"times, pauses and lost work in scenario {rows[0].scenario if rows else ''}")


_TICK: Final = {"size": 10, "anchor": "middle", "fill": MUTED}


def _grid(value: int) -> str:
    return "#9aa4af" if value == LIMIT_MS else policies_svg.GRID


def _ending(row: Row, y: float, time: Scale, pause: Scale, lost: Scale) -> list[str]:
    colour = COLOURS[row.outcome]
    parts = [text(LABELS - 10, y + 4, row.contender, anchor="end", bold=row.contender in OURS)]
    if row.outcome == "not available":
        return [*parts, text(LABELS + 4, y + 4, f"not available: {row.reason}"[:150], size=11, fill=MUTED)]
    total = row.spreads.get("total_ms")
    if total is not None:
        parts.append(rect(time.start, y - 8, time(total.median / 1000) - time.start, 16, fill=colour, opacity=0.32))
        parts += _range(total, time, y, colour, per=1000)
        parts += [
            dot(time(sample.total_ms / 1000), y, fill=colour, title=_title(sample))
            for sample in row.samples
            if sample.total_ms is not None
        ]
        label = f"{total.median / 1000:.1f} s" + ("" if row.outcome == "completed" else f", {ENDINGS[row.outcome]}")
        label += "" if row.story == row.outcome else f" ({row.story})"
        right = time(total.most / 1000) + 8
        if right + 6.5 * len(label) > time.end + 25:
            parts.append(text(time(total.median / 1000) - 8, y + 4, label, size=11, anchor="end"))
        else:
            parts.append(text(right, y + 4, label, size=11))
    else:
        parts.append(text(LABELS + 4, y + 4, f"{row.outcome}: {row.reason}"[:70], size=11, fill=colour))
    parts += _pauses(row, y, pause)
    work = row.spreads.get("lost_ms")
    if work is not None:
        value = max(work.median / 1000, 0)
        parts.append(rect(lost.start, y - 6, max(lost(value) - lost.start, 1), 12, fill="#5b6b7d", opacity=0.45))
        percent = row.median("lost_percent") or 0
        words = (
            f"{value:.1f} s, {max(percent, 0):.0f} %"
            if value >= 0.95
            else f"{value * 1000:.0f} ms, {max(percent, 0):.0f} %"
        )
        parts.append(text(lost(value) + 5, y + 4, words, size=11, fill=MUTED))
    return parts


def _pauses(row: Row, y: float, pause: Scale) -> list[str]:
    spread = row.spreads.get("blackout_ms")
    if spread is None:
        return [text(pause.start + 2, y + 4, "never stopped", size=11, fill=MUTED)]
    colour = COLOURS[row.outcome]
    parts = _range(spread, pause, y, colour)
    for sample in row.samples:
        if sample.inside is not None and sample.inside.blackout_ms:
            inside = sample.inside.blackout_ms
            parts.append(dot(pause(inside), y, fill=INSIDE, radius=5.2, hollow=True, title=f"inside {inside:.1f} ms"))
    parts += [
        dot(pause(sample.blackout_ms), y, fill=colour, title=f"STOP to RESUME {sample.blackout_ms:.1f} ms")
        for sample in row.samples
        if sample.blackout_ms
    ]
    right = pause(spread.most) + 10
    label = f"{spread.median:.0f}"
    anchor, at = ("start", right) if right < pause.end else ("end", pause(spread.least) - 10)
    return [*parts, text(at, y + 4, label, size=11, anchor=anchor)]


def _range(spread: Spread, scale: Scale, y: float, colour: str, per: float = 1) -> list[str]:
    low, high = scale(spread.least / per), scale(spread.most / per)
    return [line(low, y, high, y, stroke=colour, width=2.4)] if high > low else []


def _title(sample: Sample) -> str:
    total = f"{sample.total_ms / 1000:.2f} s" if sample.total_ms else ""
    return f"round {sample.round}: {sample.outcome} {total}, {sample.passes} passes"


CELL_W: Final = 240
CELL_H: Final = 92
GAP: Final = 18


def courses(
    scenarios: Sequence[Scenario], row_of: Callable[[str, str], Row | None], *, most_s: float, most_mib: float
) -> str:
    """Return the grid: contenders downwards, scenarios to the right; in each cell what was left to send over the time.

    Args:
        scenarios: The columns.
        row_of: Gives a row by scenario and contender.
        most_s: Right end of each cell, seconds.
        most_mib: Its upper end, MiB.
    """
    names = [contender.name for contender in CONTENDERS["policies"]]
    parts = [
        text(LABELS + column * (CELL_W + GAP), 16, scenario.story, bold=True)
        for column, scenario in enumerate(scenarios)
    ]
    for number, name in enumerate(names):
        top = 28 + number * (CELL_H + GAP)
        parts.append(text(LABELS - 12, top + CELL_H / 2, name, anchor="end", bold=name in OURS))
        for column, scenario in enumerate(scenarios):
            left = LABELS + column * (CELL_W + GAP)
            row = row_of(scenario.name, name)
            parts += _cell(row, left, top, most_s, most_mib, axis=number == len(names) - 1)
    height = 28 + len(names) * (CELL_H + GAP) + 16
    return svg(
        LABELS + len(scenarios) * (CELL_W + GAP), height, parts, "what was left to send over the time, per contender"
    )


def _cell(row: Row | None, left: float, top: float, most_s: float, most_mib: float, *, axis: bool) -> list[str]:
    x, y = Scale(0, most_s, left, left + CELL_W), Scale(0, most_mib, top + CELL_H, top)
    parts = [rect(left, top, CELL_W, CELL_H, fill="#f6f8fa")]
    for value in policies_svg.ticks(most_s, 4):
        parts.append(line(x(value), top, x(value), top + CELL_H))
        if axis:
            parts.append(text(x(value), top + CELL_H + 12, f"{value:g}", **_TICK))
    if axis:
        parts.append(text(left + CELL_W, top + CELL_H + 12, "s", **_TICK))
    if row is None or row.outcome == "not available":
        return [*parts, text(left + 8, top + 18, "not available" if row else "not measured", size=11, fill=MUTED)]
    colour = COLOURS[row.outcome]
    for sample in row.samples:
        parts += _course(sample, x, y)
    total = row.median("total_ms")
    words = [ENDINGS.get(row.outcome, row.outcome), "" if total is None else f"{total / 1000:.1f} s"]
    if (passes := row.median("passes")) is not None:
        words.append(f"pass {passes:.0f}")
    if (blackout := row.median("blackout_ms")) is not None:
        words.append(f"pause {blackout:.0f} ms")
    return [
        *parts,
        text(left + CELL_W - 6, top + 14, ", ".join(filter(None, words)), size=11, anchor="end", fill=colour),
    ]


def _course(sample: Sample, x: Scale, y: Scale) -> list[str]:
    colour = COLOURS[sample.outcome]
    parts = []
    slowed = [(x(p.at_ms / 1000), y(y.high * p.throttle_percent / 100)) for p in sample.curve]
    if any(p.throttle_percent for p in sample.curve):
        parts.append(path(slowed, stroke=THROTTLE, width=1.2, opacity=0.55))
    points = [(x(p.at_ms / 1000), y(p.remaining_bytes / 2**20)) for p in sample.curve]
    parts.append(path(points, stroke=colour, width=1.3, opacity=0.75))
    if sample.total_ms is not None:
        at = x(sample.total_ms / 1000)
        if sample.outcome == "completed":
            parts.append(dot(at, y(0), fill=colour, radius=4))
        elif points:
            parts.append(cross(at, points[-1][1], stroke=colour))
    return parts


def rates(rows: Sequence[Row], allowed: Sequence[tuple[str, Spread]]) -> str:
    """Return the bars of throughput, with lines for what two processes with nothing to migrate reach.

    Args:
        rows: Of the scenario without a limit.
        allowed: Name and rate, MiB/s, of each such line.
    """
    known = [row.spreads["throughput_mib_s"].most for row in rows if "throughput_mib_s" in row.spreads]
    most = max([*known, *(spread.median for _, spread in allowed)], default=1) * 1.15
    scale = Scale(0, most, LABELS + 20, 900)
    top = TOP + 14 * len(allowed)
    bottom = top + ROW * len(rows)
    parts = [text(LABELS + 20, 14, "MiB/s", bold=True)]
    for value in policies_svg.ticks(most, 8):
        parts += [
            line(scale(value), top - 8, scale(value), bottom),
            text(scale(value), top - 13, f"{value:g}", **_TICK),
        ]
    for number, (name, spread) in enumerate(allowed):
        parts.append(
            line(scale(spread.median), 22 + 14 * number, scale(spread.median), bottom, stroke=INSIDE, dash="4 3")
        )
        parts.append(
            text(scale(spread.median) + 5, 30 + 14 * number, f"{name}: {spread.median:.0f}", size=11, fill=INSIDE)
        )
    for number, row in enumerate(rows):
        y = top + ROW * number + ROW / 2
        parts.append(text(LABELS + 10, y + 4, row.contender, anchor="end"))
        spread_of = row.spreads.get("throughput_mib_s")
        if spread_of is None:
            parts.append(text(LABELS + 26, y + 4, f"{row.outcome}: {row.reason}"[:120], size=11, fill=MUTED))
            continue
        colour = "#5b6b7d" if row.contender == "raw QEMU" else COLOURS["completed"]
        parts.append(rect(scale.start, y - 8, scale(spread_of.median) - scale.start, 16, fill=colour, opacity=0.32))
        parts += _range(spread_of, scale, y, colour)
        parts += [dot(scale(s.throughput_mib_s), y, fill=colour) for s in row.samples if s.throughput_mib_s]
        parts.append(text(scale(spread_of.most) + 8, y + 4, f"{spread_of.median:.0f}", size=11))
    return svg(WIDTH, bottom + 10, parts, "throughput without a limit of the link")
