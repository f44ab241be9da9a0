"""Finds the firmware that starts the bare guest soonest: QEMU's own ``qboot``, which does little more than jump to it.

Where KVM has no hardware below it, firmware is interpreted instruction by instruction: SeaBIOS takes four to five
seconds there, qboot a fraction of one.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

QBOOT: Final = "qboot.rom"


async def find_qboot(qemu: str) -> str | None:
    """Return the name by which a QEMU finds qboot, for ``-bios``; ``None`` where it comes without.

    Args:
        qemu: Path of the QEMU binary.
    """
    process = await asyncio.create_subprocess_exec(
        *(qemu, "-L", "help"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        told, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    directories = told.decode("utf-8", "surrogateescape").splitlines()
    is_there = await asyncio.to_thread(lambda: any((Path(directory) / QBOOT).is_file() for directory in directories))
    return QBOOT if is_there else None
