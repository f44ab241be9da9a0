"""Passes are counted by what was sent: QEMU 11.1 looks for dirty pages all the time where post-copy may follow."""

from __future__ import annotations

from typing import Final

from qmp_migrate.migration.precopy.pass_counter import PassCounter
from qmp_migrate.qemu.migration import MigrationInfo
from tests.support.data.recorded_replies import ACTIVE_7_2

IN_11_1: Final = [
    (2, 131354624, 320, 461),
    (5, 128282624, 1280, 461),
    (14, 122048512, 4160, 461),
    (26, 121409536, 8000, 461),
    (41, 121376768, 12800, 461),
    (50, 121389056, 15680, 461),
    (53, 56729600, 16530, 16403),
    (57, 56459264, 17556, 16403),
    (62, 56229888, 19156, 16403),
]
"""``dirty-sync-count``, ``remaining``, ``normal`` and ``duplicate``, every half second and more, at 12 MiB/s, with
``postcopy-ram``. The guest has 128 MiB, the half of it written and dirtied all the time."""

IN_10_0: Final = [
    (1, 131354624, 320, 461),
    (1, 127422464, 1280, 461),
    (1, 67108864, 15904, 461),
    (2, 66551808, 16607, 16403),
    (2, 33554432, 24663, 16403),
    (3, 66551808, 32855, 16403),
]
"""The same in 10.0."""


def read(counter: PassCounter, looks: int, remaining: int, normal: int, zero: int, *, xbzrle: int = 0) -> int:
    ram = ACTIVE_7_2["ram"] | {"remaining": remaining, "normal": normal, "duplicate": zero, "dirty-sync-count": looks}
    cache = {"xbzrle-cache": {"pages": xbzrle}}
    info = counter.read(MigrationInfo.model_validate(ACTIVE_7_2 | {"ram": ram} | cache))
    assert info.ram is not None
    assert info.ram.remaining == remaining
    return info.ram.passes


def test_a_pass_is_over_once_all_was_sent_that_remained_when_it_began() -> None:
    counter = PassCounter()
    assert [read(counter, *sample) for sample in IN_11_1] == [1, 1, 1, 1, 1, 1, 2, 2, 2]


def test_where_qemu_looks_at_the_end_of_a_pass_only_its_count_is_kept() -> None:
    counter = PassCounter()
    assert [read(counter, *sample) for sample in IN_10_0] == [looks for looks, *_ in IN_10_0]


def test_before_qemu_has_looked_again_no_pass_is_over() -> None:
    counter = PassCounter()
    assert read(counter, 1, 4096 * 100, 0, 0) == 1
    assert read(counter, 1, 0, 100, 0) == 1
    assert read(counter, 2, 4096, 100, 0) == 2


def test_pages_that_travel_as_differences_count_too() -> None:
    counter = PassCounter()
    assert read(counter, 1, 4096 * 100, 0, 0) == 1
    assert read(counter, 2, 4096 * 50, 20, 20, xbzrle=59) == 1
    assert read(counter, 2, 4096 * 50, 20, 20, xbzrle=60) == 2


def test_without_numbers_there_is_nothing_to_count() -> None:
    counter = PassCounter()
    assert counter.read(MigrationInfo.model_validate({"status": "setup"})).ram is None
    assert counter.number == 0


def test_an_expected_downtime_that_qemu_does_not_know_is_none() -> None:
    """11.1 says the largest number that there is."""
    for said, meant in [((1 << 63) - 1, None), (300, 300), (0, 0), (None, None)]:
        assert MigrationInfo.model_validate({"expected-downtime": said}).expected_downtime_ms == meant
