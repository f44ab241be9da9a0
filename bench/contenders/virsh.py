"""``virsh migrate --live --p2p`` of the same guest between two libvirtds."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Final
from xml.sax.saxutils import escape, quoteattr

from bench.contenders.base import Moved, MoveFailed
from bench.contenders.libvirt_lab import Daemon
from bench.guest import SOCKET, Guest, Machine
from bench.scenarios import DOWNTIME_LIMIT_MS, MEMORY_KIB, MIB

_EMULATOR: Final = """\
#!/bin/sh
for word; do
    shift
    case $before:$word in
    -m:{mib}) word=size={kib}K ;;
    -object:*'"id":"pc.ram","size":{old}'*) word=${{word%{old}*}}{new}${{word##*{old}}} ;;
    esac
    set -- "$@" "$word"
    before=$word
done
exec {qemu} "$@"
"""


class Virsh:
    """See the module. The guest is transient, so nothing has to be defined or undefined on the way."""

    name = "virsh"
    controller_pid = None

    def __init__(self, source: Daemon, destination: Daemon, shared: Path, emulator: Path) -> None:
        self._source = source
        self._destination = destination
        self._shared = shared
        self._emulator = emulator

    def directories(self, guest: Guest) -> tuple[Path, Path]:
        """See `Contender`."""
        return self._source.guests / guest.name, self._destination.guests / guest.name

    async def start(self, guest: Guest) -> None:
        """See `Contender`."""
        for directory in self.directories(guest):
            directory.mkdir()
        file = self.directories(guest)[0] / "domain.xml"
        inside = self._shared / guest.name
        file.write_text(domain_xml(guest, inside, self._emulator))
        await self._source.run("virsh", "-q", "create", str(inside / file.name))

    async def move(self, guest: Guest) -> Moved:
        """See `Contender`."""
        scenario, address = guest.scenario, self._destination.address
        await self._source.run("virsh", "-q", "migrate-setmaxdowntime", guest.name, str(DOWNTIME_LIMIT_MS))
        words = ["virsh", "-q", "migrate", "--live", "--p2p", guest.name, self._destination.uri]
        words += ["--migrateuri", f"tcp://{address}"]
        words += ["--tls"] if scenario.encrypted else []
        words += ["--bandwidth", str(scenario.bandwidth_bytes_per_s // MIB)] if scenario.bandwidth_bytes_per_s else []
        began = time.monotonic()
        await self._source.run(*words)
        wall_ms = (time.monotonic() - began) * 1000
        if guest.name not in (await self._destination.run("virsh", "-q", "list", "--name")).split():
            raise MoveFailed("virsh says that it moved the guest, but it is not there")
        return Moved(wall_ms)

    async def discard(self, guest: Guest) -> None:
        """See `Contender`."""
        for daemon, directory in zip((self._source, self._destination), self.directories(guest), strict=True):
            await daemon.run("virsh", "-q", "destroy", guest.name, check=False)
            shutil.rmtree(directory, ignore_errors=True)


def make_emulator(path: Path, machine: Machine) -> Path:
    """Return what libvirt shall start as QEMU: QEMU, or a script that starts it with the memory that the others get.

    Args:
        path: Where to put the script if one is needed: libvirt itself knows whole MiB only.
        machine: What every guest is started with.
    """
    if machine.memory_kib == MEMORY_KIB:
        return Path(machine.qemu)
    sizes = {"mib": MEMORY_KIB // 1024, "old": MEMORY_KIB * 1024, "kib": machine.memory_kib}
    path.write_text(_EMULATOR.format(**sizes, new=machine.memory_kib * 1024, qemu=machine.qemu))
    path.chmod(0o700)
    return path


def domain_xml(guest: Guest, directory: Path, emulator: Path) -> str:
    """Return the guest for libvirt: the same machine, kernel and devices, and nothing that libvirt would add by itself.

    Args:
        guest: The guest.
        directory: Its directory, as libvirt sees it.
        emulator: See `make_emulator`.
    """
    machine = guest.machine
    kind = {"tcg": "qemu", "kvm": "kvm"}[machine.accel]
    monitor = f"unix:{directory / SOCKET},server=on,wait=off"
    return f"""\
<domain type="{kind}" xmlns:qemu="http://libvirt.org/schemas/domain/qemu/1.0">
  <name>{guest.name}</name>
  <memory unit="KiB">{MEMORY_KIB}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch="x86_64" machine="pc-q35-7.2">hvm</type>
    <kernel>{escape(str(machine.image.kernel))}</kernel>
    <initrd>{escape(str(machine.image.initrd))}</initrd>
    <cmdline>{escape(guest.append)}</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode="custom" match="exact" check="none"><model fallback="forbid">qemu64</model></cpu>
  <devices>
    <emulator>{escape(str(emulator))}</emulator>
    <serial type="file"><source path={quoteattr(str(directory / "serial.log"))}/></serial>
    <controller type="usb" model="none"/>
    <memballoon model="none"/>
  </devices>
  <qemu:commandline>
    <qemu:arg value="-qmp"/>
    <qemu:arg value={quoteattr(monitor)}/>
  </qemu:commandline>
</domain>
"""
