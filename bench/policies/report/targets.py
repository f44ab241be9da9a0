"""What the project promises about convergence and rates, against what was measured. Pure; a goal that is missed is told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final, Literal

from bench.policies.report.summary import Row, Summary
from bench.policies.scenarios import OTHERS, POLICIES

NOISE: Final = 0.05
"""Two times that differ by less, or whose ranges overlap, are a tie."""

NOISE_MS: Final = 3.0
"""The same for blackouts, which are too short for a percentage."""

FULL_COPIES: Final = 3.0
SEES_AT_PASS: Final = 2
"""When pass 2 begins it is known how much the guest has dirtied while pass 1 was sent: sooner nobody can see it."""

PASSES: Final = 3
TLS_PART: Final = 0.9
FORECAST_ERROR: Final = 0.3

Verdict = Literal["met", "tie", "NOT MET", "not measured"]


@dataclass(frozen=True, slots=True)
class Goal:
    """One promise and what came of it.

    Attributes:
        name: What is promised.
        verdict: ``tie``: within noise, which is told as such.
        told: The figures.
    """

    name: str
    verdict: Verdict
    told: str


def judge(summary: Summary, tls_mib_s: Mapping[str, Sequence[float]]) -> list[Goal]:
    """Return every goal with what was measured.

    Args:
        summary: What was measured.
        tls_mib_s: What TLS allows, by the number of connections.
    """
    easy = [scenario for scenario in POLICIES if scenario.ratio <= 0.8]
    goals = []
    for scenario in easy:
        goals.append(_sooner(summary, scenario.name))
        goals.append(_shorter(summary, scenario.name))
    hard = next(scenario for scenario in POLICIES if scenario.ratio > 1)
    return [
        *goals,
        _ends(summary, hard.name),
        _gives_up(summary, hard.name),
        _tls(summary, tls_mib_s),
        _multifd(summary),
        _forecast(summary),
    ]


def compare(ours: Row, other: Row, metric: str, noise: float) -> Literal["less", "tie", "more"]:
    """Say whether a median of ours is less than another's; ``tie`` where it is not but the difference is noise.

    Args:
        ours: The one row.
        other: The other one.
        metric: Of `summary.METRICS`.
        noise: Absolute; medians closer than this are equal.
    """
    left, right = ours.spreads[metric], other.spreads[metric]
    if left.median <= right.median:
        return "less"
    overlap = left.least <= right.most and right.least <= left.most and min(left.count, right.count) > 1
    return "tie" if overlap or left.median - right.median < noise else "more"


def _completed(summary: Summary, scenario: str, names: Iterable[str], metric: str) -> list[Row]:
    rows = (summary.row(scenario, name) for name in names)
    return [row for row in rows if row is not None and row.outcome == "completed" and metric in row.spreads]


def _sooner(summary: Summary, scenario: str) -> Goal:
    name = f"{scenario}: default takes no longer than the best of the five"
    ours, others = _both(summary, scenario, "total_ms")
    if ours is None or not others:
        return Goal(name, _absent(summary, scenario), "")
    best = min(others, key=lambda row: row.spreads["total_ms"].median)
    verdict = compare(ours, best, "total_ms", NOISE * best.spreads["total_ms"].median)
    told = f"{_s(ours)} against {_s(best)} of {best.contender}"
    return Goal(name, {"less": "met", "tie": "tie", "more": "NOT MET"}[verdict], told)  # type: ignore[arg-type]


def _shorter(summary: Summary, scenario: str) -> Goal:
    name = f"{scenario}: default has a smaller blackout than each of the five"
    ours, others = _both(summary, scenario, "blackout_ms")
    if ours is None or not others:
        return Goal(name, _absent(summary, scenario), "")
    verdicts = [compare(ours, row, "blackout_ms", NOISE_MS) for row in others]
    least = min(others, key=lambda row: row.spreads["blackout_ms"].median)
    told = f"{_ms(ours)} against {_ms(least)} of {least.contender}"
    verdict: Verdict = "NOT MET" if "more" in verdicts else "tie" if "tie" in verdicts else "met"
    return Goal(name, verdict, told)


def _both(summary: Summary, scenario: str, metric: str) -> tuple[Row | None, list[Row]]:
    ours = _completed(summary, scenario, ["default"], metric)
    return (ours[0] if ours else None), _completed(summary, scenario, OTHERS, metric)


def _absent(summary: Summary, scenario: str) -> Verdict:
    """Ours did not complete although it was measured: missed; else there is nothing to say."""
    row = summary.row(scenario, "default")
    return "not measured" if row is None or row.outcome in {"completed", "not available"} else "NOT MET"


def _ends(summary: Summary, scenario: str) -> Goal:
    name = f"{scenario}: finish ends within {FULL_COPIES:g} full copies"
    row = summary.row(scenario, "finish")
    copies = [r.median("first_pass_ms") for r in summary.of(scenario) if r.median("first_pass_ms")]
    if row is None or row.outcome == "not available" or not copies:
        return Goal(name, "not measured", "")
    copy = median(value for value in copies if value is not None)
    total = row.median("total_ms")
    if row.outcome != "completed" or total is None:
        return Goal(name, "NOT MET", row.story)
    worst = row.spreads["total_ms"].most
    told = f"{total / copy:.2f} copies of {copy / 1000:.2f} s (at most {worst / copy:.2f})"
    return Goal(name, "met" if worst <= FULL_COPIES * copy else "NOT MET", told)


def _gives_up(summary: Summary, scenario: str) -> Goal:
    name = f"{scenario}: gentle gives up within {PASSES} passes of seeing it"
    row = summary.row(scenario, "gentle")
    if row is None or row.outcome == "not available":
        return Goal(name, "not measured", "")
    if row.outcome != "gave up" or "passes" not in row.spreads:
        return Goal(name, "NOT MET", row.story)
    most = row.spreads["passes"].most
    told = f"in pass {most:.0f}; it can be seen when pass {SEES_AT_PASS} begins"
    return Goal(name, "met" if most - SEES_AT_PASS <= PASSES else "NOT MET", told)


def _tls(summary: Summary, tls_mib_s: Mapping[str, Sequence[float]]) -> Goal:
    name = f"encrypted multifd reaches {TLS_PART:.0%} of the rate that TLS itself allows"
    allowed = {count: median(rates) for count, rates in tls_mib_s.items() if count != "plain" and rates}
    reached = _completed(summary, "throughput", ("TLS, multifd 2", "TLS, multifd 4"), "throughput_mib_s")
    if not allowed or not reached:
        return Goal(name, "not measured", "")
    best = max(reached, key=lambda row: row.spreads["throughput_mib_s"].median)
    rate, most = best.spreads["throughput_mib_s"].median, max(allowed.values())
    told = f"{rate:.0f} of {most:.0f} MiB/s, {rate / most:.0%} ({best.contender})"
    return Goal(name, "met" if rate >= TLS_PART * most else "NOT MET", told)


def _multifd(summary: Summary) -> Goal:
    name = "multifd is at least as fast as QEMU's single stream"
    metric = "throughput_mib_s"
    raw = _completed(summary, "throughput", ("raw QEMU",), metric)
    ours = _completed(summary, "throughput", ("multifd 2", "multifd 4"), metric)
    if not raw or not ours:
        return Goal(name, "not measured", "")
    best = max(ours, key=lambda row: row.spreads[metric].median)
    rate, single = best.spreads[metric], raw[0].spreads[metric]
    told = f"{rate.median:.0f} MiB/s ({best.contender}) against {single.median:.0f} MiB/s"
    tie = rate.most >= single.least or rate.median >= single.median * (1 - NOISE)
    return Goal(name, "met" if rate.median >= single.median else "tie" if tie else "NOT MET", told)


def _forecast(summary: Summary) -> Goal:
    name = f"forecast of the time is off by {FORECAST_ERROR:.0%} at most (median)"
    errors = [s.forecast_error for row in summary.rows.values() for s in row.samples if s.forecast_error is not None]
    if not errors:
        return Goal(name, "not measured", "")
    off = median(errors)
    told = f"{off:.0%} over {len(errors)} migrations, at most {max(errors):.0%}"
    return Goal(name, "met" if off <= FORECAST_ERROR else "NOT MET", told)


def _s(row: Row) -> str:
    return f"{row.spreads['total_ms'].median / 1000:.2f} s"


def _ms(row: Row) -> str:
    return f"{row.spreads['blackout_ms'].median:.0f} ms"
