"""What component tests share: a directory whose sockets have short names, an sshd in it, an echo."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support.real.sshd import Sshd, running_sshd, short_directory


@pytest.fixture
def directory() -> Iterator[Path]:
    with short_directory() as path:
        yield path


@pytest.fixture
async def sshd(directory: Path) -> AsyncIterator[Sshd]:
    async with running_sshd(directory / "s") as server:
        yield server


@pytest.fixture
async def echo(directory: Path) -> AsyncIterator[Path]:
    """A UNIX socket that sends back what it gets, until it is told to hang up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if data == b"hang up\n":
                break
            writer.write(data)
            await writer.drain()
        writer.close()

    path = directory / "echo.sock"
    server = await asyncio.start_unix_server(serve, path)
    yield path
    server.close()
    await server.wait_closed()
