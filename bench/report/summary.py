"""Medians and ranges of what was measured. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final, Generic, Protocol, TypeVar

from bench.measure.samples import Sample

METRICS: Final[dict[str, Callable[[Sample], float | None]]] = {
    "wall_ms": lambda sample: sample.wall_ms,
    "total_ms": lambda sample: sample.qemu.total_ms if sample.qemu else None,
    "downtime_ms": lambda sample: sample.qemu.downtime_ms if sample.qemu else None,
    "setup_ms": lambda sample: sample.qemu.setup_ms if sample.qemu else None,
    "passes": lambda sample: sample.qemu.passes if sample.qemu else None,
    "overhead_ms": lambda sample: sample.overhead_ms,
    "blackout_ms": lambda sample: sample.blackout_ms,
    "handover_ms": lambda sample: sample.handover_ms,
    "told_blackout_ms": lambda sample: sample.told_blackout_ms,
    "throughput_mib_s": lambda sample: sample.throughput_mib_s,
    "copying_ms": lambda sample: sample.copying_ms,
    "controller_cpu_percent": lambda sample: sample.controller_cpu_percent,
    "guest_rate_mib_s": lambda sample: sample.guest_rate_mib_s,
}


@dataclass(frozen=True, slots=True)
class Spread:
    """Of several values of one metric: the median, the least, the most, and how many there were."""

    median: float
    least: float
    most: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        """Return it, or None where nothing was measured; absent values do not count."""
        known = [value for value in values if value is not None]
        return cls(median(known), min(known), max(known), len(known)) if known else None


@dataclass(frozen=True, slots=True)
class Row:
    """One contender in one scenario.

    Attributes:
        spreads: By the names of `METRICS`; what was not measured is not in it.
        stages: Median of each stage, milliseconds, in order.
        failures: Errors of the samples that have no numbers.
        lost: Samples after which the guest did not go on.
    """

    scenario: str
    contender: str
    spreads: dict[str, Spread]
    stages: dict[str, float]
    failures: tuple[str, ...]
    lost: int

    def median(self, metric: str) -> float | None:
        """Return a metric's median, None where it was not measured."""
        spread = self.spreads.get(metric)
        return spread.median if spread else None


class Measured(Protocol):
    """A sample, as far as the order of rows needs it."""

    @property
    def scenario(self) -> str: ...  # noqa: D102
    @property
    def contender(self) -> str: ...  # noqa: D102


class Line(Protocol):
    """A row, as far as a table needs it."""

    @property
    def scenario(self) -> str: ...  # noqa: D102

    def median(self, metric: str) -> float | None: ...  # noqa: D102


SampleT = TypeVar("SampleT", bound=Measured)
RowT = TypeVar("RowT", bound=Line)


class Table(Generic[RowT]):
    """A row for each contender in each scenario, in the order in which they were measured first.

    Args:
        samples: What was measured.
        row: Makes the row of one contender in one scenario from its samples.
    """

    def __init__(self, samples: Iterable[SampleT], row: Callable[[str, str, Sequence[SampleT]], RowT]) -> None:
        groups: dict[tuple[str, str], list[SampleT]] = {}
        for sample in samples:
            groups.setdefault((sample.scenario, sample.contender), []).append(sample)
        self.rows = {key: row(*key, group) for key, group in groups.items()}

    def row(self, scenario: str, contender: str) -> RowT | None:
        """Return one row, or None."""
        return self.rows.get((scenario, contender))

    def median(self, scenario: str, contender: str, metric: str) -> float | None:
        """Return one median, or None."""
        row = self.row(scenario, contender)
        return row.median(metric) if row else None

    def of(self, scenario: str) -> list[RowT]:
        """Return a scenario's rows."""
        return [row for row in self.rows.values() if row.scenario == scenario]


def spreads(metrics: Mapping[str, Callable[[SampleT], float | None]], samples: Sequence[SampleT]) -> dict[str, Spread]:
    """Return the spread of each metric that was measured."""
    found = {name: Spread.of(metric(sample) for sample in samples) for name, metric in metrics.items()}
    return {name: spread for name, spread in found.items() if spread is not None}


class Summary(Table[Row]):
    """The rows of what was measured."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        super().__init__(samples, _row)


def _row(scenario: str, contender: str, samples: Sequence[Sample]) -> Row:
    good = [sample for sample in samples if sample.error is None]
    names = dict.fromkeys(name for sample in good for name in sample.stages)
    return Row(
        scenario,
        contender,
        spreads(METRICS, good),
        {name: median(sample.stages[name] for sample in good if name in sample.stages) for name in names},
        tuple(sample.error for sample in samples if sample.error is not None),
        sum(sample.guest_went_on is False for sample in good),
    )
