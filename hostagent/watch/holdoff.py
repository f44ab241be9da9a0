"""Silence about one guest while it switches over.

Between the source's stop and the destination's start, QEMU's main loop and the CPU have one thing to do. A question to the
monitor, or a burst of messages to the broker, would make the guest stand still for longer. They can wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

QUIET_S: Final = 0.1
"""How long it lasts, in seconds: longer than a switchover takes that does not wait for somebody."""


class Quiet:
    """Holds back what is to be said about a guest; what was held back is said in its order."""

    def __init__(self) -> None:
        self._over = asyncio.Event()
        self._over.set()
        self._held: list[Callable[[], None]] = []
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Be quiet for `QUIET_S` from now on; a quiet that has begun is not made longer."""
        if self._over.is_set():
            self._over.clear()
            self._timer = asyncio.get_running_loop().call_later(QUIET_S, self.end)

    def end(self) -> None:
        """Say what was held back, and be quiet no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._over.set()
        held, self._held = self._held, []
        for say in held:
            say()

    async def over(self) -> None:
        """Wait until it is not quiet."""
        await self._over.wait()

    def say(self, say: Callable[[], None]) -> None:
        """Call this: now, or when it is no longer quiet. It must not raise."""
        if self._over.is_set():
            say()
        else:
            self._held.append(say)
