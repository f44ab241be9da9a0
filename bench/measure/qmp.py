"""QMP as plainly as it can be spoken: one JSON object a line over a UNIX socket. Not the product's own monitor."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

COMMAND_S: Final = 30.0
RETRY_S: Final = 0.01
LINE_LIMIT: Final = 1 << 22


class QmpFailed(Exception):
    """QEMU refused a command, or is gone."""


class Qmp:
    """One monitor; `on_event` is called with each event as it arrives."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        on_event: Callable[[dict[str, Any]], None],
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._on_event = on_event
        self._turn = asyncio.Lock()
        self._answer: asyncio.Future[Any] | None = None
        self._listener = asyncio.create_task(self._listen())

    @classmethod
    async def open(cls, path: Path, on_event: Callable[[dict[str, Any]], None]) -> Qmp:
        """Connect as soon as somebody listens there and negotiate; the caller limits the time."""
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(str(path), limit=LINE_LIMIT)
                break
            except (FileNotFoundError, ConnectionRefusedError):
                await asyncio.sleep(RETRY_S)
        await reader.readline()
        monitor = cls(reader, writer, on_event)
        await monitor.execute("qmp_capabilities")
        return monitor

    async def execute(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        """Run a command and return its ``return``.

        Raises:
            QmpFailed: QEMU refused it, is gone, or did not answer within `COMMAND_S`.
        """
        async with self._turn:
            if self._listener.done():
                raise QmpFailed(f"{command}: QEMU is gone")
            self._answer = asyncio.get_running_loop().create_future()
            message = {"execute": command} | ({"arguments": arguments} if arguments else {})
            try:
                self._writer.write(json.dumps(message).encode() + b"\n")
                async with asyncio.timeout(COMMAND_S):
                    reply = await self._answer
            except (TimeoutError, OSError) as error:
                raise QmpFailed(f"{command}: {error!r}") from error
            finally:
                self._answer = None
        if "error" in reply:
            raise QmpFailed(f"{command}: {reply['error'].get('desc')}")
        return reply["return"]

    async def _listen(self) -> None:
        try:
            while line := await self._reader.readline():
                message = json.loads(line)
                if "event" in message:
                    self._on_event(message)
                elif self._answer is not None and not self._answer.done():
                    self._answer.set_result(message)
        except (OSError, ValueError):
            pass
        finally:
            if self._answer is not None and not self._answer.done():
                self._answer.set_exception(ConnectionResetError("QEMU closed the monitor"))

    async def close(self) -> None:
        """Close the connection; QEMU goes on."""
        self._listener.cancel()
        await asyncio.gather(self._listener, return_exceptions=True)
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


def event_time(event: dict[str, Any]) -> float:
    """Return when QEMU sent an event, by its own clock, seconds since the epoch."""
    stamp = event["timestamp"]
    return float(stamp["seconds"]) + float(stamp["microseconds"]) / 1e6
