"""A broker in this process (amqtt), for the rig, the demo and tests. For real use, run Mosquitto or another one.

Known deviations of amqtt 0.12 that the bus is written to bear: MQTT 3.1.1 only; QoS of a delivery is that of the
subscription, not the smaller one; a client id used twice leaves the old session alive; keepalive is not enforced, so a
client that freezes is never declared lost.

As a process of its own: ``python -m qmp_migrate.bus.broker.embedded --port 1883 --ready-file FILE``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from qmp_migrate.errors import BusError, QmpMigrateError

STOP_TIMEOUT_S: Final = 5.0


class EmbeddedBroker:
    """A broker without access control, bound to a loopback address. Use it as an ``async with`` context.

    Args:
        address: IPv4 address to listen on.
        port: TCP port; 0: a free one, told by `port` once it runs.

    Attributes:
        address: Where it listens.
        port: Where it listens.
    """

    def __init__(self, address: str = "127.0.0.1", port: int = 0) -> None:
        self.address = address
        self.port = port
        self._broker: Any = None
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    @property
    def url(self) -> str:
        """The broker's URL."""
        return f"mqtt://{self.address}:{self.port}"

    def configuration(self) -> dict[str, Any]:
        """Return amqtt's configuration, for those who want more (access control)."""
        return {
            "listeners": {"default": {"type": "tcp", "bind": f"{self.address}:{self.port}"}},
            "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
            # Its keepalive only interrupts a read, which may tear a packet apart: far beyond anything that happens.
            "timeout_disconnect_delay": 86_400,
        }

    async def __aenter__(self) -> Self:
        """Start to listen.

        Raises:
            BusError: amqtt is not installed, or the port is taken.
        """
        broker_class, failure = self._import_amqtt()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            self._broker = broker_class(self.configuration())
            try:
                await self._broker.start()
            except failure as error:
                raise BusError(
                    f"the embedded broker cannot listen on {self.address}:{self.port}: {error.__cause__ or error}",
                    hint="is another broker running there? choose another port",
                ) from error
        if self.port == 0:
            # amqtt has no public word for the port that the system chose.
            self.port = self._broker._servers["default"].instance.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop; never raises, bounded in time."""
        broker, self._broker = self._broker, None
        if broker is None:
            return
        # It would stop listening last: who comes back meanwhile would be taken in and never served, and the port would stay
        # open for good where its end takes too long.
        for server in broker._servers.values():
            server.instance.close()
        # It closes its clients one after the other, and one of them may not take it.
        with contextlib.suppress(Exception):
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await broker.shutdown()
        for writer in self._connections.values():
            writer.transport.abort()
        if self._connections:
            await asyncio.wait(self._connections, timeout=STOP_TIMEOUT_S)

    def _import_amqtt(self) -> tuple[Any, type[Exception]]:
        # Its messages are about its inside ("No data from client"); what matters here is raised.
        for name in ("amqtt", "transitions"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            try:
                from amqtt.broker import Broker
                from amqtt.errors import BrokerError
            except ImportError as error:
                raise BusError(
                    f"the embedded broker needs amqtt: {error}", hint="install it: pip install 'qmp-migrate[rig]'"
                ) from error
        connections = self._connections

        class TidyBroker(Broker):  # type: ignore[misc]  # amqtt is an optional package
            """amqtt forgets connections that are just ending when it shuts down: their sockets would stay open."""

            async def stream_connected(
                self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, listener_name: str
            ) -> None:
                task = asyncio.current_task()
                assert task is not None
                connections[task] = writer
                try:
                    await super().stream_connected(reader, writer, listener_name)
                finally:
                    del connections[task]
                    writer.close()

        return TidyBroker, BrokerError


async def _serve(address: str, port: int, ready_file: Path | None) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with EmbeddedBroker(address, port) as broker:
        if ready_file is not None:
            _write_atomically(ready_file, {"pid": os.getpid(), "url": broker.url, "port": broker.port})
        sys.stdout.write(f"ready {broker.url}\n")
        sys.stdout.flush()
        await stop.wait()


def _write_atomically(path: Path, document: dict[str, object]) -> None:
    fresh = path.with_name(f"{path.name}.{os.getpid()}.new")
    fresh.write_text(json.dumps(document) + "\n", encoding="utf-8")
    fresh.replace(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a broker until SIGTERM or SIGINT.

    Args:
        arguments: Command line without the program's name; default: that of the process.

    Returns:
        Exit status: 0 after a signal, 1 where the broker did not start.
    """
    parser = argparse.ArgumentParser(
        prog="python -m qmp_migrate.bus.broker.embedded", description="Embedded MQTT broker."
    )
    parser.add_argument("--address", default="127.0.0.1", help="IPv4 address to listen on")
    parser.add_argument("--port", type=int, default=0, help="TCP port; 0: a free one")
    parser.add_argument("--ready-file", type=Path, help="JSON with pid, url and port, written once it listens")
    options = parser.parse_args(arguments)
    try:
        asyncio.run(_serve(options.address, options.port, options.ready_file))
    except (QmpMigrateError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
