"""Signals of a command that moves a guest: what is half done must not end with the terminal that it was begun on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable
from typing import Final

_OUTPUT: Final = (1, 2)


def go_on_without_terminal() -> None:
    """Let a hang-up (a closed window, a lost SSH session) not end this process; call it in the event loop.

    By default SIGHUP kills, which would leave a guest standing still until somebody runs `recover`. So the work goes on to
    its end, which the journal tells; what would be written to the terminal is thrown away, for writing there fails now.
    """
    terminals = [number for number in _OUTPUT if os.isatty(number)]  # a terminal that has hung up says that it is none

    def on_hang_up() -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for number in terminals:
            os.dup2(nowhere, number)
        os.close(nowhere)

    with contextlib.suppress(NotImplementedError, ValueError, RuntimeError):  # not in the main thread
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, on_hang_up)


async def until_stopped(work: Awaitable[None]) -> None:
    """Wait for work that has no end of its own; SIGTERM ends it in good order, and is no error."""
    task = asyncio.current_task()
    assert task is not None
    stopped = False

    def stop() -> None:
        nonlocal stopped
        stopped = True
        task.cancel()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop)
    try:
        await work
    except asyncio.CancelledError:
        if not stopped:
            raise


def end_as_by_ctrl_c() -> None:
    """Let SIGTERM do what Ctrl-C does to a coroutine of `asyncio.run`: cancel it, so that it ends in good order.

    Also where Ctrl-C itself is ignored, as in what a script has put into the background.
    """
    task, on_ctrl_c = asyncio.current_task(), signal.getsignal(signal.SIGINT)
    assert task is not None
    with contextlib.suppress(NotImplementedError, ValueError, RuntimeError):  # not in the main thread
        if callable(on_ctrl_c):
            signal.signal(signal.SIGTERM, on_ctrl_c)
        else:
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
