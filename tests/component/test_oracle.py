"""The test guest itself, in a real QEMU: the damage that the oracle relies on it to report, it does report."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qmp_migrate.errors import RigError
from qmp_migrate.rig.guest.disk_journal import check_journal
from qmp_migrate.rig.guest.images import GuestImage, find_images
from qmp_migrate.rig.guest.oracle import judge
from tests.support.real.running_guest import PAGE, eventually, generation, memory_of, pages_in, running


@pytest.fixture
def image() -> GuestImage:
    try:
        return find_images()
    except RigError as error:
        pytest.skip(f"{error}: {error.hint}")


async def test_damage_to_the_memory_is_found(tmp_path: Path, image: GuestImage) -> None:
    """A byte that was changed, and a whole page that is an older copy of itself: what a bad migration would leave."""
    async with running(tmp_path, image, "qm.ws=16 qm.tick=20 qm.seed=5") as guest:
        await guest.until("a first sweep", lambda verdict: verdict.sweeps_ok >= 1)
        with memory_of(guest) as memory:
            pages = pages_in(memory)
            assert sorted(pages) == list(range(16 << 20 >> 12))

            at = pages[1234]
            memory[at + 2001] ^= 0x40
            verdict = await guest.until("telling of the byte", lambda verdict: verdict.corruption)
            assert verdict.corruption[0].startswith("QM BAD page=1234 ")
            assert verdict.corruption[0].endswith(" offset=2000")
            assert not verdict.survived
            # It was mended, so that only new damage is told of.
            await eventually(lambda: generation(memory, pages[1234]) == 2)

            at = pages[77]
            older = memory[at : at + PAGE]
            guest.say("rate 40")
            await eventually(lambda: generation(memory, at) > 1)
            memory[at : at + PAGE] = older
            stale = "QM BAD page=77 expected=0x2 found=0x1 offset=16"
            await guest.until("telling of the stale page", lambda verdict: stale in verdict.corruption)
        await guest.qmp.execute("system_powerdown")
        await guest.until("the power button", lambda verdict: verdict.ended == "poweroff")
        assert await guest.ended() == 0


async def test_commands_and_the_disk_journal(tmp_path: Path, image: GuestImage) -> None:
    disk = tmp_path / "disk"
    disk.touch()
    os.truncate(disk, 1 << 20)
    drive = f"file={disk},format=raw,if=virtio,cache=none"
    async with running(tmp_path, image, "qm.rate=20 qm.tick=1 qm.disk=/dev/vda", "-drive", drive) as guest:
        before = await guest.until("ten records", lambda verdict: len(verdict.journal) >= 10)
        guest.say("verify")
        await guest.until("two more sweeps", lambda verdict: verdict.sweeps_ok >= before.sweeps_ok + 2)
        verdict = judge([guest.log])
        assert verdict.survived, verdict.reasons
        assert verdict.last_tick > 200, "a tick of 1 ms is counted, though not printed, each millisecond"
        assert verdict.achieved_mib_s == pytest.approx(20, rel=0.5)
        guest.say("nonsense")
        await guest.until("an answer to it", lambda verdict: "QM ERR unknown command" in " ".join(verdict.reasons))
        guest.say("poweroff")
        assert await guest.ended() == 0
        verdict = judge([guest.log])
    assert verdict.ended == "poweroff"
    assert not verdict.tick_faults
    assert not verdict.damaged_lines
    content = disk.read_bytes()
    assert check_journal(content, verdict.journal).lost == ()
    assert check_journal(content, verdict.journal).last - verdict.journal[-1] in (0, 1)
    last = verdict.journal[-1]
    torn = content[: last * 512] + bytes(512) + content[(last + 1) * 512 :]
    assert check_journal(torn, verdict.journal).lost == (last,)


async def test_a_setting_that_is_not_known_ends_the_guest(tmp_path: Path, image: GuestImage) -> None:
    async with running(tmp_path, image, "qm.rates=20") as guest:
        assert await guest.ended() == 0
        verdict = judge([guest.log])
    assert "the guest reports: QM PANIC unknown setting qm.rates=20" in verdict.reasons
