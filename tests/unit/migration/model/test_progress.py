"""Numbers that a person follows: they do not go back, and no time is promised where none can be told."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qmp_migrate.migration.model.progress import ProgressMeter
from qmp_migrate.migration.model.reporter import Progress
from qmp_migrate.qemu.migration import MigrationInfo, RamInfo
from tests.support.data.recorded_replies import ACTIVE_7_2, COMPLETED_10_0

GIB = 1 << 30

samples = st.builds(
    MigrationInfo,
    status=st.sampled_from(["setup", "active", "device", "a-status-of-2030"]),
    ram=st.none()
    | st.builds(
        RamInfo,
        transferred=st.integers(0, 64 * GIB),
        remaining=st.integers(0, 16 * GIB),
        total=st.integers(0, 16 * GIB),
        dirty_pages_rate=st.integers(0, 1 << 24),
        mbps=st.floats(0, 400_000),
        passes=st.integers(0, 100),
    ),
)


def read(meter: ProgressMeter, *, status: str = "active", **ram: float) -> Progress:
    return meter.read(MigrationInfo(status=status, ram=RamInfo.model_validate(ram)), elapsed_ms=5)


@given(st.lists(samples, max_size=30))
def test_percent_never_goes_back_and_100_is_kept_for_the_end(measured: list[MigrationInfo]) -> None:
    meter = ProgressMeter("m1")
    reports = [meter.read(info, elapsed_ms=1) for info in measured]
    percents = [report.percent for report in reports]
    assert percents == sorted(percents)
    assert all(0 <= percent < 100 for percent in percents)
    assert [report.seq for report in reports] == list(range(1, len(reports) + 1))
    assert meter.read(MigrationInfo(status="completed"), elapsed_ms=1).percent == 100


@given(samples)
def test_no_time_is_told_while_it_diverges(info: MigrationInfo) -> None:
    report = ProgressMeter("m1").read(info, elapsed_ms=1)
    diverges = report.dirty_bytes_per_s >= report.throughput_bytes_per_s
    assert (report.eta_ms is None) == diverges
    assert report.eta_ms is None or report.eta_ms >= 0


def test_the_time_counts_what_is_dirtied_on_the_way() -> None:
    """1 GiB left at 100 MiB/s of which 50 are dirtied again: twice as long as without."""
    quiet = read(ProgressMeter("m1"), remaining=GIB, mbps=838.8608)
    busy = read(ProgressMeter("m1"), remaining=GIB, mbps=838.8608, **{"dirty-pages-rate": 12800})
    assert quiet.eta_ms == 10240
    assert busy.eta_ms == 20480


def test_zero_pages_count_as_done_in_the_first_pass() -> None:
    """They travel as a few bytes: by bytes on the wire this guest would be at 1 % after three quarters of its memory."""
    info = MigrationInfo.model_validate(ACTIVE_7_2)
    report = ProgressMeter("m1").read(info, elapsed_ms=91)
    assert report.percent == 74.5
    assert (report.transferred_bytes, report.remaining_bytes, report.total_bytes) == (343501, 34328576, 134750208)
    assert (report.pass_number, report.expected_blackout_ms, report.throttle_percent) == (1, 300, 0)
    assert (report.id, report.status, report.elapsed_ms) == ("m1", "active", 91)


def test_at_the_end_everything_is_sent() -> None:
    report = ProgressMeter("m1").read(MigrationInfo.model_validate(COMPLETED_10_0), elapsed_ms=99)
    assert (report.percent, report.remaining_bytes, report.status) == (100, 0, "completed")


def test_what_is_dirtied_again_does_not_take_percent_back() -> None:
    meter = ProgressMeter("m1")
    assert read(meter, total=GIB, remaining=GIB // 10, **{"dirty-sync-count": 1}).percent == 90
    after = read(meter, total=GIB, remaining=GIB, transferred=GIB, **{"dirty-sync-count": 2})
    assert after.percent == 90


def test_before_there_are_numbers_there_are_none() -> None:
    report = ProgressMeter("m1").read(MigrationInfo(status="setup"), elapsed_ms=1)
    assert (report.percent, report.eta_ms, report.expected_blackout_ms, report.total_bytes) == (0, None, None, 0)
