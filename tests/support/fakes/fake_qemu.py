"""A QMP server that says what a test tells it to, on a real socket.

It keeps QEMU's manners, as far as a controller can notice them: one client at a time (the next one gets no greeting
until the first has gone), in-band commands answered one by one by a main loop that can be frozen, out-of-band ones
answered past it, lines that end in CR LF, and client messages read without any line ends (QEMU needs none, and the
client library sends none).

By default it is a QEMU 7.2 that runs a guest: it knows versions, run state, capabilities and parameters, which can be set
and are refused as QEMU refuses them. `FakeQemu.on` scripts everything else::

    async with FakeQemu() as qemu:
        qemu.on("query-migrate", {"status": "active"}, {"status": "completed"})    # the last one stays
        qemu.on("cont", Fails("Migration is not finalized yet"))
        monitor = await Monitor.connect(await qemu.client(), label="web1@a")
        qemu.emit("STOP")
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from qmp_migrate.qemu.monitor import Monitor
from tests.support.data.recorded_replies import V7_2, Release

CRLF = b"\r\n"


@dataclass(frozen=True)
class Fails:
    """The command is answered with an error."""

    desc: str
    error_class: str = "GenericError"


@dataclass(frozen=True)
class Raw:
    """These bytes are sent instead of an answer; ``$ID`` in them becomes the id of the command."""

    data: bytes


@dataclass(frozen=True)
class Silence:
    """The command is never answered; later ones are."""


@dataclass(frozen=True)
class HangUp:
    """The connection is closed instead of an answer."""


Reply: TypeAlias = Any
"""A value, one of the above, or a function of the arguments that returns one of these."""


@dataclass(frozen=True)
class Asked:
    """One command as it arrived."""

    name: str
    arguments: dict[str, Any]
    oob: bool


@dataclass(eq=False)
class _Session:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    owner: object = None
    todo: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue)


class FakeQemu:
    """See the module.

    Attributes:
        log: Every command that arrived after the negotiation, in order.
        negotiated: The arguments of ``qmp_capabilities``, as they were last sent.
        capabilities, parameters: As a client set them.
        main_loop: Clear it to freeze QEMU's main loop: in-band commands wait, out-of-band ones do not.
        greeting: What a client is told first; None: nothing, as if another client held the monitor.
    """

    def __init__(self, release: Release = V7_2, *, oob: bool = True) -> None:
        self.log: list[Asked] = []
        self.negotiated: dict[str, Any] | None = None
        self.capabilities = dict.fromkeys(release.capabilities, False)
        self.parameters = dict(release.parameters)
        self.main_loop = asyncio.Event()
        self.main_loop.set()
        hello = {"QMP": {"version": release.version, "capabilities": ["oob"] if oob else []}}
        self.greeting: bytes | None = json.dumps(hello).encode() + CRLF
        self._replies: dict[str, list[Reply]] = {}
        self._arrived = asyncio.Condition()
        self._turn = asyncio.Lock()
        self._session: _Session | None = None
        self._sessions: list[_Session] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.on("qmp_capabilities", {})
        self.on("query-version", release.version)
        self.on("query-status", {"status": "running", "running": True, **release.run_status})
        self.on("query-migrate", {})
        self.on("query-migrate-capabilities", lambda _: _as_list(self.capabilities))
        self.on("migrate-set-capabilities", self._set_capabilities)
        self.on("query-migrate-parameters", lambda _: dict(self.parameters))
        self.on("migrate-set-parameters", self._set_parameters)

    async def __aenter__(self) -> FakeQemu:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- what a test does -----------------------------------------------------------------------------------------

    def on(self, command: str, *replies: Reply) -> None:
        """Script a command: one reply after the other, the last one for ever."""
        self._replies[command] = list(replies)

    async def client(self, owner: object = None) -> socket.socket:
        """Return the client's end of a new connection; its `owner` is for those who override what is answered to whom."""
        ours, theirs = socket.socketpair(socket.AF_UNIX)
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        self._sessions.append(_Session(reader, writer, owner))
        task = asyncio.create_task(self._serve(self._sessions[-1]))
        self._tasks.add(task)
        return theirs

    def emit(self, event: str, data: dict[str, Any] | None = None, *, timestamp: Any = None) -> None:
        """Send an event to the client, with the time of now unless told otherwise."""
        seconds, rest = divmod(time.time(), 1)
        stamp = {"seconds": int(seconds), "microseconds": int(rest * 1e6)} if timestamp is None else timestamp
        message = {"timestamp": stamp, "event": event} | ({"data": data} if data is not None else {})
        self.send(json.dumps(message).encode() + CRLF)

    def send(self, data: bytes) -> None:
        """Send bytes to the client, whatever they are."""
        assert self._session is not None, "nobody is connected"
        self._session.writer.write(data)

    def hang_up(self) -> None:
        """Close the client's connection, as a QEMU that ends does."""
        assert self._session is not None, "nobody is connected"
        self._session.writer.close()

    def drop(self, owner: object) -> None:
        """Close all connections of an owner, also those that wait for their turn."""
        for session in self._sessions:
            if session.owner is owner:
                session.writer.close()

    def asked(self, command: str) -> list[dict[str, Any]]:
        """Return the arguments of each time that a command arrived."""
        return [asked.arguments for asked in self.log if asked.name == command]

    async def until_asked(self, command: str, times: int = 1) -> None:
        """Wait until a command has arrived."""
        async with asyncio.timeout(10), self._arrived:
            await self._arrived.wait_for(lambda: len(self.asked(command)) >= times)

    # -- what QEMU does -------------------------------------------------------------------------------------------

    async def _serve(self, session: _Session) -> None:
        try:
            async with self._turn:  # a monitor serves one client; the others wait, and hear nothing
                self._session = session
                if self.greeting is not None:
                    session.writer.write(self.greeting)
                main_loop = asyncio.create_task(self._main_loop(session))
                try:
                    await self._read(session)
                finally:
                    main_loop.cancel()
                    await asyncio.gather(main_loop, return_exceptions=True)
        finally:
            session.writer.close()
            with contextlib.suppress(OSError):
                await session.writer.wait_closed()

    async def _read(self, session: _Session) -> None:
        decoder, text = json.JSONDecoder(), ""
        while data := await session.reader.read(65536):
            text += data.decode()
            while text := text.lstrip():
                try:
                    message, end = decoder.raw_decode(text)
                except json.JSONDecodeError:
                    break  # the rest of it is on its way
                text = text[end:]
                await self._take(session, message)

    async def _take(self, session: _Session, message: dict[str, Any]) -> None:
        oob = "exec-oob" in message
        name = message["exec-oob" if oob else "execute"]
        if name == "qmp_capabilities":
            self.negotiated = message.get("arguments", {})
        else:
            async with self._arrived:
                self.log.append(Asked(name, message.get("arguments", {}), oob))
                self._arrived.notify_all()
        if oob:
            self._answer(session, name, message)
        else:
            session.todo.put_nowait(message)

    async def _main_loop(self, session: _Session) -> None:
        while True:
            message = await session.todo.get()
            await self.main_loop.wait()
            self._answer(session, message["execute"], message)

    def _answer(self, session: _Session, name: str, message: dict[str, Any]) -> None:
        scripted = self._replies.get(name, [Fails(f"The command {name} has not been found", "CommandNotFound")])
        reply = scripted.pop(0) if len(scripted) > 1 else scripted[0]
        if isinstance(reply, Callable):
            reply = reply(message.get("arguments", {}))
        match reply:
            case Silence():
                return
            case HangUp():
                session.writer.close()
                return
            case Raw():
                session.writer.write(reply.data.replace(b"$ID", json.dumps(message.get("id")).encode()))
                return
            case Fails():
                answer: dict[str, Any] = {"error": {"class": reply.error_class, "desc": reply.desc}}
            case value:
                answer = {"return": value}
        if "id" in message:
            answer["id"] = message["id"]
        session.writer.write(json.dumps(answer).encode() + CRLF)

    def _set_capabilities(self, arguments: dict[str, Any]) -> Reply:
        for entry in arguments["capabilities"]:
            if entry["capability"] not in self.capabilities:
                return Fails(f"Parameter 'capability' does not accept value '{entry['capability']}'")
            self.capabilities[entry["capability"]] = entry["state"]
        return {}

    def _set_parameters(self, arguments: dict[str, Any]) -> Reply:
        for name in arguments:
            if name not in self.parameters:
                return Fails(f"Parameter '{name}' is unexpected")
        if arguments.get("downtime-limit", 0) > 2_000_000:
            return Fails(
                "Parameter 'downtime_limit' expects an integer in the range of 0 to 2000 seconds", "GenericError"
            )
        self.parameters.update(arguments)
        return {}


def _as_list(capabilities: dict[str, bool]) -> list[dict[str, Any]]:
    return [{"state": state, "capability": name} for name, state in capabilities.items()]


async def connect(qemu: FakeQemu, *, timeout: float = 5.0) -> Monitor:
    """Connect a monitor to it."""
    return await Monitor.connect(await qemu.client(), label="web1@a", host="a", timeout=timeout)
