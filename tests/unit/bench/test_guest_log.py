"""The guest's own account of its migration: blackout, stalls, lost work."""

from __future__ import annotations

import zlib

import pytest

from bench.policies.measure import guest_log

S = 1_000_000_000
MS = 1_000_000


def line(words: str) -> bytes:
    return f"{words} #{zlib.crc32(words.encode()) & 0xFFFF:04x}\n".encode()


def log_of(seconds: float, *, since: float = 0.0, rate: float = 25.0, away_s: float = 0.0, gap_us: int = 1200) -> bytes:
    """Return what a guest says that works `rate` MiB/s; for `away_s` it was stopped before these seconds."""
    out = b""
    ticks = int(seconds * 20)
    for number in range(ticks):
        mono = since + (number + 1) * 0.05
        pages = int(mono * rate * 256)
        first = int(since * 1000) + number * 50 + 1
        out += line(f"QM T {first}-{first + 49} {int(mono * S)} {pages} {gap_us}")
        wall = mono + away_s
        if int(wall) > int(wall - 0.05):
            changed = int(wall) - away_s
            out += line(f"QM W {int(wall) + 86390} {int(changed * S)} 400")
    return out


def test_a_guest_that_stayed_has_lost_nothing() -> None:
    log = log_of(8)
    begin, end = len(log_of(3)), len(log_of(6))
    looked = guest_log.look(log, begin=begin, end=end, handover=None)
    assert looked is not None
    assert looked.rate_mib_s == pytest.approx(25, abs=0.1)
    assert looked.during_mib_s == pytest.approx(25, abs=0.1)
    assert abs(looked.lost_ms) < 5
    assert looked.stopped_ms == 0
    assert looked.stall_ms == 1.2


def test_a_blackout_is_a_step_between_the_two_clocks() -> None:
    before, after = log_of(4), log_of(4, since=4, away_s=0.25)
    log = before + after
    looked = guest_log.look(log, begin=len(log_of(3)), end=len(before) + 300, handover=len(before))
    assert looked is not None
    assert looked.blackout_ms == pytest.approx(250, abs=0.5)
    assert looked.exact_ms == 0.8
    assert looked.stopped_ms == pytest.approx(250, abs=0.5)
    assert looked.lost_ms == pytest.approx(250, abs=5)
    # The ticks around it are 1.2 ms apart on the guest's own clock.
    assert looked.gap_ms == pytest.approx(251.2, abs=0.5)


def test_a_stall_while_it_runs_is_no_blackout_but_a_gap() -> None:
    before = log_of(4)
    log = before + log_of(1, since=4, gap_us=700_000) + log_of(3, since=5)
    looked = guest_log.look(log, begin=len(log_of(3)), end=len(before) + 200, handover=None)
    assert looked is not None
    assert looked.blackout_ms == pytest.approx(0, abs=0.5)
    assert looked.stall_ms == looked.gap_ms == 700


def test_a_guest_that_is_slowed_down_has_lost_work() -> None:
    before = log_of(4)
    log = before
    for n in range(40):
        mono, pages = 4.05 + 0.05 * n, int(4 * 25 * 256 + (n + 1) * 0.05 * 12.5 * 256)
        log += line(f"QM T {4001 + 50 * n}-{4050 + 50 * n} {int(mono * S)} {pages} 1200")
    looked = guest_log.look(log, begin=len(before), end=len(log) - 10, handover=None)
    assert looked is None, "no tick after the end"
    looked = guest_log.look(log, begin=len(before), end=len(log) - 80, handover=None)
    assert looked is not None
    assert looked.lost_percent == pytest.approx(50, abs=1)


def test_midnight_is_no_blackout() -> None:
    log = line("QM W 86399 1000000000 300") + line("QM W 0 2000000000 300")
    _, walls = guest_log.read(log)
    assert list(guest_log._steps(walls, 0, 3 * S)) == [(0, 600_000)]


def test_lines_that_are_damaged_do_not_count() -> None:
    good = line("QM W 5 1000 300")
    ticks, walls = guest_log.read(good.replace(b"QM W 5", b"QM W 6") + good + b"QM T 1 2 3")
    assert ticks == []
    assert len(walls) == 1
    assert guest_log.walls_after(good + good, len(good)) == 1


@pytest.mark.parametrize("log", [b"", b"QM READY\n", log_of(0.05)])
def test_a_log_that_is_too_short_tells_nothing(log: bytes) -> None:
    assert guest_log.look(log, begin=len(log), end=len(log), handover=None) is None
