"""Whether a QEMU may be started with a command line: what is not known to be harmless is refused.

What a guest is made of is the controller's to say; what the guest's QEMU may touch of the host is its owner's. So every
path must be below RUN_DIR, an image directory or a readable one, and nothing may be named that runs programs, opens devices
of the host, or gives a monitor to somebody else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final

from hostagent.relay.argument_rules import KEPT, Refused, path_below
from hostagent.relay.settings import Allowed
from qmp_migrate.errors import QmpMigrateError
from qmp_migrate.vm.commandline.command_line import CommandLine, Option
from qmp_migrate.vm.commandline.properties import read

WORDS_LIMIT: Final = 4096
PLAIN: Final = frozenset(
    [
        "name",
        "uuid",
        "accel",
        "cpu",
        "m",
        "smp",
        "nodefaults",
        "no-user-config",
        "S",
        "no-reboot",
        "no-shutdown",
        "rtc",
        "boot",
        "k",
        "vga",
        "numa",
        "msg",
        "overcommit",
        "enable-kvm",
        "no-acpi",
        "no-hpet",
        "watchdog-action",
        "incoming",
    ]
)
"""Options whose values are never files, as long as they hold no slash."""
READS: Final = frozenset({"kernel", "initrd", "dtb", "bios"})
"""Not ``pflash``: it takes no format, and QEMU guesses it from what the guest has written."""
FIRMWARE: Final = frozenset({"qboot.rom", "bios.bin", "bios-256k.bin"})
"""What QEMU brings and finds by its name alone. It looks in the guest's directory first, where no such file is written."""
MACHINE: Final = frozenset(
    [
        "type",
        "accel",
        "usb",
        "vmport",
        "kernel_irqchip",
        "kernel-irqchip",
        "smm",
        "pflash0",
        "pflash1",
        "memory-backend",
        "hpet",
        "nvdimm",
        "graphics",
        "mem-merge",
        "dump-guest-core",
        "i8042",
        "pit",
        "sata",
        "smbus",
        "pic",
        "acpi",
        "gic-version",
        "its",
        "virtualization",
        "secure",
        "highmem",
        "confidential-guest-support",
        "smp.cpus",
        "smp.maxcpus",
        "smp.sockets",
        "smp.cores",
        "smp.threads",
        "smp.dies",
    ]
)
DRIVE: Final = frozenset(
    [
        "file",
        "id",
        "if",
        "format",
        "index",
        "media",
        "bus",
        "unit",
        "cache",
        "aio",
        "discard",
        "detect-zeroes",
        "readonly",
        "read-only",
        "werror",
        "rerror",
        "cache.direct",
        "cache.no-flush",
        "cache.writeback",
        "throttling.iops-total",
        "throttling.bps-total",
    ]
)
BLOCKDEV: Final = frozenset(
    [
        *("driver", "node-name", "filename", "file", "read-only", "auto-read-only", "discard", "detect-zeroes"),
        *("cache.direct", "cache.no-flush", "aio", "locking"),
    ]
)
CHARDEV: Final = frozenset(["id", "path", "server", "wait", "append", "logappend", "size", "nowait"])
DEVICES: Final = re.compile(
    r"virtio-(net|blk|scsi|balloon|rng|serial|gpu|vga|keyboard|mouse|tablet|mem|iommu)"
    r"(-(pci(-(non-)?transitional)?|device|ccw))?|pcie-root-port|"
    r"pcie-pci-bridge|pci-bridge|ioh3420|x3130-upstream|xio3130-downstream|pxb(-pcie)?|scsi-(hd|cd|disk)|ide-(hd|cd)|e1000e?|"
    r"rtl8139|(qemu|nec-usb)-xhci|usb-(ehci|tablet|kbd|mouse|hub|storage)|(pii|i)x?[0-9-]*usb-uhci|ich9-(ahci|usb-[a-z0-9-]+)|isa-serial|"
    r"pci-serial|pvpanic(-pci)?|i6300esb|nvme(-ns)?|megasas(-gen2)?|lsi[0-9a-z]*|VGA|bochs-display|qxl(-vga)?|cirrus-vga|ramfb|"
    r"vmgenid|virtserialport|virtconsole|virtserialbus|pc-dimm|"
    r"[A-Za-z0-9_.-]+-(x86_64|arm)-cpu"
)
NODE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,30}")
VNC: Final = re.compile(r"none|(127\.0\.0\.1|localhost|\[::1\]):[0-9]+(,password=on|,to=[0-9]+)*")
FILES: Final = frozenset({"romfile", "evdev"})
"""Properties of devices that name a file without a slash, too: beside the guest's monitor, or in QEMU's own directories."""
GLOBAL: Final = re.compile(
    r"(?!migration\.)[A-Za-z0-9_-]+\.(?!romfile=|evdev=)[A-Za-z0-9_.-]+=[A-Za-z0-9_.:-]*|"
    r"driver=cfi\.pflash01,property=secure,value=(on|off)"
)
USER_NET: Final = frozenset(
    [
        "id",
        "net",
        "host",
        "restrict",
        "hostname",
        "dns",
        "domainname",
        "hostfwd",
        "ipv4",
        "ipv6",
        "dhcpstart",
        "dnssearch",
    ]
)
TAP: Final = frozenset(["id", "ifname", "script", "downscript", "vhost", "queues", "br", "sndbuf"])
SOCKET_NET: Final = frozenset(["id", "connect", "listen", "mcast", "localaddr"])
OBJECTS: Final = {
    "iothread": "qom-type id poll-max-ns poll-grow poll-shrink aio-max-batch thread-pool-min thread-pool-max",
    "memory-backend-ram": "qom-type id size share prealloc merge dump policy host-nodes prealloc-threads reserve",
    "memory-backend-memfd": "qom-type id size share prealloc merge dump policy host-nodes hugetlb hugetlbsize seal reserve",
    "rng-random": "qom-type id filename",
    "rng-builtin": "qom-type id",
    "throttle-group": "qom-type id limits",
}
RANDOM: Final = frozenset({"/dev/urandom", "/dev/random"})


