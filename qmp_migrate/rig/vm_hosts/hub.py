"""The network between hosts that are machines: an Ethernet switch of UNIX sockets, without root.

Every machine's QEMU connects with ``-netdev stream,server=off,addr.type=unix``. On that connection each frame is preceded
by its length, 4 bytes, big-endian. Like a switch of metal it learns which address is behind which port, sends what is for
everybody or for nobody known to all others, and drops frames for a port that does not take them fast enough.

As a process of its own: ``python -m qmp_migrate.rig.vm_hosts.hub SOCKET``. The socket is there once it listens.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import struct
import sys
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from qmp_migrate.errors import RigError

PENDING_BYTES: Final = 4 << 20
"""So much waits for one machine; beyond that its frames are dropped, and TCP sends them again."""
_HEADER: Final = struct.Struct("!I")
_ADDRESS: Final = 6
_FRAME_MINIMUM: Final = 2 * _ADDRESS + 2
_FRAME_LIMIT: Final = 0x11000
"""QEMU's own limit (``NET_BUFSIZE``): 64 KiB of segmentation offload and its headers."""


class Hub:
    """A switch, served from `path` while the context lasts: ``async with Hub(path): …``.

    Args:
        path: The socket that machines connect to.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._server: asyncio.Server | None = None
        self._ports: dict[asyncio.StreamWriter, asyncio.Task[None]] = {}
        self._behind: dict[bytes, asyncio.StreamWriter] = {}

    async def __aenter__(self) -> Self:
        """Listen.

        Raises:
            RigError: The socket cannot be made.
        """
        try:
            self._server = await asyncio.start_unix_server(self._plugged, self._path)
        except OSError as error:
            raise RigError(f"the hub cannot listen on {self._path}: {error.strerror or error}") from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all connections."""
        assert self._server is not None
        self._server.close()
        tasks = list(self._ports.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _plugged(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._ports[writer] = task
        try:
            with contextlib.suppress(EOFError, OSError, asyncio.CancelledError):
                while True:
                    header = await reader.readexactly(_HEADER.size)
                    (length,) = _HEADER.unpack(header)
                    if not _FRAME_MINIMUM <= length <= _FRAME_LIMIT:
                        break
                    self._forward(writer, header, await reader.readexactly(length))
        finally:
            del self._ports[writer]
            self._behind = {address: port for address, port in self._behind.items() if port is not writer}
            writer.transport.abort()  # not close(): what a stopped machine does not take would keep it open

    def _forward(self, sender: asyncio.StreamWriter, header: bytes, frame: bytes) -> None:
        self._behind[frame[_ADDRESS : 2 * _ADDRESS]] = sender
        known = self._behind.get(frame[:_ADDRESS])
        for port in self._ports if known is None else (known,):
            if port is not sender and port.transport.get_write_buffer_size() < PENDING_BYTES:
                port.write(header + frame)


async def _serve(path: Path) -> None:
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    async with Hub(path):
        await ended.wait()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1])))
