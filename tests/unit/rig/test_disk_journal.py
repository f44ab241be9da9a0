"""Replaying the guest's disk journal: what was acknowledged must be there."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmp_migrate.rig.guest.disk_journal import check_journal

SLOTS = 8


def record(seq: int, *, slot_bytes: int = 512, slots: int = SLOTS) -> bytes:
    body = struct.pack("<QQQQII", 0x314C4E524A4D51, seq, seq * 50_000_000, 1, slot_bytes, slots)
    body = (body + struct.pack("<Q", seq) * slot_bytes)[: slot_bytes - 4]
    return body + zlib.crc32(body).to_bytes(4, "little")


def disk(last: int, *, slot_bytes: int = 512, slots: int = SLOTS, behind: bytes = b"\xff" * 4096) -> bytearray:
    """A disk on which records 1 to `last` have been written, with other data behind the ring."""
    image = bytearray(slot_bytes * slots) + behind
    for seq in range(1, last + 1):
        slot = seq % slots
        image[slot * slot_bytes : (slot + 1) * slot_bytes] = record(seq, slot_bytes=slot_bytes, slots=slots)
    return image


@given(st.integers(0, 40), st.sampled_from([512, 4096]))
def test_a_whole_journal_has_lost_nothing(last: int, slot_bytes: int) -> None:
    image = disk(last, slot_bytes=slot_bytes)
    check = check_journal(bytes(image), range(1, last + 1))
    assert (check.last, check.lost) == (last, ())


def test_a_record_in_flight_may_be_there_already() -> None:
    check = check_journal(bytes(disk(21)), range(1, 21))
    assert (check.last, check.lost) == (21, ())


@given(st.integers(SLOTS, 40), st.integers(0, SLOTS - 1))
def test_a_stale_slot_is_a_lost_write(last: int, slot: int) -> None:
    """The write was acknowledged, and the disk still has the record of the round before."""
    image = disk(last)
    newest = max(seq for seq in range(last - SLOTS + 1, last + 1) if seq % SLOTS == slot)
    stale = record(newest - SLOTS) if newest > SLOTS else bytes(512)
    image[slot * 512 : slot * 512 + 512] = stale
    assert check_journal(bytes(image), range(1, last + 1)).lost == (newest,)


@given(st.integers(0, 511), st.integers(1, 255))
def test_a_torn_record_is_lost(at: int, flip: int) -> None:
    image = disk(20)
    image[(20 % SLOTS) * 512 + at] ^= flip
    # Its slot held 4 and 12 before: those were to be overwritten and are no loss.
    assert check_journal(bytes(image), range(1, 21)).lost == (20,)


def test_a_record_in_the_wrong_slot_does_not_count() -> None:
    image = disk(8)
    image[0:512] = record(15)  # newer than the 8 that belongs here, but of slot 7
    check = check_journal(bytes(image), range(1, 9))
    assert (check.last, check.lost) == (7, (8,))


@pytest.mark.parametrize("image", [b"", bytes(512), b"\xff" * 8192])
def test_a_disk_without_a_journal(image: bytes) -> None:
    assert check_journal(image, [1, 2]).lost == (1, 2)
    assert check_journal(image, []).lost == ()