def check_command_line(words: Sequence[str], directory: str, allowed: Allowed) -> None:
    """Check a QEMU's command line.

    Args:
        words: All of it.
        directory: The guest's, which is where it runs.
        allowed: What the host's owner allows.

    Raises:
        Refused: Something in it is not allowed; the message says what.
    """
    if not words or words[0] not in allowed.qemus:
        raise Refused(f"{words[0] if words else ''!r} is none of the QEMUs that are allowed here")
    if len(words) > WORDS_LIMIT:
        raise Refused("a command line of more than 4,096 words")
    try:
        command = CommandLine.parse(words)
        if command.argv() != list(words):
            raise Refused("a command line that is written otherwise than qmp-migrate does")
        for option in command.options:
            _check(option, directory, allowed)
        _check_monitors(command)
        _check_block_graph(command, allowed)
    except QmpMigrateError as error:
        raise Refused(f"the command line cannot be read: {error}") from None


def _check(option: Option, directory: str, allowed: Allowed) -> None:
    name, value = option.name, option.value or ""
    refused = Refused(f"-{name} {value[:100]}: not allowed by the relay")
    own = (allowed.run_dir,)
    if name in PLAIN:
        if "/" in value or (name == "incoming" and value != "defer"):
            raise refused
    elif name == "append":
        return
    elif name == "global":
        if not GLOBAL.fullmatch(value):
            raise refused
    elif name in READS:
        # QEMU reads a list of files, with words for each, where the kernel is one for multiboot.
        if re.search(r"[,\s]", value):
            raise refused
        if not (name == "bios" and value in FIRMWARE):
            _path(value, allowed.readable, refused)
    elif name in {"display", "serial", "parallel", "monitor"}:
        to_chardev = name in {"serial", "parallel"} and re.fullmatch(r"chardev:[A-Za-z0-9_.-]+", value)
        if value not in {"none", "null"} and not to_chardev:
            raise refused
    elif name == "vnc":
        if not VNC.fullmatch(value):
            raise refused
    elif name == "smbios":
        if {"file", "path"} & {key for key, _ in _items(value)}:
            raise refused
    elif name in {"machine", "M"}:
        _keys(_items(value, "type"), MACHINE, refused)
        if "/" in value:
            raise refused
    elif name == "mon":
        items = _items(value, "chardev")
        _keys(items, frozenset({"chardev", "mode", "id", "pretty"}), refused)
        if dict(items).get("mode") != "control":
            raise refused  # the other one is for people, and runs programs
    elif name in CHECKED:
        CHECKED[name](value, directory, allowed, own, refused)
    else:
        raise refused


