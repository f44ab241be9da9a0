"""Where a command line names files of its host, and how to name others.

One walk serves both: `rewrite_paths` offers every path of an option to a function and puts its answer in place;
`required_paths` uses the same walk to list what a host must have before the guest can start there.

Beside the places known to hold paths, any property value that starts with ``/`` is taken for one, except where the
text is the guest's (``-append``, serial numbers, SMBIOS strings) or a path on another machine (``ssh``, ``nfs``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from qmp_migrate.vm.commandline import properties
from qmp_migrate.vm.commandline.chardevs import OldNotation
from qmp_migrate.vm.commandline.command_line import CommandLine, Option
from qmp_migrate.vm.commandline.disks import disks
from qmp_migrate.vm.commandline.filenames import rewrite_filename
from qmp_migrate.vm.commandline.option_table import CHARACTER_DEVICES, IMPLIED_KEY, TAKES_JSON
from qmp_migrate.vm.commandline.properties import Properties

PathKind: TypeAlias = Literal["disk", "kernel", "initrd", "firmware", "other", "optional"]
"""What a path is for; ``optional``: QEMU makes it itself (listening sockets, logs, memory files) or can do without."""

Change: TypeAlias = Callable[[str, PathKind], str]

_IMAGES: Final[dict[str, PathKind]] = {
    **dict.fromkeys(("", "hda", "hdb", "hdc", "hdd", "cdrom", "fda", "fdb", "mtdblock", "sd"), "disk"),
    "pflash": "firmware",
}
_WHOLE: Final[dict[str, PathKind]] = {
    "kernel": "kernel",
    "initrd": "initrd",
    "bios": "firmware",
    "dtb": "other",
    "shim": "other",
    "mem-path": "optional",  # QEMU makes the file where it is absent
    "readconfig": "other",
    "chroot": "other",
    "pidfile": "optional",
    "D": "optional",
    "L": "optional",
    "dump-vmstate": "optional",
    "qtest-log": "optional",
}
_KIND_OF_KEY: Final[dict[tuple[str, str], PathKind]] = {
    ("machine", "kernel"): "kernel",
    ("machine", "initrd"): "initrd",
    ("machine", "firmware"): "firmware",
    ("option-rom", "romfile"): "firmware",
    ("device", "romfile"): "firmware",
    ("trace", "file"): "optional",
    ("netdev", "local.path"): "optional",
}
_SEARCHED: Final = frozenset({"bios", "romfile"})
"""Where a name without a slash is looked up in QEMU's own directories, so it is no path."""

_ONLY_KEYS: Final = {"smbios": frozenset({"file", "path"}), "fw_cfg": frozenset({"file"}), "name": frozenset[str]()}
"""Options whose other values are the guest's text."""

_TEXT_KEYS: Final = frozenset(
    {"append", "bootfile", "mount_tag", "name", "password", "product", "serial", "string", "tag", "value", "vendor"}
)
_RELATIVE_KEYS: Final = frozenset({"dir", "file", "filename", "logfile", "mem-path", "path"})
"""Keys whose value is a path also without a leading slash."""


@dataclass(frozen=True, slots=True)
class PathUse:
    """One file that a host must have for the guest to start there.

    Attributes:
        path: As it stands in the command line; a relative one counts from QEMU's working directory.
        kind: ``disk``, ``kernel``, ``initrd``, ``firmware`` or ``other`` (directories and peers' sockets too).
        writable: Whether QEMU writes to it.
        format: Image format of a disk (``raw``, ``qcow2``, …); ``None`` for what is no disk, or where QEMU guesses.
    """

    path: str
    kind: PathKind
    writable: bool
    format: str | None = None


def rewrite_paths(option: Option, change: Change) -> Option:
    """Return `option` with each path in it replaced by what `change` answers; all else keeps its spelling.

    Args:
        option: Any option.
        change: Gets a path and what it is for; returns the path to put there.

    Raises:
        UsageError: Its JSON cannot be read.
    """
    text = option.value
    if not text:
        return option
    name = option.name
    if name in _IMAGES:
        return option.with_value(rewrite_filename(text, lambda path: change(path, _IMAGES[name])))
    if name in _WHOLE:
        return option if name in _SEARCHED and "/" not in text else option.with_value(change(text, _WHOLE[name]))
    if name in CHARACTER_DEVICES:
        old = OldNotation.parse(text)
        if not old.path:
            return option
        made = old.scheme == "file" or (old.scheme == "unix" and old.listens)
        return option.with_value(str(old.with_path(change(old.path, "optional" if made else "other"))))
    if name == "set":
        key, equals, value = text.partition("=")
        return option.with_value(f"{key}{equals}{change(value, 'other')}") if value.startswith("/") else option
    if name not in IMPLIED_KEY:
        return option
    return _in_properties(option, text, change)


