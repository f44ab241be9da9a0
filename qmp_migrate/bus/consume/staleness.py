"""Hosts that have fallen silent although nobody says that they are lost.

An agent reports its load every few seconds and says how often (``interval_s``). Three reports that do not come mean that
what the bus says of that host is old: a frozen agent, or a broker that has not noticed yet that the connection is dead.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from typing import Any, Final, TypeVar

from qmp_migrate.bus.client.subscription import Received
from qmp_migrate.bus.messages.registry import HostStatus
from qmp_migrate.bus.messages.topics import Kind

MISSED: Final = 3
"""Reports that must not have come."""
REMEMBERED: Final = 10_000
"""Hosts that are watched; a hostile publisher cannot make it more."""

_T = TypeVar("_T")


class Silence:
    """Watches who speaks. Pure: the time comes from outside, and it is when something *arrived*, by the listener's clock."""

    def __init__(self) -> None:
        self._heard: OrderedDict[str, float] = OrderedDict()
        self._interval_s: dict[str, float] = {}
        self._told: set[str] = set()

    def hear(self, received: Received, at: float) -> None:
        """Take note of a message.

        Args:
            received: What came.
            at: When, seconds on a clock that is never set.
        """
        address, message = received.address, received.message
        if address is None or not address.kind.value.startswith("host."):
            return
        host = address.owner
        if isinstance(message, HostStatus):
            if message.state in ("lost", "stopped"):
                self._forget(host)  # it was said
                return
            self._interval_s[host] = message.interval_s
        elif address.kind is not Kind.HOST_LOAD or message is None:
            return
        self._heard[host] = at
        self._heard.move_to_end(host)
        self._told.discard(host)
        while len(self._heard) > REMEMBERED:
            self._forget(next(iter(self._heard)))

    def fallen(self, at: float) -> list[dict[str, Any]]:
        """Return a document for each host that has fallen silent since the last call."""
        found = []
        for host, heard in self._heard.items():
            limit_s = MISSED * max(1.0, self._interval_s.get(host, 5.0))
            if at - heard > limit_s and host not in self._told:
                self._told.add(host)
                silent_s = round(at - heard, 1)
                text = f"host/{host}: silent for {silent_s} s, what is known of it may be old"
                found.append({"schema": "events.stale/1", "host": host, "silent_s": silent_s, "text": text})
        return found

    def _forget(self, host: str) -> None:
        self._heard.pop(host, None)
        self._interval_s.pop(host, None)
        self._told.discard(host)


async def with_pauses(source: AsyncIterator[_T], pause_s: float) -> AsyncIterator[_T | None]:
    """Yield what comes from a source, and ``None`` whenever nothing has come for a while.

    Args:
        source: Read to its end.
        pause_s: Seconds.
    """
    queue: asyncio.Queue[_T] = asyncio.Queue(maxsize=1000)

    async def read() -> None:
        async for item in source:
            await queue.put(item)

    task = asyncio.create_task(read())
    try:
        while True:
            if not queue.empty():  # a task for each of a thousand messages a second would be the dearest part of all
                yield queue.get_nowait()
                continue
            getting = asyncio.create_task(queue.get())
            done, _ = await asyncio.wait({getting, task}, timeout=pause_s, return_when=asyncio.FIRST_COMPLETED)
            if getting in done:
                yield getting.result()
                continue
            getting.cancel()
            await asyncio.wait({getting})  # awaiting it would take our own cancellation for its
            if not queue.empty():  # it came while nothing more was waited for, and its source may have ended since
                continue
            if task.done():
                task.result()
                return
            yield None
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
