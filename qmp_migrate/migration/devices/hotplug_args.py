"""What was plugged into a running guest, as the options that build it again. Pure.

A device that was plugged in is described by its properties: those that differ from what they are by themselves are written
down, as JSON, with its bus and its place on it. Only drivers are taken whose every property is known to be told by QEMU;
where anything behind a device cannot be told with certainty (an open file that was handed over, a key, a peer that is named
nowhere), the answer is `Cannot`, with the reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from qmp_migrate.qemu.devices import Device, Devices, NetBackend, Node
from qmp_migrate.vm.commandline.command_line import Option

_VIRTIO: Final = "(blk|net|scsi|rng|balloon|keyboard|mouse|tablet)"
_TAKEN: Final = re.compile(
    rf"virtio-{_VIRTIO}-pci(-transitional|-non-transitional)?|scsi-(hd|cd)|usb-(tablet|kbd|mouse)|qemu-xhci"
    r"|e1000|e1000e|igb|rtl8139|vmxnet3|pci-bridge|pcie-pci-bridge|pc-dimm|.+-cpu"
)
"""Drivers that are built again. Each has nothing behind it but a disk, a network back end, an object, or nothing."""

_DEFAULT_ROM: Final = re.compile(r"(efi|pxe)-[a-z0-9-]+\.rom")
"""Boot ROMs that QEMU takes by itself; naming one would make it a foreign ROM."""

_HAVE_ROM: Final = re.compile(r"virtio-net-.*|e1000e?|rtl8139|vmxnet3")
_NOT_WRITTEN: Final = frozenset({"romsize", "romfile", "addr", "size"})
_OBJECT_DEFAULTS: Final[Mapping[str, Any]] = {
    "aio-max-batch": 0,
    "align": 0,
    "discard-data": False,
    "dump": True,
    "host-nodes": [],
    "hugetlb": False,
    "hugetlbsize": 0,
    "merge": True,
    "offset": 0,
    "pmem": False,
    "policy": "default",
    "poll-grow": 0,
    "poll-max-ns": 32768,
    "poll-shrink": 0,
    "poll-weight": 0,
    "prealloc": False,
    "readonly": False,
    "reserve": True,
    "rom": "auto",
    "share": False,
    "thread-pool-max": 64,
    "thread-pool-min": 0,
}
"""What the objects' properties are by themselves. Those that are not listed here are written down or cannot be set."""

_OBJECT_KEYS: Final = {
    "memory-backend-ram": ("size",),
    "memory-backend-file": ("size", "mem-path"),
    "memory-backend-memfd": ("size",),
    "iothread": (),
    "rng-random": ("filename",),
    "rng-builtin": (),
}
_PROTOCOLS: Final = frozenset({"file", "host_device", "host_cdrom"})
_FORMATS: Final = frozenset({"raw", "qcow2"})


class Cannot(Exception):
    """It cannot be built again with certainty; the text says why."""


def address(devfn: int) -> str:
    """Return a PCI address as QEMU takes it (``0x5``, ``0x5.0x1``)."""
    return f"0x{devfn >> 3:x}" + (f".0x{devfn & 7:x}" if devfn & 7 else "")


def option(name: str, properties: Mapping[str, Any]) -> Option:
    """Return an option with its properties as JSON."""
    return Option(f"-{name}", json.dumps(properties, separators=(",", ":")))


