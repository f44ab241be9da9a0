"""The library's QMP client, made to read what QEMU has said before it ended, whatever fails first.

A QEMU that ends says why (``SHUTDOWN``) and closes its socket. A controller on a busy machine may find the closed socket by a
command that cannot be sent any more, before it has read that word. asyncio then closes the connection at once, and what was
unread is lost.

It keeps no log either. For it the library would make each message readable, also where nobody keeps it, which takes longer
than all else that is done with a message: a schema of 200 KiB would hold the event loop up.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from ssl import SSLContext
from typing import Final

from qemu.qmp import Message, QMPClient, Runstate

_PIECE: Final = 65536


class Client(QMPClient):
    """A `QMPClient` whose reader comes to the end of what was received."""

    async def _do_connect(self, address: object, ssl: SSLContext | None = None) -> None:
        assert isinstance(address, socket.socket)
        assert ssl is None
        self._set_state(Runstate.CONNECTING)
        await asyncio.sleep(0)  # those who watch the state see this one, too
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=self.readbuflen, loop=loop)
        transport, protocol = await loop.create_connection(lambda: _Protocol(reader, loop=loop), sock=address)
        self._reader = reader
        self._writer = asyncio.StreamWriter(transport, protocol, reader, loop)

    def _cb_outbound(self, msg: Message) -> Message:
        return msg

    def _cb_inbound(self, msg: Message) -> Message:
        return msg


class _Protocol(asyncio.StreamReaderProtocol):
    """Hands the reader all that the kernel has received, then the end, also where the connection ended by an error."""

    def __init__(self, reader: asyncio.StreamReader, *, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(reader, loop=loop)
        self._received = reader
        self._connection: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._connection = transport
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if isinstance(exc, OSError) and self._connection is not None:
            descriptor = self._connection.get_extra_info("socket").fileno()  # closed only after this
            with contextlib.suppress(OSError):
                while data := os.read(descriptor, _PIECE):
                    self._received.feed_data(data)
            exc = None  # an error would hide what is unread; the end is an end
        super().connection_lost(exc)
