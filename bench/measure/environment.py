"""What was measured on: a number without its machine is no number."""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from bench.fleet import ROOT

QUIET_LOAD: Final = 0.5
"""A load average above this, before anything was begun, means that somebody else is at work here."""


async def describe(qemu: str, accel: str) -> dict[str, Any]:
    """Return the machine, and the versions of all that takes part.

    Args:
        qemu: The QEMU binary.
        accel: The accelerator that guests run under.
    """
    return {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cpu": _value("/proc/cpuinfo", "model name"),
        "cores": os.cpu_count(),
        "memory": _value("/proc/meminfo", "MemTotal"),
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", ""),
        "kernel": platform.release(),
        "accel": accel,
        "qemu": await _first_line(qemu, "--version"),
        "libvirt": await _first_line("virsh", "--version"),
        "ssh": await _first_line("ssh", "-V"),
        "python": platform.python_version(),
        "qmp_migrate": version("qmp-migrate"),
        "commit": await _first_line("git", "-C", str(ROOT), "describe", "--always", "--dirty"),
        "load": [round(value, 2) for value in os.getloadavg()],
    }


def _value(file: str, key: str) -> str:
    for line in Path(file).read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


async def _first_line(*argv: str) -> str:
    """Return the first line that a program writes, ``""`` where it is not installed or fails."""
    if shutil.which(argv[0]) is None:
        return ""
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(10):
        out, _ = await process.communicate()
    lines = out.decode("utf-8", "replace").splitlines()
    return lines[0] if lines and process.returncode == 0 else ""