def _check_monitors(command: CommandLine) -> None:
    """Check that the only monitors are those that are named: by itself QEMU shows one for people on its screen."""
    for name in ("nodefaults", "no-user-config"):
        if not command.named(name):
            raise Refused(f"a command line without -{name}")
    if [option.value for option in command.named("display")] != ["none"]:
        raise Refused("a command line without -display none")


def _drive(value: str, _directory: str, allowed: Allowed, _own: tuple[str, ...], refused: Refused) -> None:
    items = _items(value)
    _keys(items, DRIVE, refused)
    given = dict(items)
    if "file" in given:
        # Without a format QEMU would guess it from what the guest has written.
        roots = _roots(given.get("format", ""), allowed, refused, reads=_is_on(given, "readonly", "read-only"))
        _path(given["file"], roots, refused)


def _blockdev(value: str, _directory: str, _allowed: Allowed, _own: tuple[str, ...], refused: Refused) -> None:
    items = _items(value, "driver", takes_json=True)
    _keys(items, BLOCKDEV, refused)
    given = dict(items)
    wanted = "filename" if given.get("driver") == "file" else "file"
    name = given.get("node-name", "")
    if given.get("driver", "") not in {"file", "raw", "qcow2"} or wanted not in given:
        raise refused
    if not NODE.fullmatch(name) or name in {"on", "off"}:
        raise refused
    if {"filename", "file"} - {wanted} & set(given):
        raise refused
    if given.get("auto-read-only", "off") != "off" or given.get("locking", "auto") != "auto":
        raise refused


def _check_block_graph(command: CommandLine, allowed: Allowed) -> None:
    """Check which file is opened as what: a guest that has written a header as raw must not have it read as qcow2.

    The header of a qcow2 image names other files. So an image is in a directory of raw or in one of qcow2 images, and each
    file node is below exactly one node of that format.
    """
    graph = [dict(_items(option.value or "", "driver", takes_json=True)) for option in command.named("blockdev")]
    files = {given["node-name"]: given for given in graph if given["driver"] == "file"}
    names = [given["node-name"] for given in graph]
    used: list[str] = []
    if len(set(names)) != len(names):
        raise Refused("-blockdev: a node name twice")
    for given in graph:
        if given["driver"] == "file":
            continue
        refused = Refused(f"-blockdev {given['node-name'][:60]}: not allowed by the relay")
        file = files.get(given["file"])
        if file is None:
            raise refused
        reads = _is_on(given, "read-only") and _is_on(file, "read-only")
        _path(file["filename"], _roots(given["driver"], allowed, refused, reads=reads), refused)
        used.append(given["file"])
    if sorted(used) != sorted(files):
        raise Refused("-blockdev: a file that is not below exactly one node of its format")
    for option in command.options:
        if option.name == "blockdev" or not option.has_properties:
            continue
        values = read(option.value or "", takes_json=option.name in {"device", "object", "netdev"}).items
        if any(text in files or text.startswith("#") for _, text in values):  # "#block123": a name that QEMU gives
            raise Refused(f"-{option.name}: a file node is used without its format")


def _roots(kind: str, allowed: Allowed, refused: Refused, *, reads: bool) -> tuple[str, ...]:
    roots = {"raw": allowed.images, "qcow2": allowed.qcow2_images}.get(kind)
    if roots is None:
        raise refused
    return (*roots, *allowed.readable) if reads else roots


def _device(value: str, _directory: str, _allowed: Allowed, _own: tuple[str, ...], refused: Refused) -> None:
    items = _items(value, "driver", takes_json=True)
    # As QEMU will read them: JSON can write a slash without one.
    if any("/" in key + text for key, text in items) or not DEVICES.fullmatch(dict(items).get("driver", "")):
        raise refused
    if any(key.rpartition(".")[2] in FILES and text for key, text in items):
        raise refused
    _keys(items, None, refused)


