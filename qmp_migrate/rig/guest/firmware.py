"""Finds the firmware that starts the bare guest soonest: QEMU's own ``qboot``, which does little more than jump to it.

Where KVM has no hardware below it, firmware is interpreted instruction by instruction: SeaBIOS takes four to five
seconds there, qboot a fraction of one.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Final

from qmp_migrate.hosts.session import end_session, start_session

QBOOT: Final = "qboot.rom"


ANSWER_S: Final = 10.0
ANSWER_BYTES: Final = 1 << 16
"""What a QEMU has to name its directories: more is none."""


async def find_qboot(qemu: str) -> str | None:
    """Return the name by which a QEMU finds qboot, for ``-bios``; ``None`` where it comes without.

    Args:
        qemu: Path of the QEMU binary.
    """
    process = await start_session(
        *(qemu, "-L", "help"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdout is not None
    told = b""
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_S):
                while len(told) < ANSWER_BYTES and (more := await process.stdout.read(ANSWER_BYTES)):
                    told += more
    finally:
        await end_session(process)
    directories = told.decode("utf-8", "surrogateescape").splitlines()
    is_there = await asyncio.to_thread(lambda: any((Path(directory) / QBOOT).is_file() for directory in directories))
    return QBOOT if is_there else None
