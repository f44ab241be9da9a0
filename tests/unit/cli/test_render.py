"""What the lines of a migration say: nothing that is not measured, nothing that is over."""

from __future__ import annotations

import dataclasses
import io

from rich.console import Console

from qmp_migrate.cli.render import ProgressView
from qmp_migrate.migration.model.reporter import Progress
from qmp_migrate.migration.model.request import MigrationRequest

MIB = 1 << 20
ACTIVE = Progress(
    id="m1",
    seq=1,
    status="active",
    percent=50.0,
    transferred_bytes=60 * MIB,
    remaining_bytes=60 * MIB,
    total_bytes=128 * MIB,
    throughput_bytes_per_s=30 * MIB,
    dirty_bytes_per_s=4 * MIB,
    pass_number=2,
    throttle_percent=0,
    expected_blackout_ms=40,
    eta_ms=None,
    elapsed_ms=2000,
)


def line(**members: object) -> str:
    console = Console(file=io.StringIO(), width=240)
    view = ProgressView(console, MigrationRequest("web1", "b"))
    view.progress(dataclasses.replace(ACTIVE, **members))  # type: ignore[arg-type]  # members of Progress
    written = console.file
    assert isinstance(written, io.StringIO)
    return written.getvalue()


def test_while_memory_is_copied_everything_is_told() -> None:
    assert "60.0 MiB sent of 128.0 MiB, 30.0 MiB/s, pass 2, dirtied 4.0 MiB/s, blackout about 40 ms, not conv" in line()


def test_before_anything_is_measured_no_verdict_is_given() -> None:
    told = line(pass_number=1, throughput_bytes_per_s=0, dirty_bytes_per_s=0)
    assert told.strip().endswith("60.0 MiB sent of 128.0 MiB")


def test_in_post_copy_the_pause_is_over() -> None:
    told = line(status="postcopy-active", eta_ms=200)
    assert "blackout" not in told
    assert "dirtied" not in told
    assert told.strip().endswith("pass 2, 200 ms left")
    assert "converging" not in line(status="postcopy-active")


def test_disks() -> None:
    told = line(status="mirroring", disk_transferred_bytes=MIB, disk_total_bytes=4 * MIB, throughput_bytes_per_s=0)
    assert told.strip().endswith("1.0 MiB of disks copied of 4.0 MiB")
