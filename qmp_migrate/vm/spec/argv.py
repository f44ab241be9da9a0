"""A guest's spec, made into a QEMU command line.

Everything is explicit (``-nodefaults -no-user-config``), so that two hosts build the same machine; every device, node and
back end has an id of its own (``disk0``, ``disk0-format``, ``net0``), so that it can be named over QMP for as long as
the guest lives. Free options come last: they can add, and the built-in devices keep their PCI addresses.
"""

from __future__ import annotations

import hashlib
from typing import Final, Literal

from qmp_migrate.vm.commandline.command_line import MIB, CommandLine, Option
from qmp_migrate.vm.commandline.monitor_sockets import with_monitors
from qmp_migrate.vm.commandline.properties import escape
from qmp_migrate.vm.spec.guest_spec import DiskSpec, GuestSpec, NicSpec

SERIAL_LOG: Final = "serial.log"

MEMORY_SLOTS: Final = 16
"""How many pieces of memory can be plugged in where a spec allows it; each needs a little of the guest's own memory."""

_CACHE: Final = {
    # cache: (cache.direct, cache.no-flush, the device's write-cache), as in QEMU's manual under -drive cache=
    "none": ("on", "off", "on"),
    "writeback": ("off", "off", "on"),
    "writethrough": ("off", "off", "off"),
    "directsync": ("on", "off", "off"),
    "unsafe": ("off", "on", "on"),
}


def build_argv(spec: GuestSpec, *, binary: str, directory: str, accel: Literal["kvm", "tcg"], uuid: str) -> CommandLine:
    """Build a guest's command line.

    Args:
        spec: The guest. An alias as its machine type should be pinned before (`GuestSpec.is_pinned`).
        binary: QEMU program on the host.
        directory: The guest's directory on the host (``RUN_DIR/NAME``), absolute.
        accel: What ``auto`` came to on this host. A dirty ring is left out under ``tcg``, which has none.
        uuid: The guest's UUID; MAC addresses that are not given are made from it.

    Raises:
        ConfigError: A socket's path would be longer than the kernel allows.
    """
    memory = f"size={_memory(spec.memory)}"
    if spec.maxmemory is not None:
        memory += f",slots={MEMORY_SLOTS},maxmem={_memory(spec.maxmemory)}"
    smp = f"cpus={spec.vcpus},maxcpus={spec.maxcpus or spec.vcpus}"
    accelerator: str = accel
    if accel == "kvm" and spec.dirty_ring is not None:
        accelerator += f",dirty-ring-size={spec.dirty_ring}"
    words = [
        *("-nodefaults", "-no-user-config", "-display", "none"),
        *("-name", f"guest={spec.name}", "-uuid", uuid),
        *("-machine", f"type={spec.machine}", "-accel", accelerator, "-cpu", spec.cpu),
        *("-m", memory, "-smp", smp),
    ]
    for flag, path in (("-bios", spec.firmware), ("-kernel", spec.kernel), ("-initrd", spec.initrd)):
        words += [flag, path] if path is not None else []
    if spec.append is not None:
        words += ["-append", spec.append]
    serial = f"file,id=serial0,path={escape(f'{directory}/{SERIAL_LOG}')},append=on"
    words += ["-chardev", serial, "-serial", "chardev:serial0"]
    command = with_monitors(CommandLine.parse([binary, *words]), directory)
    devices = [*_disks(spec), *_nics(spec, uuid)]
    free = CommandLine.parse([binary, *spec.args]).options
    return CommandLine(binary, (*command.options, *devices, *free))


def _memory(size: int) -> str:
    return f"{size // MIB}M" if size % MIB == 0 else f"{size // 1024}K"


def _disks(spec: GuestSpec) -> list[Option]:
    options = []
    if any(disk.interface == "scsi" for disk in spec.disk):
        options.append(Option("-device", "virtio-scsi-pci,id=scsi0"))
    counts = {"virtio": 0, "scsi": 0, "ide": 0}
    for number, disk in enumerate(spec.disk):
        options += _disk(disk, f"disk{number}", counts[disk.interface], ahci="q35" in spec.machine)
        counts[disk.interface] += 1
    return options


def _disk(disk: DiskSpec, name: str, place: int, *, ahci: bool) -> list[Option]:
    direct, no_flush, write_cache = _CACHE[disk.cache]
    shared = f"cache.direct={direct},cache.no-flush={no_flush},read-only={'on' if disk.readonly else 'off'}"
    # auto-read-only would let a disk come up read-only on one host and writable on the other.
    file = f"driver=file,node-name={name}-file,filename={escape(disk.path)},locking=auto,auto-read-only=off,{shared}"
    image = f"driver={disk.image_format},node-name={name}-format,file={name}-file,{shared}"
    if disk.image_format == "qcow2":
        image += ",discard=unmap"
    match disk.interface:
        case "virtio":
            device = "virtio-blk-pci"
        case "scsi":
            device = f"scsi-hd,bus=scsi0.0,scsi-id={place}"
        case "ide":
            # AHCI has one disk on each of its ports, the older controller two on each of its two.
            device = f"ide-hd,bus=ide.{place}" if ahci else f"ide-hd,bus=ide.{place // 2},unit={place % 2}"
    device += f",id={name},drive={name}-format,write-cache={write_cache}"
    if disk.serial is not None:
        device += f",serial={disk.serial}"
    return [Option("-blockdev", file), Option("-blockdev", image), Option("-device", device)]


def _nics(spec: GuestSpec, uuid: str) -> list[Option]:
    options = []
    for number, nic in enumerate(spec.nic):
        mac = nic.mac or mac_of(uuid, number)
        options += [
            Option("-netdev", _backend(nic, f"net{number}")),
            Option("-device", f"{nic.model},id=nic{number},netdev=net{number},mac={mac}"),
        ]
    return options


def _backend(nic: NicSpec, name: str) -> str:
    match nic.kind:
        case "user":
            return f"user,id={name}"
        case "tap":
            if nic.bridge is not None:
                return f"bridge,id={name},br={nic.bridge}"
            return f"tap,id={name},ifname={nic.ifname},script=no,downscript=no"
        case "socket":
            how = next(key for key in ("connect", "listen", "mcast") if getattr(nic, key) is not None)
            return f"socket,id={name},{how}={getattr(nic, how)}"


def mac_of(uuid: str, number: int) -> str:
    """Return the MAC address of a guest's interface that has none given: the same each time, in QEMU's own range.

    Args:
        uuid: The guest's UUID.
        number: Place of the interface in the spec, from 0.
    """
    digest = hashlib.sha256(f"{uuid.lower()}/{number}".encode()).digest()
    return "52:54:00:" + ":".join(f"{byte:02x}" for byte in digest[:3])
