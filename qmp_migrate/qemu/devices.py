"""The devices that a running QEMU has now, asked from itself: what was plugged in, what was taken out, what stands behind it.

A QEMU does not tell with which options a device was made, but it tells every property of it as it is now, and what the
property is without being set; a block node tells its driver, its file and its cache, a network back end a line of text. What
follows from that is judged in `qmp_migrate.migration.devices.diff`, which is pure; here is only asked.

Seen on QEMU 7.2, 10.0 and 11.1: a device with an id is a child of ``/machine/peripheral``; one without is
``/machine/peripheral-anon/device[N]``, N counted in the order in which they were made, never used twice. ``hotplugged``
is true only in the process in which it was plugged in: after a migration the same device was there from the start.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from qmp_migrate.errors import MonitorError, QmpCommandFailed
from qmp_migrate.qemu.monitor import Monitor

PERIPHERAL: Final = "/machine/peripheral"
ANONYMOUS: Final = "/machine/peripheral-anon"

PLACE: Final = ("addr", "channel", "scsi-id", "lun", "port", "nr")
"""Properties that say where on its bus a device is: PCI, SCSI, USB, serial ports of virtio."""

_CHILD: Final = re.compile(r"child<(.+)>")
_NETWORK: Final = re.compile(r".*?(?P<name>[^\s:]+): index=[0-9]+,type=(?P<kind>[^,]+),?(?P<text>.*)")


@dataclass(frozen=True, slots=True)
class Property:
    """One property of a device.

    Attributes:
        value: As it is now.
        default: As it is where nobody sets it; None where QEMU does not tell.
        kind: QEMU's name of its type.
    """

    value: Any
    default: Any
    kind: str


@dataclass(frozen=True, slots=True)
class Device:
    """One device.

    Attributes:
        path: Its place in QEMU's object tree.
        driver: For example ``virtio-blk-pci``.
        hotplugged: It was plugged in while this QEMU ran.
        bus: Name of the bus it is on; ``""`` where it is on none (memory, vCPUs).
        place: Where on that bus; only asked where it matters.
        properties: All that can be set; only asked of devices that were plugged in.
        vhost: The host's kernel serves it now; told of virtio devices whose driver the guest has started.
    """

    path: str
    driver: str
    hotplugged: bool = False
    bus: str = ""
    place: Mapping[str, Any] = field(default_factory=dict)
    properties: Mapping[str, Property] = field(default_factory=dict)
    vhost: bool = False

    @property
    def id(self) -> str | None:
        """Its id, None for one without."""
        return self.path.rpartition("/")[2] if self.path.startswith(f"{PERIPHERAL}/") else None


@dataclass(frozen=True, slots=True)
class Node:
    """One block node. `children`: role (``file``, ``backing``) to node name; None where QEMU does not tell."""

    name: str
    driver: str
    filename: str
    read_only: bool = False
    direct: bool = False
    no_flush: bool = False
    detect_zeroes: str = "off"
    bytes: int = 0
    encrypted: bool = False
    limited: bool = False
    children: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Drive:
    """What one disk device reads and writes.

    Attributes:
        name: Name of a ``-drive``; ``""`` for a device on a block node.
        device: The device's id, or its path, or a path below it; ``""``: none.
        removable: The medium can be changed.
        node: The node on top; None: no medium.
    """

    name: str
    device: str
    removable: bool
    node: str | None


@dataclass(frozen=True, slots=True)
class NetBackend:
    """One network back end; `text` is QEMU's own line about it, `queues` how often it is listed."""

    kind: str
    text: str
    queues: int = 1


@dataclass(frozen=True, slots=True)
class Devices:
    """All devices of a running QEMU.

    Attributes:
        devices: By path.
        nodes, drives, backends: See there; nodes and back ends by name.
        objects: Id to type; `settings` has the properties of those that may have to be made again.
        cpus: ``query-hotpluggable-cpus``.
        forwards: ``info usernet``: back end to the ports it forwards.
        machine_properties: What the machine type sets in devices: ``(property, value as text)``.
    """

    devices: Mapping[str, Device] = field(default_factory=dict)
    nodes: Mapping[str, Node] = field(default_factory=dict)
    drives: Sequence[Drive] = ()
    backends: Mapping[str, NetBackend] = field(default_factory=dict)
    objects: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    cpus: Sequence[Mapping[str, Any]] = ()
    forwards: Mapping[str, Sequence[str]] = field(default_factory=dict)
    machine_properties: frozenset[tuple[str, str]] = frozenset()


