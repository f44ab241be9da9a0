"""The images that belong to a saved guest, and whether they are still what they were. `changes` is pure.

A guest's memory and its disks are one thing. Restoring memory over disks that have gone on since is the classic way to
lose a file system, and QEMU cannot notice it: so the state file says what each image was like.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from qmp_migrate.errors import FileFailed
from qmp_migrate.hosts import Host
from qmp_migrate.hosts.scripts import script
from qmp_migrate.qemu.monitor import Monitor

Kind = Literal["file", "block", "other", "absent"]

_LOCAL: Final = frozenset({"file", "host_device", "host_cdrom"})
_ELSEWHERE: Final = frozenset({"nbd", "rbd", "iscsi", "nfs", "ssh", "http", "https", "gluster", "nvme"})

_STAMPS: Final = script("savefile/image_stamps")


@dataclass(frozen=True, slots=True)
class Stamp:
    """What an image was like at one moment.

    Attributes:
        path: On the host it was looked at.
        kind: A regular ``file``, a ``block`` device (which has no time of its own), ``other``, or ``absent``.
        writable: The guest may write to it.
        size: Bytes; 0 of a device.
        mtime: Seconds with nine places, as text: no rounding.
        inode, device: Of the host's file system.
    """

    path: str
    kind: Kind
    writable: bool
    size: int
    mtime: str
    inode: int
    device: int


@dataclass(frozen=True, slots=True)
class Change:
    """One image that is not as it was.

    Attributes:
        grave: The guest's memory does not fit to it, or may not: only ``--force`` goes on.
        text: What is different.
    """

    grave: bool
    text: str


async def open_images(monitor: Monitor) -> dict[str, bool]:
    """Return the local files and devices that a QEMU has open as images, backing files included: path to writable.

    Raises:
        MonitorError: It does not answer.
    """
    found: dict[str, bool] = {}
    for node in await monitor.execute("query-named-block-nodes", {"flat": True}):
        path = str(node.get("file", ""))
        if node.get("drv") in _LOCAL and path.startswith("/"):
            found[path] = found.get(path, False) or not node.get("ro", False)
    return found


async def other_disks(monitor: Monitor) -> list[str]:
    """Return the images that are no local files, by what QEMU calls them: nobody can say whether they changed.

    Raises:
        MonitorError: It does not answer.
    """
    nodes = await monitor.execute("query-named-block-nodes", {"flat": True})
    return sorted({str(node.get("file")) for node in nodes if node.get("drv") in _ELSEWHERE})


async def take_stamps(host: Host, images: Mapping[str, bool]) -> tuple[Stamp, ...]:
    """Look at images on a host.

    Args:
        host: The host.
        images: Path to whether the guest may write to it.

    Raises:
        FileFailed: The host's answer is not one line for each.
        CommandFailed, TransportError: It cannot be asked.
    """
    if not images:
        return ()
    lines = (await host.script(_STAMPS, list(images))).text.splitlines()
    try:
        return tuple(
            _stamp(path, writable, *line.split()) for (path, writable), line in zip(images.items(), lines, strict=True)
        )
    except (ValueError, TypeError) as error:
        raise FileFailed(f"the images cannot be looked at: {error}", host=host.name) from error


def _stamp(path: str, writable: bool, kind: str, size: str, mtime: str, inode: str, device: str) -> Stamp:
    known: dict[str, Kind] = {"file": "file", "block": "block", "absent": "absent"}
    return Stamp(path, known.get(kind, "other"), writable, int(size), mtime, int(inode), int(device))


def changes(saved: Sequence[Stamp], now: Mapping[str, Stamp]) -> list[Change]:
    """Compare the images of a saved guest with what they are now.

    An image that was copied with its times kept (``cp -p``, ``rsync -t``) has the same size and time and another inode:
    that is a remark, no refusal. A device has no time that its content sets: that is said as well.

    Args:
        saved: As the state file has them.
        now: Path *as it was saved* to what is found under the name that it has on this host.
    """
    found: list[Change] = []
    for was in saved:
        image = shlex.quote(was.path)
        is_ = now.get(was.path)
        if is_ is None or is_.kind == "absent":
            found.append(Change(True, f"the image {image} is not there"))
        elif was.kind != is_.kind:
            found.append(Change(True, f"the image {image} was a {was.kind} and is a {is_.kind}"))
        elif was.kind != "file":
            found.append(Change(False, f"nobody can tell whether {image} was written to since: it is a {was.kind}"))
        elif was.size != is_.size:
            found.append(Change(True, f"the image {image} has {is_.size} bytes and had {was.size} when it was saved"))
        elif not _same_time(was.mtime, is_.mtime):
            found.append(Change(True, f"the image {image} was written to after the guest was saved"))
        elif was.inode != is_.inode:
            found.append(Change(False, f"the image {image} is another file with the same size and time: a copy?"))
    return found


def _same_time(one: str, other: str) -> bool:
    """Compare two times; a tool that copies whole seconds only has cut off the rest."""
    seconds, _, rest = one.partition(".")
    found, _, there = other.partition(".")
    return seconds == found and (rest == there or not there.strip("0"))
