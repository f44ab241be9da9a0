"""Medians and ranges of the shoot-out's samples. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from bench.policies.measure.samples import Outcome, Sample
from bench.report.summary import Spread, Table, spreads

METRICS: Final[dict[str, Callable[[Sample], float | None]]] = {
    "total_ms": lambda sample: sample.total_ms,
    "wall_ms": lambda sample: sample.wall_ms,
    "blackout_ms": lambda sample: sample.blackout_ms,
    "inside_ms": lambda sample: sample.inside.blackout_ms if sample.inside and sample.outcome == "completed" else None,
    "exact_ms": lambda sample: sample.inside.exact_ms if sample.inside else None,
    "gap_ms": lambda sample: sample.inside.gap_ms if sample.inside else None,
    "stall_ms": lambda sample: sample.inside.stall_ms if sample.inside else None,
    "lost_ms": lambda sample: sample.inside.lost_ms if sample.inside else None,
    "lost_percent": lambda sample: sample.inside.lost_percent if sample.inside else None,
    "rate_mib_s": lambda sample: sample.inside.rate_mib_s if sample.inside else None,
    "mib": lambda sample: None if sample.bytes is None else sample.bytes / 2**20,
    "passes": lambda sample: sample.passes,
    "throttle_percent": lambda sample: sample.throttle_percent,
    "first_pass_ms": lambda sample: sample.first_pass_ms,
    "throughput_mib_s": lambda sample: sample.throughput_mib_s,
    "forecast_error": lambda sample: sample.forecast_error,
}


@dataclass(frozen=True, slots=True)
class Row:
    """One contender in one scenario.

    Attributes:
        outcomes: Of all its samples, in order.
        reason: Why the last one that did not complete did not.
        spreads: By the names of `METRICS`; of the samples that ended as most did. What was not measured is not in it.
        samples: Those samples.
        lost: Samples after which the guest had not survived.
    """

    scenario: str
    contender: str
    outcomes: tuple[Outcome, ...]
    reason: str
    spreads: dict[str, Spread]
    samples: tuple[Sample, ...]
    lost: int

    @property
    def outcome(self) -> Outcome:
        """How most ended; of equals the better."""
        order: tuple[Outcome, ...] = ("completed", "gave up", "still going", "failed", "not available")
        return max(order, key=lambda outcome: (self.outcomes.count(outcome), -order.index(outcome)))

    @property
    def story(self) -> str:
        """The outcomes in words."""
        counted = {outcome: self.outcomes.count(outcome) for outcome in dict.fromkeys(self.outcomes)}
        if len(counted) == 1:
            return self.outcome
        return ", ".join(f"{count}x {outcome}" for outcome, count in counted.items())

    def median(self, metric: str) -> float | None:
        """Return a metric's median, None where it was not measured."""
        spread = self.spreads.get(metric)
        return spread.median if spread else None


class Summary(Table[Row]):
    """The rows of the shoot-out."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        super().__init__(samples, _row)


def _row(scenario: str, contender: str, samples: Sequence[Sample]) -> Row:
    bare = Row(scenario, contender, tuple(s.outcome for s in samples), "", {}, (), 0)
    meant = tuple(sample for sample in samples if sample.outcome == bare.outcome)
    return Row(
        scenario,
        contender,
        bare.outcomes,
        next((sample.reason for sample in reversed(samples) if sample.reason), ""),
        spreads(METRICS, meant),
        meant,
        sum(sample.survived is False for sample in samples),
    )