def device(found: Device, devices: Devices) -> Option:
    """Return the ``-device`` of a device that was plugged in.

    Raises:
        Cannot: See the module.
    """
    if not _TAKEN.fullmatch(found.driver):
        raise Cannot(f"a {found.driver} cannot be set up again with certainty")
    made: dict[str, Any] = {"driver": found.driver}
    if found.id is not None:
        made["id"] = found.id
    if found.driver.endswith("-cpu"):
        return option("device", made | _cpu_place(found, devices))
    if found.bus:
        made["bus"] = found.bus
    for name, prop in found.properties.items():
        if name == "addr" and isinstance(prop.value, int):
            made["addr"] = address(prop.value) if found.bus else prop.value
        elif name == "romfile":
            made |= _rom(found.driver, str(prop.value or ""))
        elif prop.kind.startswith("link<") and str(prop.value).startswith(f"{found.path}/"):
            continue  # what it made for itself, as a random number generator does
        elif name not in _NOT_WRITTEN and _is_wish(name, prop.value, prop.default, prop.kind, devices):
            made[name] = _value(name, prop.value, prop.kind)
    return option("device", made)


def _is_wish(name: str, value: Any, default: Any, kind: str, devices: Devices) -> bool:
    if value is None or value in ("", []) or (name == "bootindex" and value == -1):
        return False
    if name == "failover_pair_id":
        raise Cannot("it is the standby of another device")
    if default is None:
        return True
    return bool(value != default) and not any((name, text) in devices.machine_properties for text in _texts(value))


def _texts(value: Any) -> tuple[str, ...]:
    """Return how a machine type may write a value."""
    if isinstance(value, bool):
        return ("true", "on") if value else ("false", "off")
    return (str(value),)


def _value(name: str, value: Any, kind: str) -> Any:
    if kind.startswith("link<"):
        if not str(value).startswith("/objects/"):
            raise Cannot(f"its {name} is {value}, which no option can name")
        return str(value).removeprefix("/objects/")
    if isinstance(value, list | dict):
        raise Cannot(f"its {name} is set to more than one value")
    return value


def _rom(driver: str, name: str) -> dict[str, str]:
    if _DEFAULT_ROM.fullmatch(name) or (not name and not _HAVE_ROM.fullmatch(driver)):
        return {}
    return {"romfile": name}


def _cpu_place(found: Device, devices: Devices) -> dict[str, int]:
    for cpu in devices.cpus:
        if cpu.get("qom-path") == found.path:
            return {name: place for name, place in cpu["props"].items() if name != "node-id"}
    raise Cannot("QEMU does not say which vCPU it is")


def objects_of(found: Device) -> list[str]:
    """Return the ids of the objects that a device stands on."""
    values = [str(prop.value) for prop in found.properties.values() if prop.kind.startswith("link<")]
    return [value.removeprefix("/objects/") for value in values if value.startswith("/objects/")]


def host_object(name: str, devices: Devices) -> Option:
    """Return the ``-object`` of an object that was made while the guest ran.

    Raises:
        Cannot: Of a kind that is not known, or set up in a way that QEMU does not tell.
    """
    kind = devices.objects.get(name, "")
    keys = _OBJECT_KEYS.get(kind)
    if keys is None:
        raise Cannot(
            f"its object {name} is a {kind or 'thing that is gone'}, which cannot be set up again with certainty"
        )
    settings = devices.settings.get(name, {})
    made: dict[str, Any] = {"qom-type": kind, "id": name}
    made |= {key: settings[key] for key in keys if key in settings}
    for key, default in _OBJECT_DEFAULTS.items():
        if key in settings and settings[key] != default:
            if key in {"readonly", "rom"}:
                raise Cannot(f"its object {name} is read-only memory")
            made[key] = settings[key]
    return option("object", made)


# -- network ----------------------------------------------------------------------------------------------------------


def backend(name: str, devices: Devices, *, vhost: bool) -> Option:
    """Return the ``-netdev`` of a network back end that was made while the guest ran.

    Args:
        name: Its id.
        devices: The guest's.
        vhost: The kernel serves it (tap only).

    Raises:
        Cannot: It is of a kind, or was made in a way, that QEMU does not tell.
    """
    found = devices.backends.get(name)
    if found is None:
        raise Cannot(f"its network back end {name} is gone")
    made: dict[str, Any] = {"type": found.kind, "id": name, **_network(name, found)}
    if found.kind == "user" and devices.forwards.get(name):
        made["hostfwd"] = [{"str": rule} for rule in devices.forwards[name]]
    if found.kind == "tap" and vhost:
        made["vhost"] = True
    return option("netdev", made)


