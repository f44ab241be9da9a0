"""Image files on hosts: made empty at the destination, removed there again, and put away at the source.

Nothing that is there is ever written over, and nothing is removed that is not provably ours. A new image is made under a
name of its own, ``NAME.MIGRATION.copying``, and linked to its place, which fails where something is there already. That
second name stays until the guest runs over there: while it is the same file, what is in the place is our unfinished copy,
whoever asks and whatever has died.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from qmp_migrate.errors import CommandFailed, FileFailed, LaunchFailed, QmpMigrateError
from qmp_migrate.hosts.process import launch, wait_gone
from qmp_migrate.hosts.scripts import script
from qmp_migrate.migration.endpoint import cleanup
from qmp_migrate.migration.endpoint.endpoint import Side
from qmp_migrate.migration.model.request import SourceImages
from qmp_migrate.migration.storage.disk_plan import DiskCopy
from qmp_migrate.qemu import images
from qmp_migrate.qemu.images import Target

MARK: Final = "copying"
"""Ends the second name of an image that is being copied."""

SCRIPT_S: Final = 60.0
MAKER_GONE_S: Final = 10.0

_MAKE: Final = script("storage/make_images")

_REMOVE: Final = script("storage/remove_images")

_KEEP: Final = script("storage/keep_images")

_PUT_AWAY: Final = script("storage/put_away")


def maker_argv(side: Side) -> list[str]:
    """Return the command line of a QEMU without a machine that makes images on a host."""
    socket = f"unix:{side.directory}/qmp.sock,server=on,wait=off"
    return [side.settings.qemu, "-M", "none", "-nodefaults", "-display", "none", "-S", "-qmp", socket]


def needs_maker(copies: Sequence[DiskCopy]) -> bool:
    """Tell whether a QEMU is needed to make the images: an empty raw one is a file of its size, and nothing else."""
    return any(copy.makes and copy.format != "raw" for copy in copies)


async def make(side: Side, migration: str, copies: Sequence[DiskCopy]) -> None:
    """Make the files of new images; raw ones are complete then.

    Raises:
        FileFailed: One could not be made; those before it are there, and `remove` knows them.
        TransportError: Unknown what was made.
    """
    words = [migration]
    for copy in copies:
        if copy.makes:
            words += [copy.path, copy.mode, str(copy.virtual_bytes) if copy.format == "raw" else ""]
    try:
        await side.host.script(_MAKE, words, timeout=SCRIPT_S)
    except CommandFailed as error:
        raise FileFailed(
            f"the disks' images could not be made: {error.stderr.strip() or error.message}",
            hint="is their directory writable, and does its file system know hard links?",
            host=side.name,
        ) from error


async def fill(side: Side, migration: str, copies: Sequence[DiskCopy]) -> None:
    """Make images of the new files that need a QEMU for it: one without a machine, which is gone when this returns.

    The caller has written down that it launches `maker_argv` there.

    Raises:
        LaunchFailed, MonitorError: The images could not be made; the QEMU may be left.
    """
    side.process = await launch(side.host, directory=side.directory, argv=maker_argv(side), timeout=side.launch_limit_s)
    monitor = await side.attach()
    for copy in copies:
        if copy.makes and copy.format != "raw":
            target = Target(f"{migration}-t{copy.index}", copy.path, copy.format)
            await images.create(monitor, target, copy.options)
    await monitor.execute("quit")
    await side.detach()
    if not await wait_gone(side.host, side.process, MAKER_GONE_S) and not await side.kill():
        raise LaunchFailed("the QEMU that makes images does not end", host=side.name)
    await cleanup.remove_guest_directory(side)
    side.process = None


async def remove(side: Side, migration: str, copies: Sequence[DiskCopy]) -> list[str]:
    """Remove what `make` made, after the QEMUs that used it are gone. May be called again.

    Returns:
        One line per thing that is left.
    """
    made = [copy for copy in copies if copy.makes]
    lines = [
        f"{copy.path} on {side.name} holds a part of a disk: wipe it before another try"
        for copy in copies
        if not copy.makes
    ]
    directories = {directory for copy in made for directory in copy.directories}
    innermost_first = sorted(directories, key=len, reverse=True)
    try:
        words = [migration, *(copy.path for copy in made), "--", *innermost_first]
        await side.host.script(_REMOVE, words, timeout=SCRIPT_S)
    except QmpMigrateError as error:
        names = ", ".join(copy.path for copy in made)
        lines.append(
            f"unfinished copies may be left on {side.name} ({names}, and *.{migration}.{MARK} beside them): {error}"
        )
    return lines


async def keep(side: Side, migration: str, copies: Sequence[DiskCopy]) -> None:
    """Take the second names away: the copies are the guest's disks from now on.

    Raises:
        RemoteError, TransportError: It could not be done.
    """
    made = [copy.path for copy in copies if copy.makes]
    if made:
        await side.host.script(_KEEP, [migration, *made], timeout=SCRIPT_S)


async def put_away(side: Side, migration: str, copies: Sequence[DiskCopy], how: SourceImages) -> list[str]:
    """Do with the source's images as was asked, once its QEMU is gone for good. May be called again.

    Only with disks that the guest wrote to: a medium may be somebody else's, too.

    Args:
        side: The source.
        migration: Its id.
        copies: What was copied.
        how: ``keep``, ``rename`` (to ``NAME.migrated-ID``) or ``remove``.

    Returns:
        One line for each that stays although it was not to be kept.

    Raises:
        RemoteError, TransportError: It could not be done.
    """
    if how == "keep":
        return []
    disks = [copy for copy in copies if copy.writable]
    words = [word for copy in disks if copy.source_identity for word in (copy.source_path, copy.source_identity)]
    if words:
        await side.host.script(_PUT_AWAY, [how, migration, *words], timeout=SCRIPT_S)
    stay = [copy.source_path for copy in disks if not copy.source_identity]
    return [f"{path} on {side.name} is a block device or a link: it stays as it is" for path in stay]
