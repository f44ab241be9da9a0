"""A test guest in a real QEMU, without a host or a controller: its serial line at both ends, its monitor, its memory."""

from __future__ import annotations

import asyncio
import mmap
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from qemu.qmp import QMPClient

from qmp_migrate.rig.guest.accelerator_probe import CPU, Accelerator
from qmp_migrate.rig.guest.firmware import QBOOT
from qmp_migrate.rig.guest.images import KERNEL_WORDS, GuestImage
from qmp_migrate.rig.guest.oracle import Verdict, judge

PAGE = 4096
MAGIC = b"QMGPPAGE"
# A guest is ready in at most 2 to 4 s without hardware help; the rest is for a machine that does other things too.
PATIENCE_S = 60.0
_LISTENS = "00010000"
"""Flags in ``/proc/net/unix``."""


@dataclass
class Guest:
    """A running test guest with its serial line at both ends."""

    directory: Path
    process: asyncio.subprocess.Process
    serial: asyncio.StreamWriter
    qmp: QMPClient
    heard: bytearray
    listening: asyncio.Task[None]

    @property
    def log(self) -> bytes:
        """What it has written so far."""
        return bytes(self.heard)

    async def ended(self) -> int:
        """Wait for the end of its QEMU, and for all that it wrote; return the exit code."""
        code = await self.process.wait()
        await self.listening
        return code

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
async def running(
    directory: Path,
    image: GuestImage,
    append: str,
    *arguments: str,
    qemu: str = "qemu-system-x86_64",
    accel: Accelerator = "tcg",
    memory_mib: int = 192,
    machine: str = "pc-q35-7.2",
) -> AsyncIterator[Guest]:
    """Start a guest and end it; `arguments` are further options of its QEMU."""
    files = ["-kernel", str(image.kernel)]
    files += ["-bios", QBOOT] if image.initrd is None else ["-initrd", str(image.initrd)]
    process = await asyncio.create_subprocess_exec(
        qemu,
        *("-nodefaults", "-no-user-config", "-display", "none", "-S"),
        *("-machine", f"{machine},memory-backend=ram", "-accel", accel, "-cpu", CPU[image.kind]),
        *("-object", f"memory-backend-file,id=ram,size={memory_mib}M,mem-path={directory}/ram,share=on"),
        *("-m", f"{memory_mib}M", *files, "-append", f"{KERNEL_WORDS} {append}"),
        *("-chardev", f"socket,id=serial,path={directory}/serial,server=on,wait=off"),
        *("-serial", "chardev:serial", "-qmp", f"unix:{directory}/qmp,server=on,wait=off"),
        *arguments,
    )
    qmp = QMPClient("guest")
    async with AsyncExitStack() as undo:
        undo.callback((directory / "ram").unlink, missing_ok=True)  # so much that pytest would keep
        undo.push_async_callback(process.wait)
        undo.callback(lambda: process.kill() if process.returncode is None else None)
        # The monitor is the last to open.
        await eventually(lambda: listens(directory / "qmp") or process.returncode is not None, lambda: "QEMU")
        reader, serial = await asyncio.open_unix_connection(str(directory / "serial"))
        # Not QEMU's own log of it: that has a byte twice whenever the socket was full.
        heard = bytearray()
        listening = asyncio.create_task(listen(reader, heard))
        undo.push_async_callback(asyncio.wait, [listening])
        undo.callback(serial.close)
        await qmp.connect(str(directory / "qmp"))
        undo.push_async_callback(hang_up, qmp)
        await qmp.execute("cont")  # not before all that it writes is heard
        yield Guest(directory, process, serial, qmp, heard, listening)


def listens(path: Path) -> bool:
    """Whether somebody listens there: the file of a socket is made a moment earlier."""
    sockets = (line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:])
    return any(fields[-1] == str(path) and fields[3] == _LISTENS for fields in sockets)


async def listen(reader: asyncio.StreamReader, heard: bytearray) -> None:
    """Keep what comes, to the end."""
    with suppress(ConnectionResetError):  # a QEMU that ended with input unread
        while more := await reader.read(4096):
            heard += more


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
