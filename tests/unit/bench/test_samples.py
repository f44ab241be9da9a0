"""One sample: what follows from its numbers."""

from __future__ import annotations

import json

import pytest

from bench.measure.samples import Numbers, Sample
from qmp_migrate.migration.model.request import MigrationResult

MIB = 1 << 20


def test_qemu_s_answer_is_taken_and_what_it_lacks_is_zero() -> None:
    info = {
        "status": "completed",
        "total-time": 500,
        "downtime": 20,
        "setup-time": 4,
        "ram": {"transferred": 7, "dirty-sync-count": 3},
    }
    assert Numbers.of(info) == Numbers(500, 20, 4, 7, 3)
    assert Numbers.of({"status": "completed"}) == Numbers(0, 0, 0, 0, 0)


def test_the_result_document_gives_the_same_numbers() -> None:
    result = MigrationResult("m1", "g", "a", "b", "live", transferred_bytes=7, passes=3)
    result.qemu = {"total_ms": 500, "downtime_ms": 20, "setup_ms": 4}
    assert Numbers.told(result.to_dict()) == Numbers(500, 20, 4, 7, 3)


def test_overhead_and_throughput_leave_out_what_is_qemu_s_own_and_its_set_up() -> None:
    sample = Sample("idle", "command", 1, wall_ms=900.0, qemu=Numbers(500, 20, 100, 40 * MIB, 3))
    assert sample.overhead_ms == 400
    assert sample.throughput_mib_s == pytest.approx(100)


@pytest.mark.parametrize("numbers", [None, Numbers(0, 0, 0, 5, 1), Numbers(3, 0, 3, 5, 1)])
def test_no_throughput_without_time(numbers: Numbers | None) -> None:
    assert Sample("idle", "raw", 1, qemu=numbers).throughput_mib_s is None


def test_controller_cpu_is_a_share_of_the_copying() -> None:
    sample = Sample("paced", "command", 1, copying_ms=8000.0, controller_cpu_ms=160.0)
    assert sample.controller_cpu_percent == pytest.approx(2)
    assert Sample("paced", "raw", 1, copying_ms=8000.0).controller_cpu_percent is None
    assert Sample("paced", "command", 1, copying_ms=0.0, controller_cpu_ms=1.0).controller_cpu_percent is None


def test_it_can_be_written_down_with_what_follows_from_it() -> None:
    sample = Sample("idle", "raw", 2, wall_ms=900.0, qemu=Numbers(500, 20, 0, 50 * MIB, 3))
    written = json.loads(json.dumps(sample.to_dict()))
    assert written["qemu"]["total_ms"] == 500
    assert (written["overhead_ms"], written["throughput_mib_s"]) == (400, 100)
