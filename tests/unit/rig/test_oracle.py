"""The oracle must believe a guest that survived however its logs are cut, and no guest that did not."""

from __future__ import annotations

import itertools
import zlib
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qmp_migrate.rig.guest.oracle import Computed, TickFault, Verdict, judge

SECOND = 1_000_000_000


def line(text: str) -> bytes:
    return f"{text} #{zlib.crc32(text.encode()) & 0xFFFF:04x}\n".encode()


READY = line("QM READY v=1 ws=64 rate=50 tick=10 seed=7 verify=1 disk=/dev/vda")

# What a guest writes in three seconds: 60 lines of 5 ticks each, a sweep and journal records now and then.
BOOT = (
    b"\x1b[2J\x1b[01;01HSeaBIOS (version 1.16.2)\r\n"
    b"[    0.000000] Linux version 6.1.0\r\n[    0.123456][    T1] Run /init as init process\r\n\n"
)


def ticks(first: int, last: int, *, gap_us: int = 10_050) -> bytes:
    return line(f"QM T {first}-{last} {SECOND + last * 10_000_000} {16384 + last * 128} {gap_us}")


def life() -> list[bytes]:
    lines = [BOOT, READY]
    for number in range(1, 61):
        lines.append(ticks(number * 5 - 4, number * 5))
        lines.append(line(f"QM J {number} 812"))
        if number % 10 == 0:
            lines.append(line(f"QM V {number // 10} ok pages=16384 since={number * 5 - 45}"))
        if number % 20 == 0:
            lines.append(
                line(
                    f"QM W {86399 + number // 20 - 1 if number < 40 else number // 20 - 2} {number * SECOND // 20} 250"
                )
            )
    return lines


LINES = life()
LOG = b"".join(LINES)
T_LINES = [at for at, text in enumerate(LINES) if text.startswith(b"QM T")]


def comparable(verdict: Verdict) -> Verdict:
    """What does not depend on where the hand-over was."""
    return replace(verdict, ticks_after_handover=0, sweeps_ok_after_handover=0, journal_after_handover=0, reasons=())


def test_a_guest_that_stayed() -> None:
    verdict = judge([LOG])
    assert verdict.survived, verdict.reasons
    assert (verdict.first_tick, verdict.last_tick, verdict.boots) == (1, 300, 1)
    assert verdict.ready is not None
    assert (verdict.ready.ws_mib, verdict.ready.rate_mib_s, verdict.ready.tick_ms) == (64, 50, 10)
    assert verdict.journal == tuple(range(1, 61))
    assert verdict.sweeps_ok == 6
    assert verdict.largest_gap_ms == 10.05
    assert verdict.largest_disk_ms == 0.812
    assert verdict.blackout_ms == 0.0
    assert verdict.achieved_mib_s == pytest.approx(50.0)
    assert verdict.written_pages == 16384 + 300 * 128


@given(st.integers(0, len(LOG)))
@example(0)
@example(len(LOG))
def test_cut_at_any_byte(cut: int) -> None:
    verdict = judge([LOG[:cut], LOG[cut:]])
    assert comparable(verdict) == comparable(judge([LOG]))
    # Near the end too little follows the hand-over to prove anything; nothing else may be held against it.
    proof_missing = {
        "no tick after the hand-over",
        "no whole verification of the memory after the hand-over",
        "no journal record after the hand-over",
    }
    assert set(verdict.reasons) <= proof_missing
    if BOOT in LOG[:cut] and cut < len(LOG) * 0.6:
        assert verdict.survived, verdict.reasons


@given(st.lists(st.integers(0, len(LOG)), max_size=4).map(sorted))
def test_many_migrations(cuts: list[int]) -> None:
    edges = [0, *cuts, len(LOG)]
    logs = [LOG[a:b] for a, b in itertools.pairwise(edges)]
    assert comparable(judge(logs)) == comparable(judge([LOG]))


NOISE = b"[  123.456789] watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [init:1]\r\n"


@given(st.integers(len(BOOT) + len(READY), len(LOG)), st.integers(0, len(LOG) + len(NOISE)))
def test_kernel_noise_in_the_middle_of_a_line(at: int, cut: int) -> None:
    noisy = LOG[:at] + NOISE + LOG[at:]
    verdict = judge([noisy[:cut], noisy[cut:]])
    assert comparable(replace(verdict, kernel=None)) == comparable(judge([LOG]))
    assert verdict.kernel is not None
    assert any("soft lockup" in reason for reason in verdict.reasons)


def test_a_bare_guest_with_a_computing_vcpu() -> None:
    ready = line("QM READY v=1 ws=16 rate=unlimited tick=10 seed=7 verify=0 disk=- guest=bare cpus=2 compute=1 hot=0")
    log = ready + ticks(1, 5) + line("QM C 1 150000000 400000") + line("QM C 1 350000000 1000000")
    verdict = judge([log])
    assert verdict.survived, verdict.reasons
    assert verdict.ready is not None
    assert verdict.ready.rate_mib_s is None
    assert verdict.computed == (Computed(1, 150_000_000, 400_000), Computed(1, 350_000_000, 1_000_000))
    assert judge([log + line("QM C 1 2")]).damaged_lines


@given(st.sampled_from(T_LINES))
def test_a_dropped_tick(at: int) -> None:
    if at == T_LINES[-1]:
        return  # nobody can know that another line was to come
    verdict = judge([b"".join(LINES[:at] + LINES[at + 1 :])])
    first = T_LINES.index(at) * 5 + 1
    assert verdict.tick_faults == (TickFault(expected=first, found=first + 5),)
    assert f"ticks {first} to {first + 4} are missing" in verdict.reasons