async def look(monitor: Monitor, *, named: frozenset[str], anonymous: int) -> Devices:
    """Ask for all devices; more of those that were plugged in, and of all where some that were there at the start are gone.

    Args:
        monitor: The guest's.
        named: Ids of the devices of its command line.
        anonymous: How many devices without an id its command line makes.

    Raises:
        MonitorError: It did not answer, or not as QEMU does.
    """
    try:
        return await _look(monitor, named, anonymous)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise MonitorError(
            f"{monitor.label} tells its devices otherwise than QEMU does: {error!r}",
            hint="is this socket really a QEMU monitor?",
            host=monitor.host,
        ) from error


async def _look(monitor: Monitor, named: frozenset[str], anonymous: int) -> Devices:
    peripheral, unnamed, objects, blocks, nodes, network, cpus = await asyncio.gather(
        _children(monitor, PERIPHERAL),
        _children(monitor, ANONYMOUS),
        _children(monitor, "/objects"),
        monitor.execute("query-block"),
        monitor.execute("query-named-block-nodes", {"flat": True}),
        monitor.execute("human-monitor-command", {"command-line": "info network"}),
        _or(monitor, [], "query-hotpluggable-cpus"),
    )
    listed = {f"{PERIPHERAL}/{name}": driver for name, driver in peripheral.items()}
    listed |= {f"{ANONYMOUS}/{name}": driver for name, driver in unnamed.items()}
    devices = dict(
        zip(listed, await asyncio.gather(*(_device(monitor, *item) for item in listed.items())), strict=True)
    )
    plugged = [device for device in devices.values() if device.hotplugged]
    found = Devices(
        devices,
        {node["node-name"]: _node(node) for node in nodes if node.get("node-name")},
        [_drive(block) for block in blocks],
        _backends(network),
        objects,
        cpus=cpus,
    )
    lost = named - {device.id for device in devices.values() if not device.hotplugged}
    if lost or sum(1 for path, d in devices.items() if path.startswith(ANONYMOUS) and not d.hotplugged) < anonymous:
        places = await asyncio.gather(*(_place(monitor, device) for device in devices.values()))
        found = replace(found, devices={device.path: device for device in places})
    media = any(drive.removable for drive in found.drives)
    if not plugged and not media:
        return found
    children = await _or(monitor, None, "x-debug-query-block-graph")
    found = replace(
        found, nodes={name: replace(node, children=_below(children, name)) for name, node in found.nodes.items()}
    )
    return await _in_full(monitor, found, plugged) if plugged else found


async def _in_full(monitor: Monitor, found: Devices, plugged: Sequence[Device]) -> Devices:
    forwards, own, *full = await asyncio.gather(
        _or(monitor, "", "human-monitor-command", {"command-line": "info usernet"}),
        _machine_properties(monitor),
        *(_properties(monitor, device) for device in plugged),
    )
    wanted = [name for name, kind in found.objects.items() if kind.startswith(("memory-backend-", "iothread", "rng-"))]
    settings = await asyncio.gather(*(_settings(monitor, f"/objects/{name}") for name in wanted))
    return replace(
        found,
        devices={**found.devices, **{device.path: device for device in full}},
        forwards=_forwards(forwards),
        settings=dict(zip(wanted, settings, strict=True)),
        machine_properties=own,
    )


async def _or(monitor: Monitor, otherwise: Any, command: str, arguments: Mapping[str, object] | None = None) -> Any:
    """Ask what not every QEMU or machine can tell."""
    try:
        return await monitor.execute(command, arguments)
    except QmpCommandFailed:
        return otherwise


async def _children(monitor: Monitor, path: str) -> dict[str, str]:
    found = {}
    for entry in await _or(monitor, [], "qom-list", {"path": path}):
        match = _CHILD.fullmatch(entry["type"])
        if match:
            found[str(entry["name"])] = match[1]
    return found


async def _get(monitor: Monitor, path: str, name: str) -> Any:
    return await _or(monitor, None, "qom-get", {"path": path, "property": name})


async def _device(monitor: Monitor, path: str, driver: str) -> Device:
    hotplugged, bus = await asyncio.gather(_get(monitor, path, "hotplugged"), _get(monitor, path, "parent_bus"))
    return Device(path, driver, hotplugged is True, str(bus or "").rpartition("/")[2])


async def _place(monitor: Monitor, device: Device) -> Device:
    has = {entry["name"] for entry in await _or(monitor, [], "qom-list", {"path": device.path})}
    names = [name for name in PLACE if name in has]
    values = await asyncio.gather(*(_get(monitor, device.path, name) for name in names))
    return replace(device, place={name: value for name, value in zip(names, values, strict=True) if value is not None})


