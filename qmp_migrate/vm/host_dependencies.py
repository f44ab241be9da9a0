"""What of a guest is tied to its host: what cannot go along at all, and what a person should know about.

Refused is only what is certain to fail or to harm. Whether QEMU itself can move a device is QEMU's to say
(``query-migrate``'s ``blocked-reasons``); here is what only the command line tells.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from qmp_migrate.errors import UsageError
from qmp_migrate.vm.commandline.chardevs import chardevs
from qmp_migrate.vm.commandline.command_line import CommandLine, Option
from qmp_migrate.vm.commandline.disks import disks
from qmp_migrate.vm.commandline.netdevs import netdevs
from qmp_migrate.vm.commandline.paths import rewrite_paths
from qmp_migrate.vm.commandline.properties import Properties

_REFUSED_DRIVERS: Final = (
    (re.compile(r"vfio-.*"), "a PCI or mediated device of this host cannot follow the guest; unplug it first"),
    (re.compile(r"usb-host"), "a USB device of this host cannot follow the guest; unplug it first"),
    (re.compile(r"virtio-9p(-.*)?"), "QEMU cannot move a guest with a 9p file system; use NFS inside the guest"),
)
_REFUSED_OPTIONS: Final = {
    "virtfs": "QEMU cannot move a guest with a 9p file system; use NFS inside the guest",
    "snapshot": "writes go to temporary files that only this QEMU has; restart the guest without it",
    "add-fd": "an open file that was handed to this QEMU cannot be handed to another",
    "preconfig": "what was set up over QMP before the start is not in the command line",
}
_REFUSED_OBJECTS: Final = frozenset({"sev-guest", "sev-snp-guest", "tdx-guest"})
_DESCRIPTORS: Final = frozenset({"fd", "fds", "vhostfd", "vhostfds", "sock_fd"})
_CONSOLES: Final = frozenset({"stdio", "pty", "serial", "tty", "parallel", "parport", "braille"})


@dataclass(frozen=True, slots=True)
class HostBound:
    """What ties a guest to its host.

    Attributes:
        refusals: Reasons why it cannot be moved as it is, one line each.
        warnings: What will be different at the destination, or must be ready there, one line each.
        readable: Whether every option could be read; where not, the refusals say only that.
    """

    refusals: tuple[str, ...]
    warnings: tuple[str, ...]
    readable: bool = True


def host_bound(command: CommandLine) -> HostBound:
    """Find what ties a guest to its host; an option that cannot be read is a refusal too."""
    unreadable = tuple(_unreadable(command))
    if unreadable:
        return HostBound(unreadable, (), readable=False)
    return HostBound(tuple(_refusals(command)), tuple(_warnings(command)))


def _unreadable(command: CommandLine) -> Iterator[str]:
    for option in command.options:
        try:
            rewrite_paths(option, lambda path, _kind: path)
        except UsageError as error:
            yield f"{option.brief}: {error.message}; {error.hint}"


def _refusals(command: CommandLine) -> Iterator[str]:
    for option in command.options:
        if option.name in _REFUSED_OPTIONS:
            yield f"{option.brief}: {_REFUSED_OPTIONS[option.name]}"
        elif option.name == "usbdevice" and (option.value or "").startswith("host:"):
            yield f"{option.brief}: a USB device of this host cannot follow the guest; unplug it first"
        elif option.has_properties:
            reason = _refused(option, option.properties())
            if reason:
                yield f"{option.brief}: {reason}"
    for disk in disks(command):
        if disk.temporary:
            yield f"{disk.option.brief}: {_REFUSED_OPTIONS['snapshot']}"


def _refused(option: Option, given: Properties) -> str | None:
    driver = given.get("driver") or ""
    if option.name == "device":
        for pattern, reason in _REFUSED_DRIVERS:
            if pattern.fullmatch(driver):
                return reason
    if option.name == "object" and given.get("qom-type") in _REFUSED_OBJECTS:
        return "QEMU cannot move a guest with encrypted memory"
    if option.name == "tpmdev" and given.get("type") == "passthrough":
        return "this host's TPM cannot follow the guest; use a software TPM"
    handed_over = any(
        (key.rpartition(".")[2] in _DESCRIPTORS)
        or (key.endswith(".type") and value == "fd")
        or value.startswith("/dev/fdset/")
        for key, value in given.items
    )
    if handed_over and option.name in {"netdev", "nic", "net", "chardev", "device", "drive", "blockdev", "object"}:
        return "an open file that was handed to this QEMU cannot be handed to another; name the file instead"
    return None


def _warnings(command: CommandLine) -> Iterator[str]:
    for option in command.unknown():
        yield f"{option.brief}: not an option of the QEMU versions known here; passed on as it is"
    for option in command.named("readconfig"):
        yield f"{option.brief}: what that file says is not looked at; it must say the same on the destination"
    for device in chardevs(command):
        if device.backend in _CONSOLES:
            yield f"{device.option.brief}: a terminal or port of this host; the destination has its own"
        if device.waits:
            yield f"{device.option.brief}: QEMU waits there for a client before it starts; add wait=off"
    if command.cpu in {"host", "max"}:
        yield f"-cpu {command.cpu}: safe only between hosts with the same CPU, microcode, kernel and QEMU"
    yield from _network_warnings(command)
    for option in command.named("device"):
        given = option.properties()
        driver = given.get("driver") or ""
        if driver.startswith("vhost-vsock"):
            yield f"{option.brief}: its guest-cid must be free on the destination"
        elif driver.startswith("vhost-user"):
            yield f"{option.brief}: its back end must be running on the destination, and able to migrate"


def _network_warnings(command: CommandLine) -> Iterator[str]:
    for netdev in netdevs(command):
        name = netdev.properties.get("ifname")
        where = f"{netdev.option.brief}: "
        if netdev.kind == "user":
            yield where + "connections through user-mode networking end with the move"
        elif netdev.kind == "tap" and name:
            yield where + f"the tap interface {name} must be there, or be free to be made, on the destination"
        elif netdev.kind in {"bridge", "tap"}:
            yield where + f"the bridge {netdev.properties.get('br') or 'br0'} must be there on the destination"
        elif netdev.kind in {"vhost-user", "vhost-vdpa"}:
            yield where + "its back end must be running on the destination"
