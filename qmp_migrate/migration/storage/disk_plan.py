"""Which disks of a guest are copied, which stay where they are, and what speaks against it. Pure: facts in, plan out.

The rules (``docs/guide/copy-storage.md`` has them for people):

* A disk on a file or block device of the source is copied. One that the network holds, or a file that both hosts see
  as the same one, stays where it is.
* Nothing that is there is ever written over: a file in the way is a refusal, a block device must be blank.
* A medium that is only read is copied where the destination has none, used where its content is the same, and else refused.
* The image over there is like the one here: format, size and what makes a qcow2 image special. ``full`` makes one image of
  a chain; ``top`` needs the images below at the destination, with the same content.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

from qmp_migrate.migration.model.check import Check
from qmp_migrate.migration.model.request import StorageCopy
from qmp_migrate.migration.storage.image_stat import SHARED_FILE_SYSTEMS, FileFacts
from qmp_migrate.qemu.images import PROTOCOLS, Device, Image
from qmp_migrate.vm.commandline.disks import Disk
from qmp_migrate.vm.commandline.filenames import local_path
from qmp_migrate.vm.units import about_size

COPIED_FORMATS: Final = ("raw", "qcow2")
ROOM_BESIDE: Final = 4 << 20
"""Bytes for the metadata of one image, at least."""


@dataclass(frozen=True, slots=True)
class DiskCopy:
    """One disk that is copied; goes into the journal as it is.

    Attributes:
        index: Its number, which its names in QEMU are made of.
        key: See `Device.key`.
        source_path, path: The image here, and over there.
        source_identity: `FileFacts.identity` of the image here: it is renamed or removed only while it is this one.
        format: ``raw`` or ``qcow2``.
        virtual_bytes: What the guest sees.
        expected_bytes: What will take room over there, at least.
        writable: The guest writes to it; else it is a medium, complete before memory is copied.
        direct: Passes the host's page cache by.
        sync: ``full`` or ``top``.
        options: For ``blockdev-create``.
        mode: Permission bits of the new file, octal text.
        makes: A file is made; else a block device is there.
        directories: Directories that are made for it, outermost first.
    """

    index: int
    key: str
    source_path: str
    path: str
    source_identity: str = ""
    format: str = "raw"
    virtual_bytes: int = 0
    expected_bytes: int = 0
    writable: bool = True
    direct: bool = False
    sync: StorageCopy = "full"
    options: dict[str, Any] = field(default_factory=dict)
    mode: str = "600"
    makes: bool = True
    directories: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return it for the journal."""
        return asdict(self)

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> DiskCopy:
        """Return what `to_dict` gave."""
        return cls(**{**data, "directories": tuple(data.get("directories", ()))})


@dataclass(frozen=True, slots=True)
class Seen:
    """All that is known when this is judged.

    Attributes:
        how: ``full`` or ``top``.
        devices: The source's, from its QEMU.
        here, there: The disks of the two command lines, one for one.
        map_path: The source's path to the destination's.
        source, destination: Names of the hosts.
        source_files, destination_files: What is at the paths.
        same_machine: Both hosts are one machine: a path is the same file there.
        source_digests, destination_digests: SHA-256 of what was compared.
        busy: Block jobs that are under way.
        one_port: The destination has a single migration port.
    """

    how: StorageCopy
    devices: Sequence[Device]
    here: Sequence[Disk]
    there: Sequence[Disk]
    map_path: Callable[[str], str]
    source: str
    destination: str
    source_files: Mapping[str, FileFacts] = field(default_factory=dict)
    destination_files: Mapping[str, FileFacts] = field(default_factory=dict)
    same_machine: bool = False
    source_digests: Mapping[str, str] = field(default_factory=dict)
    destination_digests: Mapping[str, str] = field(default_factory=dict)
    busy: frozenset[str] = frozenset()
    one_port: bool = False


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is copied, and what was found.

    Attributes:
        copies: The disks that are copied.
        checks: For people.
        judged: Paths at the destination that the checks speak of: it is all said there.
    """

    copies: tuple[DiskCopy, ...] = ()
    checks: tuple[Check, ...] = ()
    judged: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Pair:
    """One disk of the guest: as its QEMU has it, and as the two command lines name it."""

    device: Device
    here: Disk
    there: Disk

    @property
    def paths(self) -> tuple[str, str]:
        """Its image's path here and there."""
        return self.here.path or "", self.there.path or ""


