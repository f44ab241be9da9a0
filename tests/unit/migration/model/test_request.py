"""What can be asked for, and the document that tells how it ended."""

from __future__ import annotations

import json
import re

import pytest

from qmp_migrate.errors import InvalidName, InvalidQuantity, UsageError
from qmp_migrate.migration.model.request import (
    MAX_DOWNTIME_MS,
    MIN_BANDWIDTH,
    MigrationRequest,
    MigrationResult,
    new_id,
)
from qmp_migrate.vm.names import validate_name


def test_defaults_are_the_safe_ones() -> None:
    request = MigrationRequest("web1", "b")
    assert request.encrypt is True
    assert (request.mode, request.downtime_limit_ms, request.bandwidth_bytes_per_s) == ("live", 300, 0)
    assert request.source is None


def test_ids_are_new_sort_by_time_and_can_stand_anywhere() -> None:
    ids = [MigrationRequest("web1", "b").id for _ in range(200)]
    assert len(set(ids)) == 200
    for made in ids:
        assert re.fullmatch(r"m[0-9]{12}[0-9a-f]{6}", made)
        validate_name(made, "migration id")
    stamps = [made[:13] for made in ids]
    assert stamps == sorted(stamps)
    assert new_id() != new_id()


@pytest.mark.parametrize("name", ["", "Web1", "../b", "a/b", "a b", "$(id)", "-x", "a\n", "a" * 64])
def test_names_are_checked_before_anything_is_done(name: str) -> None:
    for wanted in ((name, "b", "a"), ("web1", name, "a"), ("web1", "b", name)):
        with pytest.raises(InvalidName):
            MigrationRequest(*wanted)


def test_to_where_it_is_already_is_a_mistake() -> None:
    with pytest.raises(UsageError, match="web1 is already on b") as caught:
        MigrationRequest("web1", "b", "b")
    assert caught.value.exit_code == 2
    assert caught.value.hint


@pytest.mark.parametrize("limit", [0, -1, MAX_DOWNTIME_MS + 1])
def test_a_downtime_limit_that_qemu_refuses_is_refused_here(limit: int) -> None:
    with pytest.raises(InvalidQuantity, match=f"{limit} ms is not possible"):
        MigrationRequest("web1", "b", downtime_limit_ms=limit)


@pytest.mark.parametrize("rate", [-1, 1, 10, MIN_BANDWIDTH - 1])
def test_a_bandwidth_that_would_never_end_is_refused(rate: int) -> None:
    with pytest.raises(InvalidQuantity, match="would never end"):
        MigrationRequest("web1", "b", bandwidth_bytes_per_s=rate)


def test_the_edges_are_allowed() -> None:
    MigrationRequest("web1", "b", downtime_limit_ms=1, bandwidth_bytes_per_s=MIN_BANDWIDTH)
    MigrationRequest("web1", "b", downtime_limit_ms=MAX_DOWNTIME_MS, bandwidth_bytes_per_s=0)


def test_the_document_has_every_member_of_the_contract() -> None:
    result = MigrationResult(id="m1", vm="web1", source="a", destination="b", mode="live")
    document = json.loads(json.dumps(result.to_dict()))
    assert document["schema"] == "migration.result/1"
    assert set(document) == {
        *("schema", "id", "vm", "source", "destination", "mode", "outcome", "owner", "total_ms", "blackout_ms"),
        *("qemu", "ram_bytes", "transferred_bytes", "disk_bytes", "passes", "throughput_bytes_per_s", "encrypted"),
        *("channels", "steps", "warnings", "hooks", "forecast", "error"),
    }
    assert document["qemu"] == {"total_ms": 0, "downtime_ms": 0, "setup_ms": 0}
    assert document["error"] is None
    # Until somebody has proven otherwise: it failed, and nothing was moved.
    assert (document["outcome"], document["owner"]) == ("failed", "source")


def test_documents_share_nothing() -> None:
    first, second = (MigrationResult(id=i, vm="w", source="a", destination="b", mode="live") for i in ("m1", "m2"))
    first.warnings.append("x")
    first.qemu["total_ms"] = 5
    assert not second.warnings
    assert second.qemu["total_ms"] == 0
