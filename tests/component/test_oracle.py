"""The test guest itself, in a real QEMU: the damage that the oracle relies on it to report, it does report."""

from __future__ import annotations

import asyncio
import mmap
import os
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from qemu.qmp import QMPClient

from qmp_migrate.errors import RigError
from qmp_migrate.rig.disk_journal import check_journal
from qmp_migrate.rig.images import GuestImage, find_images
from qmp_migrate.rig.oracle import Verdict, judge

PAGE = 4096
MAGIC = b"QMGPPAGE"
MEMORY_MIB = 192
# A guest is ready in 2 to 4 s without hardware help; the rest is for a machine that does other things too.
PATIENCE_S = 60.0


@pytest.fixture
def image() -> GuestImage:
    try:
        return find_images()
    except RigError as error:
        pytest.skip(f"{error}: {error.hint}")


@dataclass
class Guest:
    """A running test guest with its serial line at both ends."""

    directory: Path
    process: asyncio.subprocess.Process
    serial: asyncio.StreamWriter
    qmp: QMPClient

    @property
    def log(self) -> bytes:
        return (self.directory / "serial.log").read_bytes()

    def say(self, command: str) -> None:
        self.serial.write(command.encode() + b"\n")

    async def until(self, what: str, reached: Callable[[Verdict], object]) -> Verdict:
        """Waits for a state of the guest, as the oracle sees it."""
        await eventually(lambda: reached(judge([self.log])), lambda: f"{what}; its log ends {self.log[-600:]!r}")
        return judge([self.log])


async def eventually(reached: Callable[[], object], what: Callable[[], str] = str) -> None:
    """Waits for something that no event tells of: a file, a log, a byte in the guest's memory."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not reached():  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    except TimeoutError:
        pytest.fail(f"it never came to: {what()}")


@asynccontextmanager
async def running(directory: Path, image: GuestImage, append: str, *arguments: str) -> AsyncIterator[Guest]:
    process = await asyncio.create_subprocess_exec(
        "qemu-system-x86_64",
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-machine", "pc-q35-7.2,memory-backend=ram", "-accel", "tcg", "-cpu", "qemu64", "-m", f"{MEMORY_MIB}M"),
        *("-object", f"memory-backend-file,id=ram,size={MEMORY_MIB}M,mem-path={directory}/ram,share=on"),
        *("-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", f"console=ttyS0 quiet {append}"),
        *("-chardev", f"socket,id=serial,path={directory}/serial,server=on,wait=off,logfile={directory}/serial.log"),
        *("-serial", "chardev:serial", "-qmp", f"unix:{directory}/qmp,server=on,wait=off"),
        *arguments,
    )
    qmp = QMPClient("guest")
    async with AsyncExitStack() as undo:
        undo.callback((directory / "ram").unlink, missing_ok=True)  # 192 MiB that pytest would keep
        undo.push_async_callback(process.wait)
        undo.callback(lambda: process.kill() if process.returncode is None else None)
        # The monitor is the last to open.
        await eventually(lambda: listens(directory / "qmp") or process.returncode is not None, lambda: "QEMU")
        reader, serial = await asyncio.open_unix_connection(str(directory / "serial"))
        drained = asyncio.create_task(reader.read())
        undo.push_async_callback(asyncio.wait, [drained])
        undo.callback(serial.close)
        await qmp.connect(str(directory / "qmp"))
        undo.push_async_callback(hang_up, qmp)
        yield Guest(directory, process, serial, qmp)


def listens(path: Path) -> bool:
    """Whether somebody listens there: the file of a socket is made a moment earlier."""
    return any(line.split()[-1] == str(path) and line.split()[3] == "00010000" for line in _unix_sockets())


def _unix_sockets() -> list[str]:
    return Path("/proc/net/unix").read_text().splitlines()[1:]


async def hang_up(qmp: QMPClient) -> None:
    """Ends our side; a QEMU that has ended before us is no error here."""
    with suppress(EOFError):
        await qmp.disconnect()


@contextmanager
def memory_of(guest: Guest) -> Iterator[mmap.mmap]:
    """The guest's memory as the guest itself has it: what is written here, the guest reads."""
    with open(guest.directory / "ram", "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        yield memory


def pages_in(memory: mmap.mmap) -> dict[int, int]:
    """Where each page of the working set lies in the guest's memory."""
    found, at = {}, memory.find(MAGIC)
    while at >= 0:
        if at % PAGE == 0:
            found[struct.unpack_from("<Q", memory, at + 8)[0]] = at
        at = memory.find(MAGIC, at + 8)
    return found


def generation(memory: mmap.mmap, at: int) -> int:
    return int(struct.unpack_from("<Q", memory, at + 16)[0])


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
        assert await guest.process.wait() == 0


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
        assert await guest.process.wait() == 0
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
        assert await guest.process.wait() == 0
        verdict = judge([guest.log])
    assert "the guest reports: QM PANIC unknown setting qm.rates=20" in verdict.reasons
