"""``calc-dirty-rate``: which questions are asked of which QEMU, and what its answers mean."""

from __future__ import annotations

from typing import Any

import pytest

from qmp_migrate.errors import MonitorError, MonitorTimeout, QmpCommandFailed
from qmp_migrate.qemu import dirty_rate
from tests.support.fakes.fake_qemu import Fails, FakeQemu
from tests.support.fakes.monitors import connected

MIB = 1 << 20
GIB = 1 << 30


pytestmark = pytest.mark.usefixtures("virtual_clock")  # QEMU's seconds pass at once here


def measuring(qemu: FakeQemu, *, rate: int, old: bool = False) -> None:
    def calc(arguments: dict[str, Any]) -> Any:
        if old and "calc-time-unit" in arguments:
            return Fails("Parameter 'calc-time-unit' is unexpected")
        return {}

    qemu.on("calc-dirty-rate", calc)
    qemu.on("query-dirty-rate", {"status": "measured", "dirty-rate": rate, "start-time": 0, "calc-time": 1})


async def test_a_newer_one_is_asked_in_milliseconds() -> None:
    async with FakeQemu() as qemu, connected(qemu) as monitor:
        measuring(qemu, rate=1000)
        found = await dirty_rate.measure(monitor, GIB, kvm=False)
        assert [(one.seconds, one.size_bytes // MIB) for one in found] == [
            (0.1, 100),
            (0.3, 300),
            (1.0, 1000),
            (3.0, 3000),
        ]
        assert {asked["calc-time-unit"] for asked in qemu.asked("calc-dirty-rate")} == {"millisecond"}


async def test_an_old_one_is_asked_in_seconds() -> None:
    async with FakeQemu() as qemu, connected(qemu) as monitor:
        measuring(qemu, rate=20, old=True)
        found = await dirty_rate.measure(monitor, GIB, kvm=False)
        assert [(one.seconds, one.size_bytes // MIB) for one in found] == [(1.0, 20), (2.0, 40), (4.0, 80)]
        assert "calc-time-unit" not in qemu.asked("calc-dirty-rate")[-1]


async def test_the_bitmap_is_asked_for_under_kvm_alone() -> None:
    """Without KVM QEMU 7.2 ends itself on it, and the guest is lost."""
    for kvm in (False, True):
        async with FakeQemu() as qemu, connected(qemu) as monitor:
            measuring(qemu, rate=20)
            found = await dirty_rate.measure(monitor, GIB, kvm=kvm)
            mode = "dirty-bitmap" if kvm else "page-sampling"
            assert {one["mode"] for one in qemu.asked("calc-dirty-rate")} == {one.kind for one in found} == {mode}
            assert [one.seconds for one in found] == [0.1, 0.3, 1.0, 3.0]
            assert ("sample-pages" in qemu.asked("calc-dirty-rate")[0]) is not kvm
            longer = await dirty_rate.measure_longer(monitor, GIB, 1, found[-1].kind)
            assert longer.kind == mode


async def test_an_old_one_under_kvm_is_asked_for_its_bitmap_in_seconds() -> None:
    async with FakeQemu() as qemu, connected(qemu) as monitor:
        measuring(qemu, rate=20, old=True)
        found = await dirty_rate.measure(monitor, GIB, kvm=True)
        assert [(one.seconds, one.kind) for one in found] == [(s, "dirty-bitmap") for s in (1.0, 2.0, 4.0)]


async def test_a_dirty_ring_that_excludes_the_bitmap_is_no_failure() -> None:
    async with FakeQemu() as qemu, connected(qemu) as monitor:
        measuring(qemu, rate=20)
        qemu.on("calc-dirty-rate", lambda asked: Fails("dirty ring") if asked["mode"] == "dirty-bitmap" else {})
        found = await dirty_rate.measure(monitor, GIB, kvm=True)
        assert {one.kind for one in found} == {"page-sampling"}


@pytest.mark.parametrize(("size", "pages"), [(GIB // 4, 16384), (16 * GIB, 4096), (1024 * GIB, 512)])
async def test_so_many_pages_are_sampled_that_it_is_exact_and_costs_little(size: int, pages: int) -> None:
    async with FakeQemu() as qemu, connected(qemu) as monitor:
        measuring(qemu, rate=0)
        await dirty_rate.measure(monitor, size, kvm=False)
        assert {asked["sample-pages"] for asked in qemu.asked("calc-dirty-rate")} == {pages}


async def test_somebody_else_who_measures_is_told() -> None:
    async with FakeQemu() as qemu, connected(qemu) as monitor:
        qemu.on("calc-dirty-rate", Fails("the dirty rate is already being measured"))
        with pytest.raises(QmpCommandFailed, match="already being measured"):
            await dirty_rate.measure(monitor, GIB, kvm=False)


async def test_a_measurement_that_never_ends_is_given_up() -> None:
    async with FakeQemu() as qemu, connected(qemu) as monitor:
        measuring(qemu, rate=0)
        qemu.on("query-dirty-rate", {"status": "measuring"})
        with pytest.raises(MonitorTimeout):
            await dirty_rate.measure(monitor, GIB, kvm=False)


async def test_nonsense_is_no_answer() -> None:
    async with FakeQemu() as qemu, connected(qemu) as monitor:
        measuring(qemu, rate=0)
        qemu.on("query-dirty-rate", [])
        with pytest.raises(MonitorError):
            await dirty_rate.measure(monitor, GIB, kvm=False)
