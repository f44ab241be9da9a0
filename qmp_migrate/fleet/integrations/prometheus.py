"""The controller's metrics: what came of its migrations, read from the journal.

A controller often lives for one command, so it cannot count. The journal has counted: every migration that ended is there
with its result. The same page comes out whoever makes it, and nothing is lost or counted twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from qmp_migrate.exposition import text_of
from qmp_migrate.migration.journal.store import Journal, MigrationRecord
from qmp_migrate.migration.model.phases import Phase

BLACKOUT_S: Final = (0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
TOTAL_S: Final = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
BYTES: Final = tuple(float(1 << shift) for shift in range(24, 42, 2))
LIMIT: Final = 100_000
"""Migrations that are read; older ones are not in the figures any more."""


class MigrationCollector(Collector):
    """Makes the metrics of some migrations.

    Args:
        records: As the journal has them.
    """

    def __init__(self, records: Sequence[MigrationRecord]) -> None:
        self._records = records

    def collect(self) -> Iterator[Metric]:
        """Yield every metric."""
        ended = [record for record in self._records if record.outcome is not None]
        outcomes = CounterMetricFamily(
            "qmp_migrate_migrations", "Migrations that have ended, by what came of them.", labels=["outcome", "mode"]
        )
        for (outcome, mode), number in sorted(Counter((str(r.outcome), r.mode) for r in ended).items()):
            outcomes.add_metric([outcome, mode], number)
        yield outcomes
        under_way = sum(record.outcome is None and record.phase is not Phase.PARKED for record in self._records)
        parked = sum(record.phase is Phase.PARKED for record in self._records)
        yield GaugeMetricFamily("qmp_migrate_migrations_under_way", "Migrations that have not ended.", value=under_way)
        yield GaugeMetricFamily("qmp_migrate_migrations_parked", "Migrations that wait for a person.", value=parked)
        results = [record.result for record in ended if record.outcome == "completed" and record.result]
        yield _histogram(
            "qmp_migrate_migration_blackout_seconds",
            "STOP at the source to RESUME at the destination, of completed migrations of running guests.",
            BLACKOUT_S,
            [_number(result, "blackout_ms") / 1000 for result in results if _number(result, "blackout_ms") > 0],
        )
        yield _histogram(
            "qmp_migrate_migration_duration_seconds",
            "From the request to the end, of completed migrations.",
            TOTAL_S,
            [_number(result, "total_ms") / 1000 for result in results],
        )
        yield _histogram(
            "qmp_migrate_migration_transferred_bytes",
            "Memory that travelled, of completed migrations.",
            BYTES,
            [_number(result, "transferred_bytes") for result in results],
        )


def _histogram(name: str, text: str, bounds: Sequence[float], values: Sequence[float]) -> HistogramMetricFamily:
    buckets = [(_bound(bound), float(sum(value <= bound for value in values))) for bound in bounds]
    return HistogramMetricFamily(name, text, buckets=[*buckets, ("+Inf", float(len(values)))], sum_value=sum(values))


def _bound(value: float) -> str:
    return repr(value) if value < 1e15 else f"{value:g}"


def _number(result: dict[str, Any], name: str) -> float:
    value = result.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0 else 0.0


async def page(journal: Journal) -> bytes:
    """Return the metrics of a journal, in Prometheus' text format.

    Raises:
        JournalError: It cannot be read.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(MigrationCollector(await journal.migrations(limit=LIMIT)))
    return text_of(registry)