def _netdev(value: str, _directory: str, _allowed: Allowed, _own: tuple[str, ...], refused: Refused) -> None:
    items = _items(value, "type", takes_json=True)
    given = dict(items)
    kind = given.get("type", "")
    known = {"user": USER_NET, "tap": TAP, "bridge": frozenset({"id", "br"}), "socket": SOCKET_NET}.get(kind)
    if known is None:
        raise refused
    _keys([item for item in items if item[0] != "type"], known, refused)
    if kind == "tap":
        for key in ("script", "downscript"):
            if given.get(key) != "no":
                raise refused
    if any(key == "hostfwd" and not re.match(r"(tcp|udp)?:", text) for key, text in items):
        raise refused
    slashes = [text for key, text in items if "/" in text and not (kind == "user" and key in {"net", "dnssearch"})]
    if slashes:
        raise refused


def _chardev(value: str, directory: str, _allowed: Allowed, _own: tuple[str, ...], refused: Refused) -> None:
    items = _items(value, "backend")
    given = dict(items)
    if given.get("backend", "") not in {"socket", "file", "null", "ringbuf"}:
        raise refused
    _keys([item for item in items if item[0] != "backend"], CHARDEV, refused)
    if "path" in given:
        _path(given["path"], (directory,), refused)
        if given["path"].rpartition("/")[2].startswith(KEPT):
            raise refused
    elif given["backend"] in {"socket", "file"}:
        raise refused
    if given["backend"] == "socket" and given.get("server") != "on":
        raise refused  # a client: what the guest says would be heard by a monitor, ours or its own QEMU's second one


def _object(value: str, _directory: str, _allowed: Allowed, _own: tuple[str, ...], refused: Refused) -> None:
    items = _items(value, "qom-type", takes_json=True)
    given = dict(items)
    known = OBJECTS.get(given.get("qom-type", ""))
    if known is None:
        raise refused
    _keys([(key.partition(".")[0], text) for key, text in items], frozenset(known.split()), refused)
    if given["qom-type"] == "rng-random" and given.get("filename") not in RANDOM:
        raise refused
    if any("/" in text for key, text in items if key != "filename"):
        raise refused


def _fw_cfg(value: str, _directory: str, allowed: Allowed, _own: tuple[str, ...], refused: Refused) -> None:
    items = _items(value, "name")
    _keys(items, frozenset({"name", "string", "file"}), refused)
    for key, text in items:
        if key == "file":
            _path(text, allowed.readable, refused)


Rule = Callable[[str, str, Allowed, "tuple[str, ...]", Refused], None]
CHECKED: Final[dict[str, Rule]] = {
    "drive": _drive,
    "blockdev": _blockdev,
    "device": _device,
    "netdev": _netdev,
    "chardev": _chardev,
    "object": _object,
    "fw_cfg": _fw_cfg,
}


def _items(value: str, implied: str = "", *, takes_json: bool = False) -> list[tuple[str, str]]:
    if takes_json and value[:1].isspace():
        raise Refused(f"{value[:60]!r}: QEMU would not take it for JSON")
    if not (takes_json and value.startswith("{")):
        _check_segments(value, implied)
    return list(read(value, implied=implied, takes_json=takes_json).items)


def _check_segments(value: str, implied: str) -> None:
    """Refuse what QEMU and we might cut apart differently: each part is ``key=value``, or the first one's key is implied.

    A key that stands alone means ``on`` to QEMU, or ``off`` where it begins with ``no``; and what is no key to it may be one
    to us.
    """
    for number, part in enumerate(value.replace(",,", "\0").split(",")):
        key, equals, _ = part.partition("=")
        if equals and re.fullmatch(r"[A-Za-z0-9_.-]+", key):
            continue
        if number == 0 and implied and re.fullmatch(r"[A-Za-z0-9_.-]+", part):
            continue
        raise Refused(f"{value[:60]!r}: a part of it is not key=value")


def _keys(items: list[tuple[str, str]], known: frozenset[str] | None, refused: Refused) -> None:
    keys = [key for key, _ in items]
    if known is not None and not set(keys) <= known:
        raise refused
    repeated = {key for key in keys if keys.count(key) > 1}
    if repeated - {"hostfwd", "dnssearch"}:
        raise refused  # which of the two counts is QEMU's to say, not ours to guess


def _is_on(given: dict[str, str], *keys: str) -> bool:
    return any(given.get(key) == "on" for key in keys)


def _path(path: str, roots: tuple[str, ...], refused: Refused) -> None:
    if not path_below(path, roots):
        raise refused