def pairs(devices: Sequence[Device], here: Sequence[Disk], there: Sequence[Disk]) -> tuple[list[Pair], list[Device]]:
    """Match what QEMU has with what the command lines say.

    Returns:
        The pairs, and those local disks that no option of the command line stands for (plugged in, or changed, since).
    """
    found, strangers, taken = list[Pair](), list[Device](), set[int]()
    tops = [index for index, disk in enumerate(here) if disk.role != "backing"]
    for device in devices:
        if device.image is None:
            continue
        path = local_path(device.filename) if device.filename else None
        by_name = [i for i in tops if here[i].id and here[i].id in {device.node, device.key} and i not in taken]
        by_path = [i for i in tops if path is not None and here[i].path == path and i not in taken]
        index = next((i for i in by_name if i in by_path), next(iter(by_path), None))
        if index is not None and index < len(there):
            taken.add(index)
            found.append(Pair(device, here[index], there[index]))
        elif device.protocol in PROTOCOLS:
            strangers.append(device)
    return found, strangers


def paths_to_look_at(seen: Seen) -> tuple[list[str], list[str]]:
    """Return the paths at the source and at the destination that must be looked at before `judge`."""
    found, _ = pairs(seen.devices, seen.here, seen.there)
    local = [pair for pair in found if pair.device.protocol in PROTOCOLS]
    source, destination = [p.paths[0] for p in local], [p.paths[1] for p in local]
    for pair in local:
        assert pair.device.image is not None
        if seen.how == "top":
            for below, path in _below(pair.device.image, seen.map_path):
                source.append(below)
                destination.append(path)
    return source, destination


def paths_to_compare(seen: Seen) -> list[tuple[str, str]]:
    """Return which files' contents must be compared, as pairs of paths: those of the same size that are only read."""
    found, _ = pairs(seen.devices, seen.here, seen.there)
    wanted = [pair.paths for pair in found if pair.device.read_only and pair.device.protocol in PROTOCOLS]
    if seen.how == "top":
        for pair in found:
            if pair.device.image is not None and pair.device.protocol in PROTOCOLS and not pair.device.read_only:
                wanted += _below(pair.device.image, seen.map_path)
    chosen = []
    for source, destination in dict.fromkeys(wanted):
        a, b = seen.source_files.get(source, FileFacts()), seen.destination_files.get(destination, FileFacts())
        if a.kind == b.kind == "file" and a.size == b.size and not _same_file(a, b, seen.same_machine):
            chosen.append((source, destination))
    return chosen


def _below(image: Image, map_path: Callable[[str], str]) -> list[tuple[str, str]]:
    """Return the images below one, as pairs of paths here and there."""
    return [(lower.filename, map_path(lower.filename)) for lower in image.chain[1:]]


def _same_file(a: FileFacts, b: FileFacts, same_machine: bool) -> bool:
    """Tell whether two hosts see one file: proven on one machine, and on a file system that several hosts share."""
    if same_machine:
        return bool(a.identity) and a.identity == b.identity
    shared = {a.file_system, b.file_system} <= SHARED_FILE_SYSTEMS
    return shared and bool(a.inode) and a.inode == b.inode and a.size == b.size


