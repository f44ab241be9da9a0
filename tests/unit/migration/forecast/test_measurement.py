"""What a forecast takes from the journal, and what it leaves there."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qmp_migrate.migration.forecast import measurement
from qmp_migrate.migration.forecast.link_probe import Probed
from qmp_migrate.migration.forecast.measurement import (
    Earlier,
    busiest,
    earlier_migrations,
    link_from,
    remembered,
    terms,
)
from qmp_migrate.migration.journal.store import Journal, MigrationRecord
from qmp_migrate.migration.model.phases import Phase
from qmp_migrate.migration.model.request import MigrationRequest

REQUEST = MigrationRequest("web1", "b", "a")
PROBED = Probed(100.0, 5, setup_ms=20, launch_ms=300, wire_ms=50, answer_ms=2, encrypted=True)


def record(rate: int, *, around: int = 500, source: str = "a", **request: Any) -> MigrationRecord:
    result = {
        "throughput_bytes_per_s": rate,
        "total_ms": 1000 + around,
        "qemu": {"total_ms": 1000, "downtime_ms": 5, "setup_ms": 1},
    }
    return MigrationRecord(
        id="m1",
        vm="other",
        source=source,
        destination="b",
        mode="live",
        phase=Phase.DONE,
        epoch=1,
        rev=1,
        outcome="completed",
        owner="destination",
        may_have_run=True,
        cancel_requested=False,
        controller={},
        request={"encrypt": True, "channels": 1, "compress": None, **request},
        result=result,
        started_at=0,
        updated_at=0,
    )


def test_earlier_migrations_of_the_same_kind_between_the_same_hosts_count() -> None:
    records = [
        record(100, around=400),
        record(300, around=600),
        record(200, around=500),
        record(9999, source="c"),
        record(9999, encrypt=False),
        record(9999, channels=4),
        record(9999, copy_storage="full"),
        replace(record(9999), outcome="rolled_back"),
    ]
    assert earlier_migrations(records, "a", "b", REQUEST) == Earlier(3, 300, 500)


def test_without_any_there_is_nothing_to_go_by() -> None:
    assert earlier_migrations([], "a", "b", REQUEST) is None
    assert earlier_migrations([record(0)], "a", "b", REQUEST) is None


def test_the_probe_tells_of_the_link_and_the_journal_of_the_controller() -> None:
    assert link_from(PROBED, None).around_ms == 350 + measurement.RELEASE_MS
    both = link_from(PROBED, Earlier(1, 5.0, 777.0))
    assert (both.bytes_per_s, both.around_ms) == (100.0, 777.0)
    assert link_from(None, Earlier(1, 5.0, 777.0)).bytes_per_s == 5.0
    with pytest.raises(ValueError, match="neither"):
        link_from(None, None)


def test_how_busy_the_busiest_vcpu_is() -> None:
    assert busiest((10.0, [1.0, 5.0]), (14.0, [2.0, 8.0])) == 0.75
    assert busiest((10.0, [1.0]), (14.0, [9.0])) == 1.0
    assert busiest((10.0, []), (14.0, [])) == 1.0, "nobody knows"
    assert busiest((10.0, [1.0]), (14.0, [1.0])) == 0.01


async def test_a_forecast_counts_for_the_same_wish_and_for_an_hour(tmp_path: Path) -> None:
    async with await Journal.open(f"sqlite:///{tmp_path / 'journal.sqlite'}") as journal:
        assert await remembered(journal, REQUEST, "a") is None
        told = {"at": time.time(), "total_ms": 5, "asked": terms(REQUEST)}
        await journal.remember_probe("forecast/web1/a/b", told)
        assert (await remembered(journal, MigrationRequest("web1", "b"), "a") or {})["total_ms"] == 5
        assert await remembered(journal, replace(REQUEST, downtime_limit_ms=10), "a") is None
        assert await remembered(journal, replace(REQUEST, mode="offline"), "a") is None
        await journal.remember_probe("forecast/web1/a/b", told | {"at": time.time() - 2 * measurement.VALID_S})
        assert await remembered(journal, REQUEST, "a") is None
