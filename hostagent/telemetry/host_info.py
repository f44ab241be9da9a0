"""What the host is: processors, memory, addresses, and which QEMUs with which machine types."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import re
import signal
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import psutil
import structlog

from qmp_migrate.bus.messages.field_types import now
from qmp_migrate.bus.messages.registry import Cpu, HostInfo, NetworkAddress, QemuBinary

PROBE_TIMEOUT_S: Final = 10.0
OUTPUT_LIMIT: Final = 1 << 18

_File = tuple[str, int, int, int]
"""Path, inode, time of change in ns, size: another one is another binary."""

log = structlog.get_logger("hostagent")


class QemuCatalogue:
    """Asks each QEMU binary once for its version and machine types, and again when the file changes (an upgrade).

    Args:
        timeout_s: Seconds that one answer may take.
    """

    def __init__(self, timeout_s: float = PROBE_TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._known: dict[_File, QemuBinary] = {}

    async def read(self, paths: Iterable[str]) -> list[QemuBinary]:
        """Return what is known of some binaries; one that cannot be asked is left out and logged once.

        Args:
            paths: Absolute paths.
        """
        found: dict[_File, QemuBinary] = {}
        for file in dict.fromkeys(map(_identity, paths)):
            if file is not None:
                found[file] = self._known.get(file) or await _probe(file[0], self._timeout_s)
        self._known = found
        return sorted((qemu for qemu in found.values() if qemu.version), key=lambda qemu: qemu.path)


def read_info(host: str, qemus: list[QemuBinary]) -> HostInfo:
    """Find out what this host is.

    Args:
        host: Its name.
        qemus: What `QemuCatalogue` says.
    """
    return HostInfo(
        host=host,
        at=now(),
        architecture=platform.machine(),
        kernel=platform.release(),
        kvm=os.access("/dev/kvm", os.R_OK | os.W_OK),
        cpu=parse_cpuinfo(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")),
        memory_bytes=psutil.virtual_memory().total,
        qemu=qemus,
        addresses=_addresses(),
    )


def parse_cpuinfo(text: str) -> Cpu:
    """Read ``/proc/cpuinfo``, of x86 or ARM."""
    fields: dict[str, str] = {}
    count = 0
    for line in text.splitlines():
        key, _, value = line.partition(":")
        key = key.strip()
        count += key == "processor"
        fields.setdefault(key, value.strip())
    features = fields.get("flags") or fields.get("Features") or ""
    return Cpu(
        model=fields.get("model name") or fields.get("CPU part") or "unknown",
        vendor=fields.get("vendor_id") or fields.get("CPU implementer") or "unknown",
        logical_count=count,
        features=sorted(set(features.split())),
    )


def parse_machine_types(text: str) -> list[str]:
    """Read ``qemu -machine help``: the versioned names, without ``pc``-like aliases and ``none``."""
    types = []
    for line in text.splitlines()[1:]:
        name, _, description = line.partition(" ")
        if name and "(alias of " not in description and name != "none":
            types.append(name)
    return sorted(types)


def parse_version(text: str) -> str:
    """Read ``qemu --version``; ``""`` where that is not a QEMU."""
    match = re.search(r"QEMU emulator version (\d+(?:\.\d+)+)", text)
    return match[1] if match else ""


def _identity(path: str) -> _File | None:
    path = os.path.realpath(path)
    try:
        status = os.stat(path)
    except OSError:
        return None
    return path, status.st_ino, status.st_mtime_ns, status.st_size


async def _probe(path: str, timeout_s: float) -> QemuBinary:
    try:
        version = parse_version(await _output(timeout_s, path, "--version"))
        types = parse_machine_types(await _output(timeout_s, path, "-machine", "help")) if version else []
    except (OSError, TimeoutError) as error:
        log.warning("qemu-not-asked", path=path, reason=str(error) or "no answer in time")
        return QemuBinary(path=path, version="", machine_types=[])
    return QemuBinary(path=path, version=version, machine_types=types)


async def _output(timeout_s: float, path: str, *arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        path,
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,  # so that a wrapper script and the QEMU it starts end together
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(timeout_s):
            text = await process.stdout.read(OUTPUT_LIMIT)
            while more := await process.stdout.read(OUTPUT_LIMIT):
                text = (text + more)[:OUTPUT_LIMIT]
            await process.wait()
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.communicate()  # not `wait`: asyncio tells of no end before what was written is read
    return text.decode("utf-8", "replace")


def _addresses() -> list[NetworkAddress]:
    found = []
    for interface, addresses in psutil.net_if_addrs().items():
        for entry in addresses:
            if entry.family not in (socket.AF_INET, socket.AF_INET6) or entry.address.startswith("fe80:"):
                continue
            prefix = _prefix_length(entry.netmask or "")
            found.append(NetworkAddress(interface=interface, address=entry.address, prefix_length=prefix))
    return sorted(found, key=lambda item: (item.interface, item.address))


def _prefix_length(netmask: str) -> int:
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):
            return int.from_bytes(socket.inet_pton(family, netmask)).bit_count()
    return 0