def judge(seen: Seen) -> Judgement:
    """Say what is copied, and whether it can be."""
    found, strangers = pairs(seen.devices, seen.here, seen.there)
    work = _Judging(seen)
    for device in strangers:
        text = f"disk {device.key} is {device.filename} now, which is not in the command line of the guest"
        work.fail(text, "it was plugged in or changed since it started: undo that, or restart the guest", seen.source)
    for pair in found:
        work.disk(pair)
    work.room()
    if work.copies and seen.busy:
        text = f"a block job works on its disks: {', '.join(sorted(seen.busy))}"
        work.fail(text, "wait for it, or cancel it", seen.source)
    if work.copies and seen.one_port:
        text = f"migration_ports of {seen.destination} has one port; memory and disks need one each"
        work.fail(text, "widen the range", seen.destination)
    if not work.copies and not any(check.status == "fail" for check in work.checks):
        text = "no disk of it has to be copied"
        work.checks.append(Check("storage", "warn", text, "leave --copy-storage out", seen.source))
    judged = frozenset(pair.paths[1] for pair in found if pair.device.protocol in PROTOCOLS)
    return Judgement(tuple(work.copies), tuple(work.checks), judged)


@dataclass(slots=True)
class _Judging:
    seen: Seen
    copies: list[DiskCopy] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)

    def fail(self, text: str, hint: str, host: str) -> None:
        self.checks.append(Check("storage", "fail", text, hint, host))

    def warn(self, text: str, hint: str, host: str) -> None:
        self.checks.append(Check("storage", "warn", text, hint, host))

    def fine(self, text: str, host: str) -> None:
        self.checks.append(Check("storage", "ok", text, host=host))

    def disk(self, pair: Pair) -> None:
        seen, device = self.seen, pair.device
        if device.protocol not in PROTOCOLS:
            self.fine(f"{device.key} stays where it is ({device.protocol or 'no file of the host'})", seen.source)
            return
        here, there = pair.paths
        a, b = seen.source_files.get(here, FileFacts()), seen.destination_files.get(there, FileFacts())
        if device.protocol == "host_cdrom":
            self.fail(f"{device.key} is the drive {here} of {seen.source}", "eject the medium", seen.source)
        elif _same_file(a, b, seen.same_machine):
            self.fine(f"{there} is the same file on both hosts: it stays", seen.destination)
        elif device.read_only:
            self._medium(pair, a, b)
        else:
            self._written(pair, a, b)

    # -- media that are only read -------------------------------------------------------------------------------------

    def _medium(self, pair: Pair, a: FileFacts, b: FileFacts) -> None:
        seen, (here, there) = self.seen, pair.paths
        assert pair.device.image is not None
        if b.kind == "absent":
            if pair.device.image.format != "raw":
                text = f"{here} is only read and is {pair.device.image.format}: such a medium is not copied"
                self.fail(text, f"put it to {there} on {seen.destination}", seen.destination)
            else:
                self._copy(pair, a, b, sync="full")
            return
        ours, theirs = seen.source_digests.get(here), seen.destination_digests.get(there)
        if a.size == b.size and ours and ours == theirs:
            self.fine(f"{there} on {seen.destination} has the same content: it is used", seen.destination)
            return
        what = "cannot be compared with" if a.size == b.size and not (ours and theirs) else "is another one than"
        text = f"{there} on {seen.destination} {what} the guest's on {seen.source}"
        if pair.here.role == "pflash":
            self.warn(text, "the guest goes on with the firmware it has until it is powered off", seen.destination)
        else:
            self.fail(text, "put the same one there, or move it away: then it is copied", seen.destination)

    # -- disks that are written ---------------------------------------------------------------------------------------

    def _written(self, pair: Pair, a: FileFacts, b: FileFacts) -> None:
        seen, image = self.seen, pair.device.image
        assert image is not None
        here, there = pair.paths
        if not self._copyable(pair, image):
            return
        if seen.how == "top" and image.backing is not None:
            if self._chain_there(image):
                self._copy(pair, a, b, sync="top")
            return
        if seen.how == "full" and image.backing is not None and _spelt_out(pair, seen.here):
            text = f"{here}: the images below it are in the command line, which is kept to the letter"
            self.fail(text, "use --copy-storage top, or restart the guest with the top image alone", seen.source)
            return
        if there in self._paths():
            self.fail(f"{there}: two disks of the guest would be copied to it", "map them apart", seen.destination)
            return
        self._copy(pair, a, b, sync="full")

    def _paths(self) -> set[str]:
        return {copy.path for copy in self.copies}

    def _copyable(self, pair: Pair, image: Image) -> bool:
        seen, here = self.seen, pair.paths[0]
        details = image.details
        why = None
        if image.format not in COPIED_FORMATS:
            why = f"is {image.format}; raw and qcow2 images are copied"
        elif image.encrypted or details.encrypt is not None:
            why = "is encrypted; QEMU would need its key to make another one"
        elif details.data_file is not None:
            why = "keeps its data in another file"
        elif details.corrupt:
            why = "is marked as corrupt"
        if why is not None:
            self.fail(f"{here} {why}", "it cannot be copied while the guest runs", seen.source)
            return False
        if image.snapshots:
            names = ", ".join(str(snapshot.get("name")) for snapshot in image.snapshots[:3])
            self.warn(f"{here} has internal snapshots ({names}): they do not move", "", seen.source)
        if details.bitmaps:
            self.warn(f"{here} has dirty bitmaps: they do not move", "the next backup will be a full one", seen.source)
        return True

    def _chain_there(self, image: Image) -> bool:
        seen, whole = self.seen, True
        for here, there in _below(image, seen.map_path):
            a, b = seen.source_files.get(here, FileFacts()), seen.destination_files.get(there, FileFacts())
            if _same_file(a, b, seen.same_machine):
                continue
            ours, theirs = seen.source_digests.get(here), seen.destination_digests.get(there)
            if b.kind == "absent":
                text, hint = (
                    f"the image {there} is not on {seen.destination}",
                    "copy it there, or use --copy-storage full",
                )
            elif a.size != b.size or (ours and theirs and ours != theirs):
                text = f"the image {there} on {seen.destination} is another one than on {seen.source}"
                hint = "copy it there as it is (cp, rsync), or use --copy-storage full"
            elif not (ours and theirs):
                text, hint = f"the image {there} could not be compared in time", "use --copy-storage full"
            else:
                continue
            self.fail(text, hint, seen.destination)
            whole = False
        return whole

    def _copy(self, pair: Pair, a: FileFacts, b: FileFacts, *, sync: Literal["full", "top"]) -> None:
        seen, image = self.seen, pair.device.image
        assert image is not None
        here, there = pair.paths
        if not here.startswith("/") or not there.startswith("/"):
            self.fail(f"{here}: a path that counts from QEMU's directory", "give disks absolute paths", seen.source)
            return
        if a.kind not in {"file", "block"}:
            self.fail(f"{here} on {seen.source} cannot be looked at ({a.kind})", "", seen.source)
            return
        makes = self._place(pair, a, b)
        if makes is None:
            return
        backing = None
        if sync == "top" and image.backing is not None and image.backing_filename:
            backing = (_named_below(pair, seen.map_path), image.backing.format)
        expected = image.allocated_bytes or 0 if sync == "top" else image.chain_bytes
        copy = DiskCopy(
            index=len(self.copies),
            key=pair.device.key,
            source_path=here,
            path=there,
            source_identity="" if a.kind == "block" or a.link else a.identity,
            format=image.format,
            virtual_bytes=image.virtual_bytes,
            expected_bytes=expected,
            writable=not pair.device.read_only,
            direct=pair.device.direct,
            sync=sync,
            options=image.create_options(backing=backing),
            mode=a.mode if a.kind == "file" else "600",
            makes=makes,
            directories=b.missing if makes else (),
        )
        self.copies.append(copy)
        what = "the top of its chain" if sync == "top" else "its whole chain" if image.backing else image.format
        text = f"{here} is copied to {there} ({what}, {about_size(image.virtual_bytes)}, about {about_size(expected)} of it)"
        self.fine(text, seen.destination)

    def _place(self, pair: Pair, a: FileFacts, b: FileFacts) -> bool | None:
        """Say whether a file is made (True) or a block device is used (False); None: neither can be."""
        seen, there, image = self.seen, pair.paths[1], pair.device.image
        assert image is not None
        where = seen.destination
        if b.kind == "absent":
            if a.kind == "block" and pair.here.option.name == "blockdev":
                text = f"{there} is not on {where}; the command line wants a block device there"
                self.fail(text, "make the volume first, of the same size and blank", where)
            elif there.startswith("/dev/"):
                self.fail(f"{there} is not on {where}", "make the volume first, of the same size and blank", where)
            elif not b.above_writable:
                text = f"{there} cannot be made on {where}: its directory cannot be written"
                self.fail(
                    text, "give the SSH user of that host access to it, or map it with the host's path_map", where
                )
            else:
                return True
            return None
        if b.kind == "block":
            if image.format != "raw" or pair.device.read_only:
                self.fail(f"{there}: only a raw disk is copied to a block device", "move it away", where)
            elif b.size != image.virtual_bytes:
                text = f"{there} on {where} has {b.size} bytes, the disk {image.virtual_bytes}"
                self.fail(text, "make it exactly as large", where)
            elif not b.blank:
                text = f"{there} on {where} holds data, and nothing is written over"
                self.fail(text, "if it is to be lost: blkdiscard, or wipe its beginning and its end", where)
            elif not b.writable:
                self.fail(f"{there} on {where} cannot be written", "give the SSH user of that host access to it", where)
            else:
                return False
            return None
        text = f"{there} is on {where} already, and nothing is written over"
        hint = (
            "is it an older copy? move it away or remove it. Is it shared storage? then leave --copy-storage out. "
            "Else map the path with the host's path_map"
        )
        self.fail(text, hint, where)
        return None

    # -- room -----------------------------------------------------------------------------------------------------------

    def room(self) -> None:
        """Compare what is to be copied with what is free, for each file system over there."""
        seen = self.seen
        systems: dict[str, list[DiskCopy]] = {}
        for copy in self.copies:
            if copy.makes:
                systems.setdefault(seen.destination_files[copy.path].file_system_id, []).append(copy)
        for copies in systems.values():
            free = seen.destination_files[copies[0].path].free
            need = sum(copy.expected_bytes + ROOM_BESIDE for copy in copies)
            whole = sum(copy.virtual_bytes + ROOM_BESIDE for copy in copies)
            place = posixpath.dirname(copies[0].path)
            text = f"{about_size(need)} needed for disks in {place} on {seen.destination}, {about_size(free)} free"
            if free < need:
                self.fail(f"not enough room: {text}", "free some there, or map the path elsewhere", seen.destination)
            elif free < whole:
                text = (
                    f"{place} on {seen.destination} is too small for the disks once they are full ({about_size(whole)})"
                )
                self.warn(text, "they are sparse now: keep an eye on it", seen.destination)
            else:
                self.fine(f"room: {text}", seen.destination)


def _spelt_out(pair: Pair, here: Sequence[Disk]) -> bool:
    """Tell whether the image below is named in the command line (``backing=``), not only in the image."""
    after = here[here.index(pair.here) + 1 :]
    return bool(after) and after[0].role == "backing"


def _named_below(pair: Pair, map_path: Callable[[str], str]) -> str:
    """Return how the new image names the one below: as the old one does, where that counts from the image's place."""
    image = pair.device.image
    assert image is not None
    named = image.backing_name or image.backing_filename or ""
    return map_path(named) if named.startswith("/") else named
