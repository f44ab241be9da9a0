"""Guests that were not changed, as people start them: the real QEMU's own words must not be taken for changes."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from qmp_migrate.migration.devices.diff import as_it_is, given_devices
from qmp_migrate.qemu import devices
from qmp_migrate.qemu.monitor import Monitor
from qmp_migrate.vm.commandline.command_line import CommandLine

QEMU = shutil.which("qemu-system-x86_64")
pytestmark = pytest.mark.skipif(QEMU is None, reason="no qemu-system-x86_64")

JSON = 'json:{"driver":"raw",,"offset":0,,"size":65536,,"file":{"driver":"file",,"filename":"DIR/h.img"}}'
GUESTS = {
    "short forms": "-hda DIR/h.img -cdrom DIR/c.iso -fda DIR/floppy.img",
    "another chipset": "-M q35 -hda DIR/h.img -cdrom DIR/c.iso -net nic -net user",
    "drives and old options": (
        "-drive file=DIR/h.img,if=virtio,cache=none,format=raw -drive media=cdrom,if=ide,index=3 -usb -usbdevice tablet "
        "-nic user,model=virtio-net-pci -nic user,model=e1000 -device usb-kbd -device virtio-balloon"
    ),
    "a hub": "-netdev user,id=u -netdev hubport,id=h,hubid=3,netdev=u -netdev hubport,id=h2,hubid=3 -device e1000,netdev=h2",
    "flash": (
        "-M q35 -drive if=pflash,format=raw,file=DIR/flash.img -device ahci,id=a "
        "-drive if=none,id=x,file=DIR/h.img,format=raw -device ide-hd,drive=x,bus=a.0"
    ),
    "a block graph": (
        "-M q35 -object secret,id=s,data=abc -object iothread,id=io -object throttle-group,id=tg,x-iops-total=1000 "
        "-blockdev driver=file,node-name=f,filename=DIR/h.img -blockdev driver=raw,node-name=r,file=f "
        "-blockdev driver=throttle,node-name=t,throttle-group=tg,file=r "
        '-device {"driver":"virtio-blk-pci","drive":"t","iothread":"io"} -smp 2,maxcpus=3'
    ),
    "cards, sticks and ports": (
        "-M q35 -device virtio-serial -chardev null,id=c -device virtserialport,chardev=c,name=x -device sdhci-pci "
        "-drive if=none,id=sd,file=DIR/h.img,format=raw -device sd-card,drive=sd -device usb-ehci,id=e "
        "-drive if=none,id=us,format=raw,file=DIR/c.iso -device usb-storage,drive=us,bus=e.0"
    ),
    "an image told in JSON": f"-drive file={JSON},if=none,id=j -device virtio-blk-pci,drive=j",
}


async def reached(process: asyncio.subprocess.Process, monitor: Path) -> socket.socket:
    link = socket.socket(socket.AF_UNIX)
    while True:
        try:
            link.connect(str(monitor))
            return link
        except (FileNotFoundError, ConnectionRefusedError):
            assert process.returncode is None, "it did not start"
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def started(argv: list[str], monitor: Path) -> AsyncIterator[Monitor]:
    process = await asyncio.create_subprocess_exec(*argv, "-qmp", f"unix:{monitor},server=on,wait=off")
    try:
        connected = await Monitor.connect(await reached(process, monitor), label="guest")
        yield connected
        await connected.close()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for name, size in (("h.img", 1 << 20), ("c.iso", 1440 << 10), ("flash.img", 1 << 20), ("floppy.img", 1440 << 10)):
        (tmp_path / name).write_bytes(bytes(size))
    return tmp_path


@pytest.mark.parametrize("kind", list(GUESTS))
async def test_a_guest_that_was_not_changed_is_its_command_line(kind: str, files: Path) -> None:
    assert QEMU is not None
    words = GUESTS[kind].replace("DIR", str(files)).split()
    argv = [QEMU, "-S", "-display", "none", "-accel", "tcg", *words]
    command = CommandLine.parse(argv)
    given = given_devices(command)
    async with asyncio.timeout(30), started(argv, files / "qmp") as monitor:
        found = await devices.look(monitor, named=frozenset(given.named), anonymous=len(given.anonymous))
    present = as_it_is(command, found)
    assert (present.refusals, present.changes) == ((), ())
    assert present.command.argv() == argv
