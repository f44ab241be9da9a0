"""From ``query-migrate`` samples to numbers a person can follow: percent that never goes back, ETA only when it is one."""

from __future__ import annotations

from typing import Final

from qmp_migrate.migration.model.reporter import Progress
from qmp_migrate.qemu.migration import MigrationInfo

RATE_MS: Final = 1000
"""A rate of disks is that of this time, at least."""

STILL_MS: Final = 2000
"""Without a byte for so long, there is no rate and no end in sight."""


class ProgressMeter:
    """Turns the samples of one migration into `Progress` reports."""

    def __init__(self, migration_id: str, ram_bytes: int = 0) -> None:
        self._id = migration_id
        self._ram_bytes = ram_bytes
        self._seq = 0
        self._percent = 0.0
        self._moved = (-1, 0)
        self._disks = (0, 0)
        self._disk_rate = (0, 0, 0)
        self._before_ms = 0

    def read_disks(self, done: int, total: int, *, elapsed_ms: int) -> Progress:
        """Return the report while disks are copied, before memory is: percent is of both together.

        Args:
            done: Bytes of all disks that were copied.
            total: Bytes to copy; grows while the guest writes.
            elapsed_ms: Since copying the disks began.
        """
        self._seq += 1
        self._disks, self._before_ms = (done, max(done, total)), elapsed_ms
        at_ms, at_bytes, rate = self._disk_rate
        if elapsed_ms - at_ms >= RATE_MS:
            rate = max(0, done - at_bytes) * 1000 // (elapsed_ms - at_ms)
            self._disk_rate = (elapsed_ms, done, rate)
        remaining = max(0, total - done)
        if total + self._ram_bytes > 0:
            self._percent = max(self._percent, min(99.9, 100.0 * done / (total + self._ram_bytes)))
        return Progress(
            id=self._id,
            seq=self._seq,
            status="mirroring",
            percent=round(self._percent, 1),
            transferred_bytes=0,
            remaining_bytes=self._ram_bytes,
            total_bytes=self._ram_bytes,
            throughput_bytes_per_s=rate,
            dirty_bytes_per_s=0,
            pass_number=0,
            throttle_percent=0,
            expected_blackout_ms=None,
            eta_ms=(remaining + self._ram_bytes) * 1000 // rate if rate else None,
            elapsed_ms=elapsed_ms,
            disk_transferred_bytes=done,
            disk_total_bytes=self._disks[1],
        )

    def read(self, info: MigrationInfo, *, elapsed_ms: int) -> Progress:
        """Return the report for one sample.

        Percent is what has been sent of what will have been sent, ``sent / (sent + remaining)``. Pages dirtied again
        lower it; then the highest value so far stands. 100 is kept for the end.

        Args:
            info: The sample.
            elapsed_ms: Since ``migrate`` was sent.
        """
        ram = info.ram
        self._seq += 1
        transferred = ram.transferred if ram else 0
        remaining = ram.remaining if ram else 0
        total = ram.total if ram else 0
        # Zero pages travel as a few bytes: progress over the guest's memory, not over the bytes on the wire.
        done = max(0, total - remaining) if ram and ram.passes <= 1 else transferred
        if info.status == "completed":
            self._percent = 100.0
        elif done + remaining > 0:
            disks = self._disks[1]  # all of them are there by now
            self._percent = max(self._percent, min(99.9, 100.0 * (disks + done) / (disks + done + remaining)))
        if transferred != self._moved[0]:
            self._moved = (transferred, elapsed_ms)
        still = elapsed_ms - self._moved[1] > STILL_MS  # QEMU goes on saying the last rate
        rate = ram.throughput_bytes_per_s if ram and not still else 0
        dirty = ram.dirty_bytes_per_s if ram else 0
        return Progress(
            id=self._id,
            seq=self._seq,
            status=info.status,
            percent=round(self._percent, 1),
            transferred_bytes=transferred,
            remaining_bytes=remaining,
            total_bytes=total,
            throughput_bytes_per_s=rate,
            dirty_bytes_per_s=dirty,
            pass_number=ram.passes if ram else 0,
            throttle_percent=info.throttle_percent,
            expected_blackout_ms=info.expected_downtime_ms,
            eta_ms=_eta_ms(remaining, rate, dirty),
            elapsed_ms=self._before_ms + elapsed_ms,
            disk_transferred_bytes=self._disks[0],
            disk_total_bytes=self._disks[1],
        )


def _eta_ms(remaining: int, rate: int, dirty: int) -> int | None:
    """Time until nothing remains: the geometric series of passes, ``remaining / (rate - dirty)``; None if it diverges."""
    if rate <= 0 or dirty >= rate:
        return None
    return int(remaining * 1000 / (rate - dirty))
