"""The guest without an operating system, in real QEMUs: it keeps the Linux guest's contract, with KVM and without."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from qmp_migrate.errors import RigError
from qmp_migrate.rig.guest.accelerator_probe import Accelerator
from qmp_migrate.rig.guest.images import GuestImage, find_images
from qmp_migrate.rig.guest.oracle import judge
from tests.support.real.kvm import need_kvm
from tests.support.real.qemu_versions import VERSIONS, program
from tests.support.real.running_guest import eventually, generation, memory_of, pages_in, running

WS_PAGES = 8 * 256


@pytest.fixture
def image() -> GuestImage:
    try:
        return find_images("bare")
    except RigError as error:
        pytest.skip(f"{error}: {error.hint}")


@pytest.mark.parametrize("accel", ["tcg", pytest.param("kvm", marks=pytest.mark.kvm)])
@pytest.mark.parametrize("version", VERSIONS)
async def test_two_vcpus_work_and_find_damage(
    tmp_path: Path, image: GuestImage, version: str, accel: Accelerator
) -> None:
    qemu = program(version)
    if accel == "kvm":
        await need_kvm(qemu)
    append = "qm.ws=8 qm.rate=20 qm.tick=5 qm.seed=0x7 qm.hot=25"
    async with running(tmp_path, image, append, "-smp", "2", qemu=qemu, accel=accel, memory_mib=64) as guest:
        verdict = await guest.until("two sweeps", lambda v: v.sweeps_ok >= 2 and v.written_pages > 4 * WS_PAGES)
        assert verdict.survived, verdict.reasons
        assert verdict.ready is not None
        assert (verdict.ready.ws_mib, verdict.ready.rate_mib_s, verdict.ready.seed) == (8, 20, 7)
        assert b" guest=bare cpus=2 " in guest.log
        guest.say("rate 0")
        await guest.until("an answer", lambda _: b"QM CMD rate 0 " in guest.log)
        with memory_of(guest) as memory:
            pages = pages_in(memory)
            assert sorted(pages) == list(range(WS_PAGES))
            for first in (0, WS_PAGES // 2):  # each vCPU has its part, and most writes go to a quarter of it
                generations = [generation(memory, pages[first + i]) for i in range(WS_PAGES // 2)]
                assert sum(generations[: WS_PAGES // 8]) > 2 * sum(generations[WS_PAGES // 8 :]) - WS_PAGES
                assert max(generations[: WS_PAGES // 8]) > max(generations[WS_PAGES // 8 :])
            for page in (77, WS_PAGES - 77):  # one of each vCPU's
                memory[pages[page] + 2001] ^= 0x40
            guest.say("verify")
            damaged = {f"QM BAD page={page}": " offset=2000" for page in (77, WS_PAGES - 77)}
            verdict = await guest.until("telling of both", lambda v: len(v.corruption) >= 2)
        for line in verdict.corruption[:2]:
            begin, _, _ = line.partition(" expected=")
            assert line.endswith(damaged.pop(begin)), line
        guest.say("rate unlimited")
        written = judge([guest.log]).written_pages
        await guest.until("writing again", lambda v: v.written_pages > written + 2 * WS_PAGES)
        await guest.qmp.execute("system_powerdown")
        await guest.until("the power button", lambda v: v.ended == "poweroff")
        assert await guest.ended() == 0
        verdict = judge([guest.log])
    assert not verdict.tick_faults
    assert not verdict.damaged_lines


async def test_a_page_that_is_an_older_copy_of_itself_is_found(tmp_path: Path, image: GuestImage) -> None:
    async with running(tmp_path, image, "qm.ws=4 qm.rate=0 qm.tick=20", memory_mib=64) as guest:
        await guest.until("a first sweep", lambda v: v.sweeps_ok >= 1)
        with memory_of(guest) as memory:
            at = pages_in(memory)[77]
            older = memory[at : at + 4096]
            guest.say("rate 40")
            await eventually(lambda: generation(memory, at) > 1)
            memory[at : at + 4096] = older
            await guest.until("telling of it", lambda v: any("page=77 " in line for line in v.corruption))
            line = judge([guest.log]).corruption[0]
    assert line.endswith(" found=0x1 offset=16"), line


async def test_a_working_set_on_both_sides_of_the_hole_below_4_gib(tmp_path: Path, image: GuestImage) -> None:
    machine = "pc-q35-7.2,max-ram-below-4g=32M"
    async with running(tmp_path, image, "qm.ws=60 qm.rate=200", memory_mib=96, machine=machine) as guest:
        await guest.until("a round of writes", lambda v: v.sweeps_ok >= 1 and v.written_pages > 2 * 60 * 256)
        with memory_of(guest) as memory:
            pages = pages_in(memory)
        assert sorted(pages) == list(range(60 * 256))
        assert max(pages.values()) > 32 << 20 > min(pages.values())
        assert judge([guest.log]).survived


async def test_a_vcpu_that_only_computes_tells_how_far_it_is(tmp_path: Path, image: GuestImage) -> None:
    append = "qm.ws=4 qm.rate=unlimited qm.compute=1 qm.verify=0"
    async with running(tmp_path, image, append, "-smp", "2", memory_mib=64) as guest:
        verdict = await guest.until("three reports", lambda v: len(v.computed) >= 3 and v.written_pages > 4 * 1024)
        with memory_of(guest) as memory:
            found = {generation(memory, at) for at in pages_in(memory).values()}
    assert verdict.survived, verdict.reasons
    assert {told.cpu for told in verdict.computed} == {1}
    rounds = [told.rounds for told in verdict.computed]
    assert rounds == sorted(rounds)
    assert rounds[-1] > rounds[0]
    assert min(found) > 1, "the one that writes has all pages"


@pytest.mark.parametrize(
    ("append", "says"),
    [
        ("qm.rates=20", "unknown setting qm.rates=20"),
        ("qm.rate=fast", "qm.rate=fast is not a number from 0 to 65536, nor unlimited"),
        ("qm.tick=0x0", "qm.tick=0x0 is not a number from 1 to 10000"),
        ("qm.seed=18446744073709551616", "qm.seed=18446744073709551616 is not a number"),
        ("qm.ws", "setting qm.ws has no value"),
        ("qm.ws=200", "qm.ws=200 does not fit: "),
        ("qm.compute=1", "qm.compute=1 needs 2 vCPUs, there is 1"),
        ("qm.disk=/dev/vda", "qm.disk=/dev/vda: the bare guest has no disk journal"),
        ("root=/dev/vda", "unknown word root=/dev/vda"),
    ],
)
async def test_a_word_that_is_not_known_ends_the_guest(
    tmp_path: Path, image: GuestImage, append: str, says: str
) -> None:
    async with running(tmp_path, image, append, memory_mib=64) as guest:
        assert await guest.ended() == 0
        verdict = judge([guest.log])
    assert any(reason.startswith(f"the guest reports: QM PANIC {says}") for reason in verdict.reasons), verdict.reasons


async def test_ends_at_a_tick_or_when_told(tmp_path: Path, image: GuestImage) -> None:
    async def end(append: str, command: str, *arguments: str) -> tuple[str | None, int, int]:
        directory = tmp_path / f"{command or append.partition('=')[0]}{len(arguments)}"
        directory.mkdir()
        async with running(directory, image, f"qm.ws=1 {append}", *arguments, memory_mib=64) as guest:
            if command:
                await guest.until("a tick", lambda v: v.last_tick > 0)
                guest.say(command)
            code = await guest.ended()
            verdict = judge([guest.log])
        assert not verdict.damaged_lines
        return verdict.ended, verdict.last_tick, code

    pvpanic, pvpanic_pci = ("-device", "pvpanic"), ("-device", "pvpanic-pci")
    assert await asyncio.gather(
        end("qm.tick=60 qm.poweroff_after_ticks=3", ""),
        end("qm.tick=60 qm.reboot_after_ticks=3", "", "-no-reboot"),
    ) == [("poweroff", 3, 0), ("reboot", 3, 0)]
    assert [ended for ended, _, _ in await asyncio.gather(end("", "poweroff"), end("", "reboot", "-no-reboot"))] == [
        *("poweroff", "reboot")
    ]
    assert [
        ended
        for ended, _, _ in await asyncio.gather(
            end("", "panic", *pvpanic), end("", "panic", *pvpanic_pci, "-no-reboot")
        )
    ] == [*("panic", "panic")]


async def test_a_reset_begins_anew(tmp_path: Path, image: GuestImage) -> None:
    async with running(tmp_path, image, "qm.ws=4 qm.tick=10", memory_mib=64) as guest:
        await guest.until("ticks", lambda v: v.last_tick > 5)
        guest.say("reboot")
        verdict = await guest.until("its second life", lambda v: v.boots == 2 and v.sweeps_ok >= 1)
        assert "the guest started 2 times: it was reset" in verdict.reasons
        assert not verdict.corruption
