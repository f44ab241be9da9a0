"""Programs on this machine, each in a session of its own, so that it and all that it starts can be ended together."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from asyncio.subprocess import Process
from typing import Any, Final

END_S: Final = 5.0


async def start_session(*argv: str, **named: Any) -> Process:
    """Start a program in a session of its own; return its process.

    Cancelled while it starts, asyncio itself would end the program alone and leave what that has started by then (a
    wrapper's QEMU, a shell's commands).

    Args:
        argv: The program and its arguments.
        named: Pipes and environment, as `asyncio.create_subprocess_exec` takes them.

    Raises:
        OSError: It cannot be started.
    """
    starting = asyncio.create_task(asyncio.create_subprocess_exec(*argv, start_new_session=True, **named))
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        with contextlib.suppress(OSError):
            await end_session(await starting)
        raise


async def end_session(process: Process) -> None:
    """Kill a program of `start_session` with all that is still in its process group, and wait for its end.

    What has left the group lives on. It may hold the program's output open, so this waits for `END_S` at most.
    """
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(END_S):
            await process.communicate()  # not `wait`: asyncio tells of no end before what was written is read
