"""What preflight says of a guest's devices: those that QEMU cannot move, by name, and those that changed. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final, Literal

from qmp_migrate.migration.devices.diff import Present
from qmp_migrate.qemu.devices import Devices
from qmp_migrate.vm.commandline.command_line import CommandLine

_DEVICE: Final = re.compile(r"non-migratable device: (?P<path>.*?)/?(?P<driver>[^/ ]+)$")
_ADVICE: Final = (
    (re.compile(r"nvme"), "give the guest its disk as virtio-blk or virtio-scsi; QEMU 11.1 can move nvme"),
    (re.compile(r"vfio|mdev"), "unplug it (device_del) before the move, and plug one of the destination in afterwards"),
    (re.compile(r"usb-host|usb-redir"), "unplug it (device_del) before the move"),
    (re.compile(r"ivshmem"), "a shared memory belongs to its host: unplug it; with master=on QEMU can move it"),
    (re.compile(r"VirtFS|9p"), "unmount it in the guest; share files over NFS instead"),
    (re.compile(r"vhost-user-fs|virtiofs"), "unmount and unplug it; share files over NFS instead"),
    (re.compile(r"invtsc"), "restart the guest with a CPU model that does not have invtsc"),
    (
        re.compile(r"(?P<format>vmdk|vdi|vpc|vhdx|qcow|parallels|vvfat) format"),
        "convert the image to qcow2 (qemu-img convert)",
    ),
    (
        re.compile(r"vhost|dirty log|log_access"),
        "start the guest with a network back end that can log, or without vhost",
    ),
    (re.compile(r"SEV|TDX|confidential|guest_memfd", re.IGNORECASE), "QEMU cannot move a guest with encrypted memory"),
)
_MOVABLE_SINCE: Final = {"nvme": (11, 1)}
"""Drivers that later QEMUs can move and earlier ones cannot receive: only a QEMU that has such a device says so itself."""

_OTHERWISE: Final = "remove or replace that device"


def blocked(reasons: Sequence[str], devices: Devices) -> Iterator[tuple[str, str]]:
    """Say of each reason why QEMU refuses (``blocked-reasons``) which device it is, and what to do.

    Yields:
        Text and hint.
    """
    for reason in reasons:
        hint = next((advice for pattern, advice in _ADVICE if pattern.search(reason)), _OTHERWISE)
        names = _names(reason, devices)
        subject = f"QEMU cannot move {names}" if names else "QEMU refuses to migrate it"
        yield f"{subject}: {reason}", hint


def _names(reason: str, devices: Devices) -> str:
    """Return the devices a reason is about, as ``nvme nv0``; ``""`` where it names none that is known."""
    match = _DEVICE.search(reason)
    named = {match["driver"]} if match else set(re.findall(r"device '([^']+)'", reason))
    found = [
        f"{device.driver} {device.id or '(without an id)'}"
        for device in devices.devices.values()
        if any(device.driver == name or device.driver.startswith((f"{name}-", f"{name}_")) for name in named)
    ]
    return ", ".join(sorted(found)) or ", ".join(sorted(named))


def not_received(command: CommandLine, version: str) -> Iterator[tuple[str, str]]:
    """Say which devices the destination's QEMU cannot receive, though the source's can send them.

    Whether it *has* a driver shows when it is started, before memory travels. (``qom-list-types`` would tell, but loads all
    modules, and a QEMU that finds those of another build ends then.)

    Args:
        command: The guest's.
        version: The destination's.

    Yields:
        Text and hint.
    """
    numbers = tuple(int(part) for part in version.split(".") if part.isdigit())
    for option in command.named("device"):
        given = option.properties()
        driver = given.get("driver") or ""
        if driver in _MOVABLE_SINCE and numbers < _MOVABLE_SINCE[driver]:
            name = f"{driver} {given.get('id') or '(without an id)'}"
            yield f"QEMU {version} cannot receive {name}", f"QEMU {'.'.join(map(str, _MOVABLE_SINCE[driver]))} can"


def changed(present: Present) -> Iterator[tuple[Literal["ok", "warn", "fail"], str]]:
    """Say what was plugged in, taken out and changed since the guest was started.

    Yields:
        Status and text.
    """
    for text in present.refusals:
        yield "fail", text
    for text in present.warnings:
        yield "warn", text
    if present.refusals:
        return
    if present.changes:
        yield "ok", "changed since its start, and taken over: " + "; ".join(present.changes)
    else:
        yield "ok", "its devices are those of its command line"