def _network(name: str, found: NetBackend) -> dict[str, Any]:
    given = dict(part.partition("=")[::2] for part in found.text.split(","))
    match found.kind:
        case "user":
            if given.get("net") != "10.0.2.0":
                raise Cannot(
                    f"its user-mode network {name} is {given.get('net')}, and QEMU does not tell the rest of it"
                )
            return {"restrict": True} if given.get("restrict") == "on" else {}
        case "tap" if "ifname" in given:
            made: dict[str, Any] = {"ifname": given["ifname"], "script": "no", "downscript": "no"}
            for script in ("script", "downscript"):
                if given.get(script):
                    made[script] = given[script]
            return made | ({"queues": found.queues} if found.queues > 1 else {})
        case "bridge" if given.get("br"):
            return {"br": given["br"], **({"helper": given["helper"]} if given.get("helper") else {})}
    raise Cannot(f"its network back end {name} ({found.kind}: {found.text[:60]}) cannot be set up again with certainty")


# -- disks ------------------------------------------------------------------------------------------------------------


def block(top: str, devices: Devices, *, known: frozenset[str], name: str | None = None) -> list[Option]:
    """Return the ``-blockdev`` options of a block node that was opened while the guest ran, what it stands on first.

    Args:
        top: The node.
        devices: The guest's.
        known: Nodes that the command line has already.
        name: Another name for the node; needed for one that QEMU named.

    Raises:
        Cannot: It is of a kind, or was opened in a way, that QEMU does not tell.
    """
    made: list[Option] = []
    made.append(option("blockdev", _node(top, devices, known, made, name=name or top)))
    return made


def _node(
    node: str, devices: Devices, known: frozenset[str], before: list[Option], *, name: str | None
) -> dict[str, Any]:
    found = devices.nodes.get(node)
    if found is None:
        raise Cannot(f"its block node {node} is gone")
    _check(found)
    made: dict[str, Any] = {"driver": found.driver}
    if name is not None:
        made |= {"node-name": name, "read-only": found.read_only}
    made["cache"] = {"direct": found.direct, "no-flush": found.no_flush}
    if found.detect_zeroes != "off":
        made["detect-zeroes"] = found.detect_zeroes
    if found.driver in _PROTOCOLS:
        return made | {"filename": found.filename}
    assert found.children is not None
    for role, child in found.children.items():
        if child.startswith("#"):
            if role == "file":
                below = devices.nodes.get(child)
                if found.driver == "raw" and below is not None and below.bytes != found.bytes:
                    raise Cannot(f"its block node {node} shows a part of {found.filename} only")
                made["file"] = _node(child, devices, known, before, name=None)
            continue  # the image itself names its backing file
        if child not in known:
            before.append(option("blockdev", _node(child, devices, known, before, name=child)))
        made[role] = child
    return made


def _check(node: Node) -> None:
    what = f"its block node {node.name} ({node.driver})"
    if node.encrypted:
        raise Cannot(f"{what} is encrypted, and a key cannot be read out of QEMU")
    if node.limited:
        raise Cannot(f"{what} has I/O limits")
    if node.driver not in _PROTOCOLS | _FORMATS or not node.filename.startswith("/"):
        raise Cannot(f"{what} cannot be opened again with certainty")
    if node.driver in _FORMATS and node.children is None:
        raise Cannot(f"QEMU does not tell what {what.removeprefix('its ')} stands on")
    if node.driver in _FORMATS and "file" not in (node.children or {}):
        raise Cannot(f"{what} stands on no file")
    if node.driver == "qcow2" and set(node.children or {}) - {"file", "backing"}:
        raise Cannot(f"{what} keeps its data in another file")