async def _properties(monitor: Monitor, device: Device) -> Device:
    listed, known = await asyncio.gather(
        _or(monitor, [], "qom-list", {"path": device.path}),
        monitor.execute("device-list-properties", {"typename": device.driver}),
    )
    has = {entry["name"]: entry["type"] for entry in listed}
    # A vCPU has hundreds, all of which its model sets.
    asked = [] if device.driver.endswith("-cpu") else [entry for entry in known if _is_setting(entry, has)]
    values = await asyncio.gather(*(_get(monitor, device.path, entry["name"]) for entry in asked))
    status = None
    if device.driver.startswith("virtio-net-"):
        status = await _or(monitor, None, "x-query-virtio-status", {"path": f"{device.path}/virtio-backend"})
    return replace(
        device,
        vhost=bool(status and status.get("vhost-dev")),
        properties={
            entry["name"]: Property(value, entry.get("default-value"), has[entry["name"]])
            for entry, value in zip(asked, values, strict=True)
        },
    )


def _is_setting(entry: Mapping[str, Any], has: Mapping[str, str]) -> bool:
    name = entry["name"]
    return name in has and not has[name].startswith(("child<", "busnr")) and not name.startswith("x-")


async def _settings(monitor: Monitor, path: str) -> dict[str, Any]:
    entries = [
        entry["name"] for entry in await _or(monitor, [], "qom-list", {"path": path}) if "<" not in entry["type"]
    ]
    values = await asyncio.gather(*(_get(monitor, path, name) for name in entries))
    return {name: value for name, value in zip(entries, values, strict=True) if value is not None}


async def _machine_properties(monitor: Monitor) -> frozenset[tuple[str, str]]:
    """Return what the machine type sets in devices, so that it is not taken for a wish. Told since QEMU 9.1."""
    kind = str(await _get(monitor, "/machine", "type")).removesuffix("-machine")
    for machine in await _or(monitor, [], "query-machines", {"compat-props": True}):
        if machine["name"] == kind:
            return frozenset((prop["property"], prop["value"]) for prop in machine.get("compat-props", ()))
    return frozenset()


def _node(told: Mapping[str, Any]) -> Node:
    limits = ("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr")
    return Node(
        told["node-name"],
        told["drv"],
        told["file"],
        read_only=told["ro"],
        direct=told["cache"]["direct"],
        no_flush=told["cache"]["no-flush"],
        detect_zeroes=told["detect_zeroes"],
        bytes=told["image"]["virtual-size"],
        encrypted=bool(told["encrypted"] or told["image"].get("encrypted")),
        limited=any(told.get(name) for name in limits),
    )


def _drive(told: Mapping[str, Any]) -> Drive:
    inserted = told.get("inserted") or {}
    return Drive(told["device"], told.get("qdev", ""), told["removable"], inserted.get("node-name"))


def _below(graph: Mapping[str, Any] | None, name: str) -> dict[str, str] | None:
    if graph is None:
        return None
    names = {node["id"]: node["name"] for node in graph["nodes"] if node["type"] == "block-driver"}
    return {
        edge["name"]: names[edge["child"]]
        for edge in graph["edges"]
        if names.get(edge["parent"]) == name and edge["child"] in names
    }


def _backends(text: str) -> dict[str, NetBackend]:
    found: dict[str, NetBackend] = {}
    for line in text.splitlines():
        match = _NETWORK.fullmatch(line.rstrip())
        if match and match["kind"] != "nic":
            queues = found[match["name"]].queues + 1 if match["name"] in found else 1
            found[match["name"]] = NetBackend(match["kind"], match["text"], queues)
    return found


def _forwards(text: str) -> dict[str, list[str]]:
    """Read ``info usernet``: ``TCP[HOST_FORWARD]  13  127.0.0.1 2222  10.0.2.15  22  0  0`` under ``Hub -1 (NAME):``."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        if head := re.fullmatch(r".*\((?P<name>[^()]+)\):\s*", line):
            name = head["name"]
        elif rule := re.fullmatch(r"\s*(TCP|UDP)\[HOST_FORWARD\]\s+\S+\s+(\S+)\s+(\d+)\s+(\S+)\s+(\d+)\s.*", line):
            host = "" if rule[2] == "*" else rule[2]
            found.setdefault(name, []).append(f"{rule[1].lower()}:{host}:{rule[3]}-{rule[4]}:{rule[5]}")
    return found
