"""Metrics for Prometheus: over HTTP on an address, or into a file for node_exporter's textfile collector.

A small server of our own on the event loop, because the library's makes a thread for each connection, for as long as that
likes to stay. Here a request has a size, a time and a place: what is more is turned away.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from qmp_migrate.errors import ConfigError, UsageError

DEFAULT_PORT: Final = 9177
CONNECTIONS: Final = 16
REQUEST_S: Final = 5.0
REQUEST_BYTES: Final = 8192

Render = Callable[[], bytes]


def text_of(registry: CollectorRegistry) -> bytes:
    """Return what a registry holds, in Prometheus' text format."""
    return generate_latest(registry)


def write_textfile(path: Path, content: bytes) -> None:
    """Write metrics so that a reader sees the old or the new ones, never a part.

    Raises:
        ConfigError: It cannot be written.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}")  # no .prom at its end: nobody collects it half-written
    try:
        fresh.write_bytes(content)
        fresh.chmod(0o644)
        fresh.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise ConfigError(f"cannot write {path}: {error.strerror}", hint="check the textfile's directory") from error


def parse_listen(text: str) -> tuple[str, int]:
    """Read ``ADDRESS:PORT``, ``ADDRESS`` or ``:PORT``; the defaults are 127.0.0.1 and 9177.

    Raises:
        UsageError: It is no such thing.
    """
    host, colon, port = text.rpartition(":") if text.count(":") == 1 or "]" in text else (text, "", "")
    if text.endswith("]"):
        host, colon, port = text, "", ""
    address = host.strip("[]") or "127.0.0.1"
    try:
        ipaddress.ip_address(address)
        number = int(port) if colon else DEFAULT_PORT
        if not 0 < number < 65536:
            raise ValueError(port)
    except ValueError:
        raise UsageError(
            f"{text!r} is no address to listen on", hint="for example 127.0.0.1:9177 or [::1]:9177"
        ) from None
    return address, number


def is_loopback(address: str) -> bool:
    """Tell whether only this machine can reach an address."""
    return ipaddress.ip_address(address).is_loopback


@contextlib.asynccontextmanager
async def serving(address: str, port: int, render: Render, *, request_s: float = REQUEST_S) -> AsyncIterator[None]:
    """Serve ``GET /metrics`` for as long as the block lasts.

    Args:
        address: IP address to listen on.
        port: TCP port.
        render: Makes the page; called for each request, has to be quick.
        request_s: Seconds that one connection may take.

    Raises:
        ConfigError: The address cannot be listened on.
    """
    service = _Service(render, request_s)
    try:
        server = await asyncio.start_server(service.serve, address, port, limit=REQUEST_BYTES)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {address} port {port} for metrics: {error.strerror or error}",
            hint="another port, or what has it already: ss -tlnp",
        ) from error
    async with server:
        yield


class _Service:
    def __init__(self, render: Render, request_s: float) -> None:
        self._render = render
        self._request_s = request_s
        self._open = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open <= CONNECTIONS:
                with contextlib.suppress(TimeoutError, OSError, ValueError, asyncio.IncompleteReadError):
                    async with asyncio.timeout(self._request_s):
                        await self._answer(reader, writer)
        finally:
            self._open -= 1
            writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            await _send(writer, "431 Request Header Fields Too Large", b"too much\n", "text/plain")
            return
        words = head.split(b"\r\n", 1)[0].split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            await _send(writer, "400 Bad Request", b"what?\n", "text/plain")
        elif words[0] not in (b"GET", b"HEAD"):
            await _send(writer, "405 Method Not Allowed", b"GET\n", "text/plain")
        elif words[1].split(b"?")[0] != b"/metrics":
            await _send(writer, "404 Not Found", b"/metrics\n", "text/plain")
        else:
            body = self._render()
            await _send(writer, "200 OK", body, CONTENT_TYPE_LATEST, head_only=words[0] == b"HEAD")


async def _send(writer: asyncio.StreamWriter, status: str, body: bytes, kind: str, *, head_only: bool = False) -> None:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    writer.write(head.encode() + (b"" if head_only else body))
    await writer.drain()
