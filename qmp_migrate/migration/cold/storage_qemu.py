"""A QEMU without a machine that has a shut-down guest's images open: it can be asked for them, and copies them.

It lives in ``RUN_DIR/.copy-ID``, so that no list of guests shows it, and is ended by whoever takes the operation up.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from qmp_migrate.errors import QmpMigrateError
from qmp_migrate.hosts.process import identify, launch, wait_gone
from qmp_migrate.migration.endpoint.cleanup import remove_guest_directory
from qmp_migrate.migration.endpoint.endpoint import Side
from qmp_migrate.migration.endpoint.launch import launch_over
from qmp_migrate.migration.storage.images import maker_argv
from qmp_migrate.vm.commandline.command_line import CommandLine
from qmp_migrate.vm.commandline.disks import Disk, disks

QUIT_S = 10.0


def place(side: Side, id: str) -> Side:
    """Return where an operation's QEMU is on a guest's host."""
    return Side(side.host, side.settings, f".copy-{id}")


def argv(side: Side, command: CommandLine | None) -> list[str]:
    """Return its command line.

    Args:
        side: See `place`.
        command: The guest's: its images are opened; None: none are.
    """
    words = maker_argv(side)
    for number, disk in enumerate(disks(command) if command is not None else ()):
        if disk.path is not None and disk.role != "backing":
            words += ["-drive", drive(number, disk)]
    return words


def drive(number: int, disk: Disk) -> str:
    """Return the ``-drive`` that opens an image as the guest's own QEMU would, for nobody."""
    given = {"if": "none", "id": f"image{number}", "file": (disk.path or "").replace(",", ",,")}
    if disk.format is not None:
        given["format"] = disk.format
    if not disk.writable:
        given["readonly"] = "on"
    if disk.direct:
        given["cache.direct"] = "on"
    return ",".join(f"{key}={value}" for key, value in given.items())


@contextlib.asynccontextmanager
async def running(side: Side, words: list[str]) -> AsyncIterator[Side]:
    """Have it run for a while; it is gone afterwards, with its directory."""
    side.process = await launch(side.host, directory=side.directory, argv=words, timeout=side.launch_limit_s)
    try:
        yield side
    finally:
        await end(side)


async def end(side: Side) -> None:
    """End it and remove its directory, also one that another controller has started.

    Raises:
        RemoteError, TransportError: It cannot be proven gone.
    """
    if side.process is None and await launch_over(side):
        side.process = await identify(side.host, side.directory)
    if side.process is not None:
        with contextlib.suppress(QmpMigrateError):
            await (await side.attach()).execute("quit")
        await side.detach()
        if not await wait_gone(side.host, side.process, QUIT_S):
            await side.kill()
        side.process = None
    await remove_guest_directory(side)
