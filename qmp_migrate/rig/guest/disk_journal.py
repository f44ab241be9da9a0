"""Replays the disk journal of the test guest: what it was told is on its disk must be there.

The guest writes records into a ring of slots at the start of its raw disk (``vm-images/journal.c``); record ``seq`` lies
in slot ``seq % slots``. Each record names the ring's geometry and ends in a checksum, so that the bytes of the disk are
enough. Pure: bytes in, values out.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

_MAGIC = 0x314C4E524A4D51
_RECORD = struct.Struct("<QQQQII")


@dataclass(frozen=True, slots=True)
class JournalCheck:
    """What is on the disk, compared with what the guest was told is on it.

    Attributes:
        last: Highest sequence number of a whole record on the disk; 0 where there is none.
        lost: Acknowledged records that are not there. Only the newest of each slot can be: the ring has overwritten
            the others.
    """

    last: int
    lost: tuple[int, ...]


def check_journal(image: bytes, acknowledged: Sequence[int]) -> JournalCheck:
    """Replay the disk journal: every acknowledged record must be on the disk.

    Args:
        image: The disk's content as the guest sees it (raw; convert other formats first), at least its first 8 MiB.
        acknowledged: ``Verdict.journal`` of the guest that used the disk.

    Returns:
        The highest record on the disk, and the acknowledged ones that are lost: their slot is torn, empty, or still has
        an older record. A later record there is no loss, the guest may not have told us of it yet.
    """
    slot_bytes, slots = _geometry(image)
    present: dict[int, int] = {}
    for slot in range(slots):
        raw = image[slot * slot_bytes : (slot + 1) * slot_bytes]
        if len(raw) < slot_bytes or zlib.crc32(raw[:-4]) != int.from_bytes(raw[-4:], "little"):
            continue
        magic, seq, _, _, record_bytes, record_slots = _RECORD.unpack_from(raw)
        if magic == _MAGIC and (record_bytes, record_slots) == (slot_bytes, slots) and seq % slots == slot:
            present[slot] = seq
    if not slots:
        return JournalCheck(last=0, lost=tuple(acknowledged))
    newest = {seq % slots: seq for seq in sorted(acknowledged)}
    lost = sorted(seq for slot, seq in newest.items() if present.get(slot, 0) < seq)
    return JournalCheck(last=max(present.values(), default=0), lost=tuple(lost))


def _geometry(image: bytes) -> tuple[int, int]:
    """Slot size and number of slots, from the first whole record found; zeros where there is none."""
    for offset in range(0, len(image) - _RECORD.size, 512):
        magic, _, _, _, slot_bytes, slots = _RECORD.unpack_from(image, offset)
        raw = image[offset : offset + slot_bytes]
        if magic == _MAGIC and len(raw) >= 512 and zlib.crc32(raw[:-4]) == int.from_bytes(raw[-4:], "little"):
            return slot_bytes, slots
    return 0, 0