@given(st.sampled_from(T_LINES), st.integers(1, 20))
def test_an_old_state_that_runs_again(at: int, back: int) -> None:
    """What a destination shows that was started from an older copy of the memory."""
    again = LINES[max(2, at - back) : at + 1]
    verdict = judge([b"".join(LINES[: at + 1]), b"".join(again) + b"".join(LINES[at + 1 :])])
    assert verdict.tick_faults
    assert verdict.tick_faults[0].found <= verdict.tick_faults[0].expected - 1
    assert not verdict.survived


@given(st.integers(len(BOOT), len(LOG) - 1), st.integers(1, 255))
def test_a_damaged_byte_is_never_believed(at: int, flip: int) -> None:
    """Either the line is not believed (and then something is missing), or the damage was in no line that counts."""
    damaged = LOG[:at] + bytes([LOG[at] ^ flip]) + LOG[at + 1 :]
    verdict, truth = judge([damaged]), judge([LOG])
    assert set(verdict.journal) <= set(truth.journal)
    assert verdict.last_tick <= truth.last_tick
    hit = next(text for start, text in starts_of_lines() if start <= at < start + len(text))
    # Of the records that a disk had before, and of lines still to come, nobody can know: first and last are left out.
    counted = [LINES[at] for at in T_LINES[:-1]] + [text for text in LINES if text.startswith(b"QM J")][1:-1]
    if hit in counted or hit == READY:
        assert not verdict.survived


def starts_of_lines() -> list[tuple[int, bytes]]:
    starts, position = [], 0
    for text in LINES:
        starts.append((position, text))
        position += len(text)
    return starts


@given(st.lists(st.binary(max_size=300) | st.sampled_from(LINES), max_size=12))
def test_whatever_the_bytes_are(logs: list[bytes]) -> None:
    judge(logs)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("QM BAD page=12 expected=0x7 found=0x6 offset=16", "page=12 expected=0x7 found=0x6"),
        ("QM V 7 bad pages=16384 since=301 bad=2", "bad=2"),
        ("QM ERR journal write seq=61: Input/output error", "Input/output error"),
        ("QM PANIC mlockall: Cannot allocate memory", "mlockall"),
        ("QM END poweroff", "the guest ended: poweroff"),
        ("QM T 301-305 5 16384 10000", "went back"),
        ("QM T 301-305 99000000000 5 10000", "went back"),
        ("QM J 63 700", "journal record 63 was acknowledged where 61 was due"),
        ("QM T 305-301 99000000000 99999 1", "is damaged"),
        ("QM READY v=1 ws=64 rate=50 tick=10 seed=7 verify=1 disk=-", "started 2 times"),
        ("QM HELLO", "is damaged"),
    ],
)
def test_what_the_guest_itself_reports(text: str, reason: str) -> None:
    verdict = judge([LOG + line(text)])
    assert not verdict.survived
    assert any(reason in found for found in verdict.reasons), verdict.reasons


def test_a_silent_destination_has_not_survived() -> None:
    half = len(b"".join(LINES[: T_LINES[30]]))
    verdict = judge([LOG[:half], b""])
    assert "no tick after the hand-over" in verdict.reasons
    assert judge([b""]).reasons[0] == "the guest never said QM READY"


def test_a_sweep_that_began_before_the_handover_proves_nothing() -> None:
    half = len(b"".join(LINES[: T_LINES[30]]))
    source = LOG[:half]
    destination = ticks(151, 155) + line("QM J 61 5") + line("QM V 8 ok pages=16384 since=154")
    before = judge([source, destination])
    assert before.sweeps_ok_after_handover == 0
    assert "no whole verification of the memory after the hand-over" in before.reasons
    after = judge([source, destination + line("QM V 9 ok pages=16384 since=155")])
    assert after.sweeps_ok_after_handover == 1


def test_an_oops_names_itself() -> None:
    oops = b"[    5.723393] BUG: kernel NULL pointer dereference, address: 0000000000000004\r\n[    5.7234] #PF\r\n"
    verdict = judge([LOG, oops])
    assert verdict.reasons[0].startswith("the guest's kernel reports: [    5.723393] BUG: kernel NULL pointer")
    # What the kernel says before the guest works, and while it powers off as told, is nothing to report.
    assert judge([LOG]).kernel is None
    assert judge([LOG + line("QM END poweroff") + b"[    9.000001] reboot: Power down\r\n"]).kernel is None


@pytest.mark.parametrize(
    ("walls", "blackout_ms"),
    [
        # Second of the day, guest's own nanoseconds: in step, and a second that took the guest 0.9 s only.
        ([(100, 1 * SECOND), (101, 2 * SECOND), (102, 2_900_000_000), (103, 3_900_000_000)], 100.0),
        ([(86399, 1 * SECOND), (1, 2 * SECOND)], 1000.0),
        # The destination's clock is behind: nothing can be said of that step.
        ([(100, 1 * SECOND), (99, 2 * SECOND), (100, 3 * SECOND)], 0.0),
        ([(100, 1 * SECOND)], None),
    ],
)
def test_the_blackout_is_the_time_that_the_guest_has_lost(
    walls: list[tuple[int, int]], blackout_ms: float | None
) -> None:
    log = READY + b"".join(line(f"QM W {second} {mono} 250") for second, mono in walls)
    assert judge([log]).blackout_ms == blackout_ms


def test_an_unfinished_last_line_is_left_out() -> None:
    assert comparable(judge([LOG + b"QM T 301-305 4"])) == comparable(judge([LOG]))
