"""Disks whose image is not the one of the command line any more: media that were changed are followed, images are not. Pure.

A CD that was changed, taken out or put in while the guest ran is written into the command line: the destination's drive then
has what the guest sees now (whether the tray is open travels with the guest). A disk that has moved to another image, by a
snapshot or a finished mirror, is refused: the destination would open the old one, without a word from QEMU.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from qmp_migrate.migration.devices import hotplug_args
from qmp_migrate.qemu.devices import ANONYMOUS, PERIPHERAL, Devices, Drive
from qmp_migrate.vm.commandline import properties
from qmp_migrate.vm.commandline.command_line import CommandLine, Option
from qmp_migrate.vm.commandline.disks import Disk, disks
from qmp_migrate.vm.commandline.filenames import local_path

CD_DRIVERS: Final = frozenset({"ide-cd", "scsi-cd"})
_FILE_KEYS: Final = frozenset({"file", "file.filename", "file.driver", "filename", "format", "driver"})
_FIRST_CD: Final = frozenset({"ide1-cd0", "ide2-cd0"})
"""What QEMU calls the CD drive of ``-cdrom`` and the one it makes by itself, on either chipset."""


@dataclass(frozen=True, slots=True)
class Media:
    """What became of the disks.

    Attributes:
        replaced: Option of the command line to what stands in its place (nothing: left out).
        added: Options at the end.
        drives: Device option to the node its medium is on now; ``""``: it is empty now.
        changes: What was changed, one line each.
        refusals: Why the guest cannot be moved as it is, one line each.
    """

    replaced: Mapping[Option, tuple[Option, ...]]
    added: tuple[Option, ...]
    drives: Mapping[Option, str]
    changes: tuple[str, ...]
    refusals: tuple[str, ...]


def compare(command: CommandLine, devices: Devices, given: Mapping[str, Option]) -> Media:
    """Compare what the disks are on with what the command line says.

    Args:
        command: The guest's, without what was plugged out.
        devices: The guest's.
        given: Path of each device of the command line to its option.
    """
    work = _Comparison(command, devices, given)
    for drive in devices.drives:
        device = work.path_of(drive)
        if device in devices.devices and devices.devices[device].hotplugged:
            continue  # it is built again as it is now
        work.look(drive, device)
    return Media(work.replaced, tuple(work.added), work.drives, tuple(work.changes), tuple(work.refusals))


class _Comparison:
    """One comparison under way."""

    def __init__(self, command: CommandLine, devices: Devices, given: Mapping[str, Option]) -> None:
        self.command = command
        self.devices = devices
        self.given = given
        self.disks = disks(command)
        self.replaced: dict[Option, tuple[Option, ...]] = {}
        self.added: list[Option] = []
        self.drives: dict[Option, str] = {}
        self.changes: list[str] = []
        self.refusals: list[str] = []

    def path_of(self, drive: Drive) -> str:
        """Return the path of the device that a drive belongs to."""
        if not drive.device.startswith("/"):
            return f"{PERIPHERAL}/{drive.device}"
        parts = drive.device.split("/")
        return "/".join(parts[:4]) if drive.device.startswith((f"{PERIPHERAL}/", f"{ANONYMOUS}/")) else drive.device

    def look(self, drive: Drive, device: str) -> None:
        option = self.given.get(device)
        node = self.devices.nodes.get(drive.node) if drive.node is not None else None
        file = node.filename if node is not None else None
        said = self._said(drive, option)
        name = drive.name or (device.rpartition("/")[2] if option is not None else device)
        if said is None:
            self._unsaid(drive, option, name, file)
        elif said.path is None and not _empty(said):
            return  # not a file of this host: QEMU tells it in other words than it was given in
        elif not _same(said.path, file):
            if not drive.removable:
                where = file or "nothing"
                self.refusals.append(
                    f"disk {name} is on {where} now, not on {said.path} as its command line says (a snapshot or mirror?): "
                    f"commit it back, or restart the guest with {where}"
                )
            elif said.role != "cdrom":
                self.refusals.append(f"the medium of {name} was changed: eject it, or put {said.path} back")
            else:
                self._changed(drive, option, said, name)

    def _said(self, drive: Drive, option: Option | None) -> Disk | None:
        """Return the disk of the command line that a drive belongs to, if it can be told."""
        wanted = option.properties().get("drive") if option is not None else None
        for disk in self.disks:
            if disk.id is not None and disk.id in {wanted, drive.name or None} and disk.role != "backing":
                return disk
        if drive.name in _FIRST_CD:
            return next((d for d in self.disks if d.role == "cdrom" and d.id is None), None)
        return None

    def _unsaid(self, drive: Drive, option: Option | None, name: str, file: str | None) -> None:
        """A drive that the command line names by place or not at all: its image must be among those it names."""
        if file is None:
            if drive.removable and "-cd" in drive.name and (path := self._lost()) is not None:
                self.refusals.append(f"{path} was taken out of {name}: put it back, or start guests with -drive id=")
            return
        if not posixpath.isabs(file):
            return
        if any(_same(disk.path, file) for disk in self.disks if disk.path is not None):
            return
        if option is not None and drive.removable and option.properties().get("driver") in CD_DRIVERS:
            self._put_in(drive, option, f"medium-{drive.device.rpartition('/')[2]}", name)
        elif drive.name in _FIRST_CD:
            self._first_cd(drive)
        else:
            self.refusals.append(
                f"{name} is on {file}, which its command line does not name: restart the guest with it"
            )

    def _lost(self) -> str | None:
        """Return the medium of a CD drive without an id that is in no drive any more."""
        nodes = (self.devices.nodes.get(drive.node or "") for drive in self.devices.drives)
        present = {node.filename for node in nodes if node is not None}
        unnamed = (disk.path for disk in self.disks if disk.role == "cdrom" and disk.id is None)
        return next((path for path in unnamed if path is not None and path not in present), None)

    def _changed(self, drive: Drive, option: Option | None, said: Disk, name: str) -> None:
        if said.option.name == "blockdev" and option is not None:
            if drive.node is None:
                self.drives[option] = ""
                self.changes.append(f"{name}: {said.path} was taken out")
            else:
                self._put_in(drive, option, said.id or "", name, instead=said.option)
        elif said.option.name == "drive":
            self._in_drive(drive, said, name)
        else:
            self.replaced[said.option] = ()
            self._first_cd(drive)

    def _put_in(self, drive: Drive, option: Option, node: str, name: str, *, instead: Option | None = None) -> None:
        """Put the medium that is in a drive now into the command line, under the name of the one that was in it."""
        assert drive.node is not None
        known = frozenset(disk.id for disk in self.disks if disk.id is not None)
        own = not drive.node.startswith("#")
        try:
            made = (
                []
                if own and drive.node in known
                else hotplug_args.block(drive.node, self.devices, known=known, name=drive.node if own else node)
            )
        except hotplug_args.Cannot as error:
            self.refusals.append(f"the medium in {name} was changed: {error}")
            return
        if own or instead is None:
            self.added += made
            self.drives[option] = drive.node if own else node
        else:
            self.replaced[instead] = tuple(made)
        self.changes.append(f"{name}: has {self._file(drive)} in it now")

    def _in_drive(self, drive: Drive, said: Disk, name: str) -> None:
        bare = said.option.with_value(properties.without(said.option.value or "", _FILE_KEYS))
        if drive.node is not None:
            found = self._plain(drive, name)
            if found is None:
                return
            bare = bare.with_value(properties.added(bare.value or "", {"file": found[0], "format": found[1]}))
            self.changes.append(f"{name}: has {found[0]} in it now")
        else:
            self.changes.append(f"{name}: {said.path} was taken out")
        self.replaced[said.option] = (bare,)

    def _first_cd(self, drive: Drive) -> None:
        text = "media=cdrom,index=2"
        if drive.node is not None:
            found = self._plain(drive, drive.name)
            if found is None:
                return
            text = properties.added(text, {"file": found[0], "format": found[1]})
        self.added.append(Option("-drive", text))
        self.changes.append(
            f"{drive.name}: " + (f"has {self._file(drive)} in it now" if drive.node else "is empty now")
        )

    def _plain(self, drive: Drive, name: str) -> tuple[str, str] | None:
        """Return file and format of a medium that is a plain image."""
        node = self.devices.nodes[drive.node or ""]
        try:
            hotplug_args.block(node.name, self.devices, known=frozenset(), name="medium")
        except hotplug_args.Cannot as error:
            self.refusals.append(f"the medium in {name} was changed: {error}")
            return None
        return node.filename, "raw" if node.driver in {"file", "host_device", "host_cdrom"} else node.driver

    def _file(self, drive: Drive) -> str:
        return self.devices.nodes[drive.node or ""].filename


def _empty(disk: Disk) -> bool:
    """Tell whether a disk of the command line is a drive without a medium."""
    keys = {key for key, _ in disk.option.properties().items} if disk.option.name == "drive" else {"file"}
    return not any(key in {"driver", "filename"} or key.startswith("file") for key in keys)


def _same(said: str | None, found: str | None) -> bool:
    """Tell whether two names are one file; what cannot be compared passes."""
    if said is None or found is None:
        return said is None and found is None
    if found.startswith("json:"):  # what of a node no file name alone can say
        given = properties.read(found.removeprefix("json:"), takes_json=True)
        found = given.get("file.filename", "filename") or said
    path = local_path(found)
    if path is None:
        return False
    if posixpath.isabs(path) != posixpath.isabs(said):
        return True
    return posixpath.normpath(path) == posixpath.normpath(said)


def media_of(options: Sequence[Option]) -> bool:
    """Tell whether options make a CD drive, which stands in for the one that QEMU makes by itself."""
    return any(
        option.name == "cdrom"
        or (option.name == "drive" and option.properties().get("media") == "cdrom")
        or (option.name == "device" and option.properties().get("driver") in CD_DRIVERS)
        for option in options
    )
