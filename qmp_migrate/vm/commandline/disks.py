"""The disks of a command line: which image, in which format, written to or not.

``-drive``, the short forms (``-hda``, ``-cdrom``, ``-pflash``, a bare image) and block graphs built with ``-blockdev``
come out the same way. A node that another node stands on is not a disk of its own; its file belongs to the top node.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from qmp_migrate.vm.commandline.command_line import CommandLine, Option
from qmp_migrate.vm.commandline.filenames import local_path
from qmp_migrate.vm.commandline.properties import Properties

_SHORT: Final = {
    "": "disk",
    "hda": "disk",
    "hdb": "disk",
    "hdc": "disk",
    "hdd": "disk",
    "cdrom": "cdrom",
    "fda": "floppy",
    "fdb": "floppy",
    "mtdblock": "mtd",
    "sd": "sd",
    "pflash": "pflash",
}
_PROTOCOLS: Final = frozenset({"file", "host_device", "host_cdrom"})
_CHILDREN: Final = frozenset({"file", "data-file", "backing", "image", "raw", "test"})
_FORMATS: Final = frozenset(
    {"raw", "qcow2", "qcow", "qed", "vmdk", "vdi", "vhdx", "vpc", "luks", "parallels", "dmg", "cloop", "bochs"}
)
_DEEPEST: Final = 64
"""A chain of images deeper than this refers to itself; that is QEMU's to refuse."""


@dataclass(frozen=True, slots=True)
class Disk:
    """One disk, or one image below it.

    Attributes:
        option: The option it comes from.
        path: Its file or block device on the host; ``None`` for a network disk or an empty drive.
        filename: What QEMU is told to open, as it is written (a path, ``nbd://…``); ``None`` for an empty drive or a
            network disk that is given in single properties.
        format: ``raw``, ``qcow2``, …; ``None`` where QEMU is left to guess.
        writable: Whether the guest may write to it.
        id: Node name (``-blockdev``) or drive id; ``None`` where QEMU makes one up.
        role: ``disk``, ``cdrom``, ``floppy``, ``sd``, ``mtd``, ``pflash``, or ``backing`` for an image below another.
        temporary: Whether writes go to a temporary file (``snapshot=on``).
        direct: Whether the host's page cache is passed by (``cache=none``), as storage shared by hosts needs.
    """

    option: Option
    path: str | None
    filename: str | None
    format: str | None
    writable: bool
    id: str | None
    role: str
    temporary: bool = False
    direct: bool = False


def disks(command: CommandLine) -> tuple[Disk, ...]:
    """Return the disks: first those of ``-drive`` and the short forms, then those of ``-blockdev``, each in order.

    Raises:
        UsageError: An option's JSON cannot be read.
    """
    found = []
    for option in command.options:
        if option.name == "drive":
            found.append(_drive(option))
        elif option.name in _SHORT and option.value:
            role = _SHORT[option.name]
            # Only for flash does QEMU fix the format itself; for the others it guesses.
            image_format = "raw" if role == "pflash" else None
            path = local_path(option.value)
            found.append(Disk(option, path, option.value, image_format, role != "cdrom", None, role))
    return (*found, *_block_graph(command))


def _drive(option: Option) -> Disk:
    given = option.properties()
    filename = given.get("file", "file.filename", "filename")
    cdrom = given.get("media") == "cdrom" or given.get("if") == "cdrom"
    interface = given.get("if") or "disk"
    return Disk(
        option,
        local_path(filename) if filename else None,
        filename or None,
        given.get("format", "driver"),
        not cdrom and not given.flag("readonly", "read-only"),
        given.get("id", "node-name"),
        "cdrom" if cdrom else interface if interface in {"pflash", "floppy", "sd", "mtd"} else "disk",
        temporary=bool(given.flag("snapshot")),
        direct=given.get("cache") in {"none", "directsync"} or bool(given.flag("cache.direct")),
    )


def _block_graph(command: CommandLine) -> list[Disk]:
    graph: dict[str, tuple[Option, Properties]] = {}
    for option in command.named("blockdev"):
        given = option.properties()
        graph[given.get("node-name") or f"#{len(graph)}"] = (option, given)
    referenced = {
        value
        for _, given in graph.values()
        for key, value in given.items
        if key.rpartition(".")[2] in _CHILDREN and value in graph
    }
    machine = [item for option in command.named("machine") for item in option.properties().items]
    flash = {value for key, value in machine if key.startswith("pflash")}
    devices = [option.properties() for option in command.named("device")]
    cdroms = {given.get("drive") for given in devices if given.get("driver") in {"ide-cd", "scsi-cd"}}
    found: list[Disk] = []
    for name, (option, given) in graph.items():
        if name not in referenced:
            role = "pflash" if name in flash else "cdrom" if name in cdroms else "disk"
            writable = role != "cdrom" and not given.flag("read-only")
            found += _descend(_Node(option, given), graph, role=role, writable=writable, depth=0)
    return found


@dataclass(frozen=True, slots=True)
class _Node:
    """A block node: an option's properties, or those of them under a prefix (``file.`` for a nested node)."""

    option: Option
    given: Properties
    prefix: str = ""

    def get(self, key: str) -> str | None:
        return self.given.get(self.prefix + key)

    def child(self, key: str, graph: Mapping[str, tuple[Option, Properties]]) -> _Node | None:
        reference = self.get(key)
        if reference is not None:
            return _Node(*graph[reference]) if reference in graph else None
        nested = f"{self.prefix}{key}."
        inside = any(name.startswith(nested) for name, _ in self.given.items)
        return _Node(self.option, self.given, nested) if inside else None


def _descend(
    top: _Node, graph: Mapping[str, tuple[Option, Properties]], *, role: str, writable: bool, depth: int
) -> list[Disk]:
    """Follow a node down to its file; the images it stands on (``backing``) are disks that are only read."""
    image_format: str | None = None
    below: list[Disk] = []
    node: _Node | None = top
    bottom = top
    while node is not None and depth < _DEEPEST:
        bottom, depth = node, depth + 1
        # The first driver that is a format names it; throttle, copy-on-read and the like only pass on.
        if image_format is None and bottom.get("driver") in _FORMATS:
            image_format = bottom.get("driver")
        backing, data = bottom.child("backing", graph), bottom.child("data-file", graph)
        if backing is not None:
            below += _descend(backing, graph, role="backing", writable=False, depth=depth)
        if data is not None:
            below += _descend(data, graph, role=role, writable=writable, depth=depth)
        node = bottom.child("file", graph) or bottom.child("image", graph)
    filename = bottom.get("filename")
    path = filename if bottom.get("driver") in _PROTOCOLS else None
    direct = bool(bottom.given.flag(f"{bottom.prefix}cache.direct"))
    name = top.get("node-name")
    own = Disk(top.option, path, filename, image_format or "raw", writable, name, role, direct=direct)
    return [own, *below]
