"""``set-vcpu-dirty-limit``: when it may be used, what QEMU is told, and that nothing of it is left behind."""

from __future__ import annotations

from typing import Any

import pytest

from qmp_migrate.errors import MonitorError, QmpCommandFailed
from qmp_migrate.migration.transport import setup
from qmp_migrate.migration.transport.negotiation import Profile
from qmp_migrate.migration.transport.setup import Wires
from qmp_migrate.qemu import dirty_limit, features
from tests.support.fakes.fake_endpoints import side_of
from tests.support.fakes.fake_qemu import Fails, FakeQemu
from tests.support.fakes.monitors import connected

MIB = 1 << 20


def knows_it(qemu: FakeQemu, limits: Any = ()) -> None:
    qemu.on("query-commands", [{"name": "cont"}, {"name": "set-vcpu-dirty-limit"}])
    qemu.on("query-vcpu-dirty-limit", list(limits))
    qemu.on("set-vcpu-dirty-limit", {})
    qemu.on("cancel-vcpu-dirty-limit", {})


async def test_it_is_used_where_qemu_knows_it_and_nobody_else_does() -> None:
    async with FakeQemu() as qemu, connected(qemu) as monitor:
        knows_it(qemu)
        assert await dirty_limit.why_not(monitor) == ""
        knows_it(qemu, [{"cpu-index": 0, "limit-rate": 10, "current-rate": 3}])
        assert await dirty_limit.why_not(monitor) == "somebody else has limited its vCPUs"
        qemu.on("query-commands", [{"name": "cont"}])
        assert "does not know set-vcpu-dirty-limit" in await dirty_limit.why_not(monitor)
        assert not qemu.asked("set-vcpu-dirty-limit")


@pytest.mark.parametrize("reply", [None, 17, ["yes"], [{"cpu-index": 0}]])
async def test_nonsense_is_no_answer(reply: Any) -> None:
    async with FakeQemu() as qemu, connected(qemu) as monitor:
        knows_it(qemu)
        qemu.on("query-vcpu-dirty-limit", reply)
        with pytest.raises(MonitorError):
            await dirty_limit.read(monitor)
        qemu.on("query-commands", reply)
        with pytest.raises(MonitorError):
            await dirty_limit.why_not(monitor)


@pytest.mark.parametrize(("wanted", "told"), [(1, 1), (MIB, 1), (40 * MIB, 40), (int(40.6 * MIB), 41)])
async def test_qemu_takes_whole_mebibytes(wanted: int, told: int) -> None:
    async with FakeQemu() as qemu, connected(qemu) as monitor:
        knows_it(qemu)
        await dirty_limit.limit_vcpus(monitor, wanted)
        assert qemu.asked("set-vcpu-dirty-limit") == [{"dirty-rate": told}]


async def test_a_refusal_is_told() -> None:
    async with FakeQemu() as qemu, connected(qemu) as monitor:
        knows_it(qemu)
        qemu.on("set-vcpu-dirty-limit", Fails("dirty page limit feature requires KVM"))
        with pytest.raises(QmpCommandFailed, match="requires KVM"):
            await dirty_limit.limit_vcpus(monitor, MIB)


# -- nothing is left behind -------------------------------------------------------------------------------------------


async def found(source: FakeQemu, destination: FakeQemu, *, dirty_ring: int) -> tuple[Any, Wires]:
    """The wires of a migration that another controller has set up, as a recovery finds them in the journal."""
    side, there = side_of("a", source), side_of("b", destination)
    written = Profile(dirty_ring=dirty_ring).written
    wires = await setup.find(
        side,
        there,
        "m1",
        encrypt=False,
        dirty_limit=Profile.again(written).dirty_ring > 0,
        before={},
        destination_before={},
    )
    await there.detach()
    return side, wires


@pytest.mark.parametrize("dirty_ring", [0, 4096])
async def test_a_limit_is_lifted_when_the_guest_stays_also_by_a_recovery(dirty_ring: int) -> None:
    async with FakeQemu() as source, FakeQemu() as destination:
        knows_it(source)
        side, wires = await found(source, destination, dirty_ring=dirty_ring)
        assert await setup.unwire_source(side, wires) == []
        # Without a ring nothing is asked that QEMU does not know.
        assert len(source.asked("cancel-vcpu-dirty-limit")) == (1 if dirty_ring else 0)
        await side.detach()


async def test_a_limit_that_could_not_be_lifted_is_told() -> None:
    async with FakeQemu() as source, FakeQemu() as destination:
        side, wires = await found(source, destination, dirty_ring=4096)
        source.on("cancel-vcpu-dirty-limit", Fails("no"))
        (line,) = await setup.unwire_source(side, wires)
        assert "could not be put back" in line
        await side.detach()


async def test_the_journal_of_an_older_program_knows_of_no_limit() -> None:
    written = {name: value for name, value in Profile().written.items() if name != "dirty_ring"}
    assert Profile.again(written).dirty_ring == 0


# -- which accelerator ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accelerators", "kvm", "uses"),
    [
        ({"enabled": "kvm", "present": ["kvm", "tcg"]}, None, True),
        ({"enabled": "tcg", "present": ["kvm", "tcg"]}, None, False),
        (Fails("not found", "CommandNotFound"), {"enabled": True, "present": True}, True),
        (Fails("not found", "CommandNotFound"), {"enabled": False, "present": True}, False),
    ],
)
async def test_a_newer_qemu_is_asked_for_its_accelerator_in_the_newer_way(
    accelerators: Any, kvm: Any, uses: bool
) -> None:
    async with FakeQemu() as qemu, connected(qemu) as monitor:
        qemu.on("query-accelerators", accelerators)
        qemu.on("query-kvm", kvm)
        assert await features.uses_kvm(monitor) is uses
        assert len(qemu.asked("query-kvm")) == (0 if kvm is None else 1)


async def test_nonsense_is_no_accelerator() -> None:
    async with FakeQemu() as qemu, connected(qemu) as monitor:
        qemu.on("query-accelerators", 17)
        with pytest.raises(MonitorError):
            await features.uses_kvm(monitor)
