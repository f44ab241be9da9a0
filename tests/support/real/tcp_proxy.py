"""A network cable that a test can damage: a TCP proxy that forwards, swallows, delays or cuts what passes through.

It runs in a thread of its own, so that blocking tests and asyncio ones use it alike. What a real network does without a
word (a black hole, one direction lost) it does without a word, too: the connections stay, and nobody is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Self

Direction = Literal["there", "back"]
"""``there``: from who connects to who listens; ``back``: the other one."""

Address = tuple[str, int]

_CHUNK: Final = 64 * 1024
_RESET: Final = struct.pack("ii", 1, 0)


@dataclass(eq=False)
class _Line:
    """One connection through the cable."""

    near: socket.socket
    far: socket.socket | None = None
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def end(self, *, reset: bool) -> None:
        for sock in (self.near, self.far):
            if sock is not None:
                with contextlib.suppress(OSError):
                    if reset:
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    sock.close()


class Cable:
    """A cable between whoever connects to `address` and a listener. Use as a context manager.

    Args:
        target: Where connections are forwarded to.
        listen: Where the cable listens; port 0: a free one.

    Attributes:
        address: Where it listens.
        moved: Bytes that came through so far, by direction.
        heads: What each connection began with, as it came from who connected.
    """

    def __init__(self, target: Address, listen: Address = ("127.0.0.1", 0)) -> None:
        self.target = target
        self.address = listen
        self.moved: dict[Direction, int] = {"there": 0, "back": 0}
        self.heads: list[bytes] = []
        self._held: set[Direction] = set()
        self._dropped: set[Direction] = set()
        self._bytes_per_s = 0.0
        self._lines: set[_Line] = set()
        self._listener: socket.socket | None = None
        self._plugs: list[socket.socket] = []
        self._accepting: asyncio.Task[None] | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="cable", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self.up()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.down()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # -- what can happen to it ------------------------------------------------------------------------------------

    def up(self) -> None:
        """Repair everything: listen, forward, both directions, as fast as it goes."""
        self._do(self._up)

    def down(self) -> None:
        """Cut it: every connection is reset, and new ones are refused."""
        self._do(self._down)

    def reset(self) -> None:
        """Reset every connection that there is now; new ones work."""
        self._do(self._reset)

    def hold(self, *directions: Direction) -> None:
        """Stop forwarding (default: both ways): what comes waits, nothing is lost, nobody is told."""
        self._do(self._set, "_held", set(directions or ("there", "back")))

    def swallow(self) -> None:
        """Be a black hole: as `hold`, and who connects anew hears nothing at all, not even a refusal."""
        self._do(self._swallow)

    def drop(self, *directions: Direction) -> None:
        """Swallow what comes one way (or both): the sender sees no error."""
        self._do(self._set, "_dropped", set(directions or ("there", "back")))

    def limit(self, bits_per_s: float) -> None:
        """Let no more through than that, each way; 0: as much as goes."""
        self._do(self._set, "_bytes_per_s", bits_per_s / 8)

    @property
    def connections(self) -> int:
        """How many connections there are now."""
        return len(self._lines)

    # -- inside, all of it in the cable's own thread --------------------------------------------------------------

    def _do(self, act: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        asyncio.run_coroutine_threadsafe(act(*args), self._loop).result(10)

    async def _set(self, name: str, value: object) -> None:
        setattr(self, name, value)

    async def _up(self) -> None:
        self._held, self._dropped, self._bytes_per_s = set(), set(), 0.0
        if self._plugs:
            await self._stop_listening()
        if self._listener is None:
            self._listener = socket.create_server(self.address, reuse_port=False)
            self._listener.setblocking(False)
            self.address = self._listener.getsockname()[:2]
            self._accepting = asyncio.create_task(self._accept(self._listener))

    async def _swallow(self) -> None:
        self._held = {"there", "back"}
        await self._stop_listening()
        self._listener = socket.create_server(self.address, backlog=0)
        # Linux drops what comes to a listener whose queue is full: so a connection stays without an answer.
        for _ in range(2):
            plug = socket.socket()
            plug.setblocking(False)
            plug.connect_ex(self.address)
            self._plugs.append(plug)
        await asyncio.sleep(0.05)

    async def _stop_listening(self) -> None:
        if self._accepting is not None:
            self._accepting.cancel()
            await asyncio.gather(self._accepting, return_exceptions=True)
        for sock in (*self._plugs, *([self._listener] if self._listener else [])):
            sock.close()
        self._plugs, self._accepting, self._listener = [], None, None

    async def _down(self) -> None:
        await self._stop_listening()
        await self._reset()

    async def _reset(self) -> None:
        lines, self._lines = self._lines, set()
        for line in lines:
            for task in line.tasks:
                task.cancel()
            await asyncio.gather(*line.tasks, return_exceptions=True)
            line.end(reset=True)

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            near, _ = await self._loop.sock_accept(listener)
            near.setblocking(False)
            line = _Line(near)
            self._lines.add(line)
            line.tasks.append(asyncio.create_task(self._serve(line)))

    async def _serve(self, line: _Line) -> None:
        far = line.far = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        far.setblocking(False)
        try:
            await self._pass("there")
            await self._loop.sock_connect(far, self.target)
            async with asyncio.TaskGroup() as group:
                line.tasks += [
                    group.create_task(self._pump("there", line.near, far)),
                    group.create_task(self._pump("back", far, line.near)),
                ]
        except (OSError, ExceptionGroup):
            line.end(reset=True)
        else:
            line.end(reset=False)
        self._lines.discard(line)

    async def _pump(self, way: Direction, source: socket.socket, sink: socket.socket) -> None:
        fresh = way == "there"
        while True:
            await self._pass(way)
            data = await self._loop.sock_recv(source, _CHUNK)
            if fresh:
                self.heads.append(data[:8])
                fresh = False
            await self._pass(way)  # it may have been damaged while nothing came
            if way in self._dropped:
                if not data:
                    return
                continue
            if not data:
                sink.shutdown(socket.SHUT_WR)
                return
            if self._bytes_per_s:
                await asyncio.sleep(len(data) / self._bytes_per_s)
            await self._loop.sock_sendall(sink, data)
            self.moved[way] += len(data)

    async def _pass(self, way: Direction) -> None:
        while way in self._held:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