def _in_properties(option: Option, text: str, change: Change) -> Option:
    given = option.properties()
    visit = _in_block_node if option.name in {"drive", "blockdev"} else _in_property

    def each(key: str, value: str) -> str:
        return visit(option.name, key, value, given, change) if value else value

    rewritten = properties.rewrite(text, each, implied=IMPLIED_KEY[option.name], takes_json=option.name in TAKES_JSON)
    return option.with_value(rewritten)


def _in_block_node(name: str, key: str, value: str, given: Properties, change: Change) -> str:
    parent, _, leaf = key.rpartition(".")
    if leaf == "filename" or (name == "drive" and key == "file"):
        if name == "drive":
            return rewrite_filename(value, lambda path: change(path, "disk"))
        # A block node's file name is a path and nothing else, colons or not; a URL belongs to network drivers.
        return value if properties.is_url(value) else change(value, "disk")
    if leaf == "path":
        # Of a UNIX socket on this host (nbd, gluster); under ssh and nfs it is a path over there.
        local = "server" in parent.split(".") or given.get(f"{parent}.driver" if parent else "driver") == "nbd"
        return change(value, "other") if local else value
    return change(value, "other") if value.startswith("/") and leaf in {"device", "dir", "socket"} else value


def _in_property(name: str, key: str, value: str, given: Properties, change: Change) -> str:
    leaf = key.rpartition(".")[2]
    only = _ONLY_KEYS.get(name)
    if (only is not None and key not in only) or leaf in _TEXT_KEYS:
        return value
    if name == "acpitable" and key in {"file", "data"}:
        return ":".join(change(path, "other") for path in value.split(":"))
    if value.startswith("unix:/") and name in {"vnc", "display"}:
        return "unix:" + change(value.removeprefix("unix:"), "optional")
    if not value.startswith("/") and (leaf not in _RELATIVE_KEYS or name in {"device", "global"}):
        return value
    if (leaf in _SEARCHED and "/" not in value) or (leaf == "path" and given.flag("abstract", "addr.abstract")):
        return value  # looked up by QEMU; a name in the kernel, not in the file system
    return change(value, _kind(name, key, given))


def _kind(name: str, key: str, given: Properties) -> PathKind:
    if (name, key) in _KIND_OF_KEY:
        return _KIND_OF_KEY[name, key]
    if key in {"logfile", "mem-path"} or given.get("qom-type") == "filter-dump":
        return "optional"
    if name == "chardev":
        # With reconnect= QEMU starts without the peer and goes on trying.
        retries = (given.get("reconnect", "reconnect-ms") or "0") != "0"
        made = given.get("backend") == "file" or given.flag("server") or retries
        return "optional" if made else "other"
    if name in {"netdev", "nic", "net"} and key.endswith("path"):
        return "optional" if given.flag("server") else "other"
    if name in {"spice", "vnc", "display"} and key in {"addr", "vnc"}:
        return "optional"
    return "other"


def required_paths(command: CommandLine) -> list[PathUse]:
    """List what a host must have before this command line can start there, each path once.

    Not listed: what QEMU makes itself (listening sockets, logs, the pid file), network disks, firmware that is named
    without a slash (QEMU finds it in its own directories), and backing files that only the image itself knows of.

    Raises:
        UsageError: An option's JSON cannot be read.
    """
    uses: dict[str, PathUse] = {}

    def add(use: PathUse) -> None:
        known = uses.get(use.path)
        if known is None or (use.writable and not known.writable):
            uses[use.path] = use

    for disk in disks(command):
        if disk.path is not None:
            writable = disk.writable and not disk.temporary
            add(PathUse(disk.path, "firmware" if disk.role == "pflash" else "disk", writable, disk.format))

    def collect(path: str, kind: PathKind) -> str:
        if kind != "optional" and path not in uses:
            add(PathUse(path, kind, writable=False))
        return path

    for option in command.options:
        rewrite_paths(option, collect)
    return list(uses.values())
