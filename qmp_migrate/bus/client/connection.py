"""One connection to a broker: aiomqtt's client with its traps removed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from types import TracebackType
from typing import Any, Self

import aiomqtt
from paho.mqtt.client import Client, DisconnectFlags
from paho.mqtt.reasoncodes import ReasonCode

from qmp_migrate.bus.client.address import BrokerAddress

# paho and aiomqtt log each failed attempt; what matters is raised to us, and we say it once per outage.
_quiet = logging.getLogger("qmp_migrate.bus.paho")
_quiet.setLevel(logging.CRITICAL)


class Connection(aiomqtt.Client):
    """An `aiomqtt.Client` whose connecting can be abandoned. Used once: a new one is made per connection.

    aiomqtt connects (DNS, TCP, TLS handshake, all of them blocking) in the loop's default executor. Python joins that
    executor's threads when it ends, so a broker behind a dead link would hold up the end of a finished migration.
    Here the blocking part runs in a daemon thread of its own, which nobody waits for.
    """

    @classmethod
    def to(
        cls, address: BrokerAddress, *, identifier: str, will: aiomqtt.Will | None, keepalive_s: int, timeout_s: float
    ) -> Self:
        """Return a connection that is not made yet; ``async with`` makes it.

        Args:
            address: The broker.
            identifier: MQTT client id: the same in all connections of one publisher, so that the broker ends the old
                one (and sends its will) when the new one comes.
            will: Last will.
            keepalive_s: A silent broker is noticed after about twice this.
            timeout_s: For connecting, and for each acknowledgement.
        """
        return cls(
            address.hostname,
            address.port,
            identifier=identifier,
            username=address.username,
            password=address.password,
            tls_context=address.tls,
            transport=address.transport,
            websocket_path=address.path if address.transport == "websockets" else None,
            will=will,
            keepalive=keepalive_s,
            timeout=timeout_s,
            clean_session=True,
            max_queued_incoming_messages=100_000,
            logger=_quiet,
            socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],  # small messages, wanted now
        )

    async def __aenter__(self) -> Self:
        """Connect.

        Raises:
            aiomqtt.MqttError: Refused, unreachable, or not within the time limit.
        """
        try:
            async with asyncio.timeout(self.timeout):
                await self._connect_in_daemon()
            return await super().__aenter__()
        except BaseException as error:
            self._drop()
            if isinstance(error, TimeoutError):
                raise aiomqtt.MqttError(f"no connection within {self.timeout:g} s") from None
            if isinstance(error, Exception) and not isinstance(error, aiomqtt.MqttError):
                # OSError, but also what a host name or a websocket handshake can come up with
                raise aiomqtt.MqttError(str(error) or type(error).__name__) from error
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect."""
        try:
            await super().__aexit__(kind, error, trace)
        finally:
            if self._disconnected.done() and not self._disconnected.cancelled():
                self._disconnected.exception()  # taken note of, so that asyncio does not complain about it later

    def cut(self) -> None:
        """End the connection without a farewell: the broker then says our last will."""
        sock = self._client.socket()
        if isinstance(sock, socket.socket):  # not where paho wraps it for websockets
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _on_disconnect(
        self, client: Client, userdata: Any, flags: DisconnectFlags, reason: ReasonCode, properties: Any = None
    ) -> None:
        """Fail at once where the broker closes instead of greeting; aiomqtt would wait for its time limit."""
        if not self._connected.done():
            self._connected.set_exception(aiomqtt.MqttError(f"the broker closed the connection ({reason})"))
        super()._on_disconnect(client, userdata, flags, reason, properties)

    def _client_connect(self) -> None:
        """Nothing is left to do for aiomqtt: `_connect_in_daemon` was here before."""

    async def _connect_in_daemon(self) -> None:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def settle(error: BaseException | None) -> None:
            if done.done():
                self._drop()  # nobody waits any more: what came too late is closed
            elif error is None:
                done.set_result(None)
            else:
                done.set_exception(error)

        made: list[socket.socket] = []
        if (wrap := getattr(self._client, "_ssl_wrap_socket", None)) is not None:

            def remember(raw: socket.socket) -> socket.socket:
                made.append(wrap(raw))
                return made[-1]

            self._client._ssl_wrap_socket = remember  # type: ignore[method-assign,assignment]

        def connect() -> None:
            error: BaseException | None = None
            try:
                super(Connection, self)._client_connect()
            except BaseException as caught:
                error = caught
                for left in made:  # paho leaves the socket of a websocket that is refused to the garbage collector
                    left.close()
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(settle, error)

        threading.Thread(target=connect, name="mqtt connect", daemon=True).start()
        await done

    def _drop(self) -> None:
        """Close a connection that came about only in part; aiomqtt would leave its socket in the loop."""
        # aiomqtt's callback asks a future for its error that may have been cancelled, which raises CancelledError.
        self._client.on_disconnect = None
        with contextlib.suppress(Exception):
            self._client.disconnect()
