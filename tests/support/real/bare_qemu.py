"""Real QEMUs without a guest (the CPUs never start), each with a monitor: for tests of what it does to disks."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from qmp_migrate.qemu.monitor import Monitor
from tests import ROOT

PATIENCE_S = 30.0
_BUILT = ROOT / "build/qemus"


def binaries() -> dict[str, str]:
    """Return the QEMUs of this machine: the installed one, and those of ``make qemus``; name and path."""
    found = {path.parent.name: str(path) for path in sorted(_BUILT.glob("*/qemu-system-x86_64"))}
    installed = shutil.which("qemu-system-x86_64")
    return ({"installed": installed} if installed else {}) | found


@contextlib.asynccontextmanager
async def bare_qemu(binary: str, directory: Path, name: str, words: Sequence[str]) -> AsyncIterator[Monitor]:
    """Start a QEMU whose CPUs are stopped, and end it.

    Args:
        binary: Program.
        directory: For its socket and what it writes (``NAME.sock``, ``NAME.log``).
        name: Of this one.
        words: Options beside the ones that every one has.
    """
    path = directory / f"{name}.sock"
    with (directory / f"{name}.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(binary, "-nodefaults", "-display", "none", "-S", "-accel", "tcg", "-m", "32M"),
            *("-qmp", f"unix:{path},server=on,wait=off", *words),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        monitor = await Monitor.connect(await _socket(path, process), label=f"{name}@{name}", host=name)
        try:
            yield monitor
        finally:
            await monitor.close()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _socket(path: Path, process: asyncio.subprocess.Process) -> socket.socket:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.connect(str(path))
            except OSError:
                sock.close()
                assert process.returncode is None, path.with_suffix(".log").read_text()
                await asyncio.sleep(0.02)
            else:
                return sock
