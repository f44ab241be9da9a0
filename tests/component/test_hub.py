"""The hub of hosts that are machines: a switch over UNIX sockets, in the framing of QEMU's ``-netdev stream``."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from qmp_migrate.errors import RigError
from qmp_migrate.rig.vm_hosts.hub import PENDING_BYTES, Hub
from tests.support.real.sshd import short_directory

EVERYBODY = b"\xff" * 6
A, B, C = (bytes((0x52, 0x54, 0, 0x78, 0, number)) for number in (1, 2, 3))


class Port:
    """One machine's end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self.writer = reader, writer

    async def unplug(self) -> None:
        self.writer.transport.abort()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    @classmethod
    async def plug(cls, path: Path) -> Port:
        return cls(*await asyncio.open_unix_connection(path))

    async def send(self, to: bytes, sender: bytes, payload: bytes) -> None:
        frame = to + sender + b"\x08\x00" + payload
        self.writer.write(struct.pack("!I", len(frame)) + frame)
        await self.writer.drain()

    async def get(self) -> bytes:
        async with asyncio.timeout(10):
            (length,) = struct.unpack("!I", await self._reader.readexactly(4))
            return (await self._reader.readexactly(length))[14:]

    async def ended(self) -> bool:
        async with asyncio.timeout(10):
            return await self._reader.read(1) == b""


@pytest.fixture
async def path() -> AsyncIterator[Path]:
    with short_directory() as directory:
        async with Hub(directory / "hub.sock"):
            yield directory / "hub.sock"


@pytest.fixture
async def plug(path: Path) -> AsyncIterator[Callable[[], Awaitable[Port]]]:
    plugged: list[Port] = []

    async def one() -> Port:
        plugged.append(await Port.plug(path))
        return plugged[-1]

    yield one
    for port in plugged:
        await port.unplug()


@pytest.fixture
async def ports(plug: Callable[[], Awaitable[Port]]) -> tuple[Port, Port, Port]:
    a, b, c = [await plug() for _ in range(3)]
    # All are heard of once each has got a frame of the last one.
    await c.send(EVERYBODY, C, b"hello")
    assert await a.get() == await b.get() == b"hello"
    return a, b, c


async def test_a_frame_for_everybody_reaches_all_others(ports: tuple[Port, Port, Port]) -> None:
    a, b, c = ports
    await a.send(EVERYBODY, A, b"who has it?")
    assert await b.get() == await c.get() == b"who has it?"


async def test_a_frame_for_a_known_address_reaches_that_one_alone(ports: tuple[Port, Port, Port]) -> None:
    a, b, c = ports
    await b.send(EVERYBODY, B, b"here is b")
    assert await a.get() == await c.get() == b"here is b"
    await a.send(B, A, b"for b")
    await a.send(EVERYBODY, A, b"for all")
    assert [await b.get(), await b.get()] == [b"for b", b"for all"]
    assert await c.get() == b"for all"


async def test_a_machine_that_comes_back_is_learnt_anew(
    ports: tuple[Port, Port, Port], plug: Callable[[], Awaitable[Port]]
) -> None:
    a, b, c = ports
    await b.send(EVERYBODY, B, b"first")
    assert await a.get() == await c.get() == b"first"
    await b.unplug()
    again = await plug()
    await again.send(EVERYBODY, B, b"second")
    assert await a.get() == await c.get() == b"second"
    await a.send(B, A, b"for the new one")
    assert await again.get() == b"for the new one"


async def test_one_that_does_not_read_holds_nobody_up(ports: tuple[Port, Port, Port]) -> None:
    a, _stopped, c = ports
    frames = 4 * PENDING_BYTES // 60_000
    for number in range(frames):
        await a.send(EVERYBODY, A, number.to_bytes(4, "big") + b"x" * 60_000)
        assert (await c.get())[:4] == number.to_bytes(4, "big")


@pytest.mark.parametrize("wrong", [struct.pack("!I", 5) + b"short", struct.pack("!I", 1 << 20)])
async def test_what_is_no_frame_ends_that_connection_alone(ports: tuple[Port, Port, Port], wrong: bytes) -> None:
    a, b, c = ports
    c.writer.write(wrong)
    assert await c.ended()
    await a.send(EVERYBODY, A, b"still here")
    assert await b.get() == b"still here"


async def test_a_path_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    with pytest.raises(RigError, match="hub"):
        async with Hub(tmp_path / "absent" / "hub.sock"):
            pass
