"""One QMP connection to one QEMU.

`Monitor` stands on `qemu.qmp.QMPClient` (framing, negotiation, out-of-band) and adds what a controller of production
guests needs on top: a time limit on every wait, typed errors, event streams that *end* with the connection (those of
the library go silent), the controller's clock on every event, no memory growth however long it runs (the library's own
listener keeps every event for ever), and the last words of a QEMU that ends (`Monitor.shutdown`).

A monitor is fed a connected socket, so it does not care whether QEMU is on this machine or behind SSH::

    monitor = await Monitor.connect(sock, label="web1@a", host="a")
    with monitor.events("STOP", "RESUME") as events:
        await monitor.execute("stop")
        event = await events.get(timeout=5)
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from qemu.qmp import ExecInterruptedError, ExecuteError, QMPError, Runstate

from qmp_migrate.errors import MonitorBusy, MonitorLost, MonitorTimeout, QmpCommandFailed
from qmp_migrate.qemu import timeouts
from qmp_migrate.qemu.connection import Client

IN_FLIGHT: Final = 7
"""QEMU stops reading at 8 queued in-band commands, and then out-of-band ones wait too (QMP specification)."""

STREAM_LIMIT: Final = 10_000
"""Events one stream keeps for a slow reader; beyond that the oldest go, and the stream says so in `dropped`."""


@dataclass(frozen=True, slots=True)
class Event:
    """One QMP event.

    Attributes:
        name: For example ``MIGRATION``.
        data: The event's members, ``{}`` where it has none.
        seconds: QEMU's clock on its host, seconds since the epoch.
        at: The controller's ``time.monotonic()`` at arrival: events of two hosts compare on this one.
    """

    name: str
    data: Mapping[str, Any]
    seconds: float
    at: float


@dataclass(slots=True, eq=False)
class EventStream:
    """Events of one monitor, in order. Ends (`StopAsyncIteration`, `MonitorLost` from `get`) with the monitor."""

    names: frozenset[str]
    dropped: int = 0
    _queue: asyncio.Queue[Event | None] = field(default_factory=asyncio.Queue)
    _ended: bool = False

    def _put(self, event: Event) -> None:
        if self.names and event.name not in self.names:
            return
        if self._queue.qsize() >= STREAM_LIMIT:
            self._queue.get_nowait()
            self.dropped += 1
        self._queue.put_nowait(event)

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._queue.put_nowait(None)

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        event = await self._queue.get()
        if event is None:
            self._queue.put_nowait(None)
            raise StopAsyncIteration
        return event

    async def get(self, *, timeout: float) -> Event:
        """Return the next event.

        Args:
            timeout: Longest wait in seconds.

        Raises:
            MonitorTimeout: No event in time.
            MonitorLost: The monitor is gone.
        """
        try:
            async with asyncio.timeout(timeout):
                return await anext(self)
        except TimeoutError:
            raise MonitorTimeout(f"no {'/'.join(sorted(self.names))} event within {timeout:g} s") from None
        except StopAsyncIteration:
            raise MonitorLost("the monitor closed while an event was awaited") from None


class Monitor:
    """A QMP connection. Made by `connect`; not re-usable after it is closed.

    Attributes:
        label: For logs and messages, for example ``web1@a``.
        host: The host's name for errors, or ``None``.
        closed: Set once the connection is gone, for whatever reason; all that was received has been read by then.
        shutdown: The last ``SHUTDOWN`` event, heard whether or not anybody listens: why QEMU ends, once it is gone.
    """

    def __init__(self, client: Client, *, label: str, host: str | None, time_factor: float = 1.0) -> None:
        self.label = label
        self.host = host
        self.closed = asyncio.Event()
        self.shutdown: Event | None = None
        self._stays = asyncio.Event()
        self._client = client
        self._time_factor = time_factor
        self._streams: set[EventStream] = set()
        self._slots = asyncio.Semaphore(IN_FLIGHT)
        self._watcher: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None

    @classmethod
    async def connect(
        cls,
        sock: socket.socket,
        *,
        label: str,
        host: str | None = None,
        timeout: float = timeouts.CONNECT_S,
        time_factor: float = 1.0,
    ) -> Monitor:
        """Greet QEMU over a connected socket and negotiate (out-of-band included where offered).

        Args:
            sock: A connected stream socket; owned by the monitor from here on.
            label: For logs and messages.
            host: Host name for errors.
            timeout: Seconds for greeting and negotiation together.
            time_factor: By what this and every time limit of a command is multiplied; for slow hosts.

        Raises:
            MonitorBusy: No greeting in time; another client holds the monitor, or QEMU hangs.
            MonitorLost: The peer closed, or does not speak QMP.
        """
        client = Client(label)
        # The library logs failures that we raise: ours is the word.
        client.logger.setLevel(logging.CRITICAL + 1)
        monitor = cls(client, label=label, host=host, time_factor=time_factor)
        timeout *= time_factor
        # A filter that never accepts: the library's listener keeps nothing, and we see each event at once.
        client.events.event_filter = monitor._dispatch
        sock.setblocking(False)
        try:
            async with asyncio.timeout(timeout):
                await client.connect(sock)
        except TimeoutError:
            sock.close()
            raise MonitorBusy(
                f"no QMP greeting from {label} within {timeout:g} s",
                hint="a monitor serves one client at a time: end the other one, or give QEMU a second -qmp socket",
                host=host,
            ) from None
        except (
            QMPError,
            OSError,
            EOFError,
            AssertionError,
        ) as error:  # the library asserts that the peer is still there
            with contextlib.suppress(Exception):  # and leaves its tasks then: their ends are looked at here
                await client.disconnect()
            sock.close()
            raise MonitorLost(
                f"{label} does not speak QMP: {_reason(error)}",
                hint="is this the guest's QMP socket, and does its QEMU still run?",
                host=host,
            ) from error
        except BaseException:
            sock.close()
            raise
        monitor._watcher = asyncio.create_task(monitor._watch(), name=f"monitor {label}")
        return monitor

    def _dispatch(self, message: Mapping[str, Any]) -> bool:
        data = message.get("data")
        event = Event(
            name=str(message["event"]),
            data=data if isinstance(data, Mapping) else {},
            seconds=_seconds(message.get("timestamp")),
            at=time.monotonic(),
        )
        if event.name == "SHUTDOWN":
            self.shutdown = event
            self._stays.clear()
        elif event.name in {"RESET", "RESUME"}:
            self.shutdown = None  # with -no-shutdown a QEMU stays, and may go on
            self._stays.set()
        for stream in tuple(self._streams):
            stream._put(event)
        return False

    async def _watch(self) -> None:
        """Notice the end of the connection, however it comes, and end every stream."""
        while self._client.runstate == Runstate.RUNNING:
            await self._client.runstate_changed()
        self._mark_closed()
        await self._disconnect()

    async def _disconnect(self) -> None:
        """End the library's session, once, however many ask for it: it must not be ended twice at the same time."""

        async def end() -> None:
            with contextlib.suppress(Exception):  # it re-raises the cause (EOFError, OSError): known already
                await self._client.disconnect()

        if self._ending is None:
            self._ending = asyncio.create_task(end())
        await asyncio.shield(self._ending)

    def _mark_closed(self) -> None:
        self.closed.set()
        self._stays.set()
        for stream in tuple(self._streams):
            stream._end()

    @contextlib.contextmanager
    def events(self, *names: str) -> Iterator[EventStream]:
        """Open a stream of events (all of them without `names`). Open it *before* the command that causes them."""
        stream = EventStream(frozenset(names))
        if self.closed.is_set():
            stream._end()
        self._streams.add(stream)
        try:
            yield stream
        finally:
            self._streams.discard(stream)

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        *,
        oob: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """Run one command and return its ``return`` member.

        Args:
            command: For example ``query-status``.
            arguments: Its arguments.
            oob: Run it out of band: answered even while QEMU's main loop hangs (``yank``, ``migrate-recover``…).
            timeout: Seconds; default from `qmp_migrate.qemu.timeouts`.

        Raises:
            QmpCommandFailed: QEMU answered with an error.
            MonitorTimeout: No answer in time: the outcome is unknown, the monitor stays usable.
            MonitorLost: The connection ended: the outcome is unknown.

        A QEMU that has said ``SHUTDOWN`` is given `timeouts.ENDING_S` to end before it is asked anything in band.
        """
        seconds = (timeouts.limit(command, oob=oob) if timeout is None else timeout) * self._time_factor
        if self.closed.is_set() or self._client.runstate != Runstate.RUNNING:
            raise self._lost(command, sent=False)
        try:
            async with asyncio.timeout(seconds):
                if oob:
                    return await self._client.execute(command, arguments, oob=True)
                if self.shutdown is not None and await self._ends(self.shutdown.at):
                    raise self._lost(command, sent=False)
                return await self._in_turn(command, arguments)
        except TimeoutError:
            raise MonitorTimeout(
                f"no answer to {command} from {self.label} within {seconds:g} s",
                hint="QEMU may be stopped or its main loop may hang; its state is unknown until it answers",
                host=self.host,
            ) from None
        except ExecuteError as error:
            raise QmpCommandFailed(
                f"{command}: {error}",
                command=command,
                error_class=error.error_class,
                desc=str(error),
                host=self.host,
            ) from error
        except (ExecInterruptedError, QMPError, OSError, EOFError) as error:
            raise self._lost(command, sent=True) from error

    async def _ends(self, since: float) -> bool:
        """Give a QEMU that has said ``SHUTDOWN`` the time to end, and tell whether it has: see `timeouts.ENDING_S`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(since + timeouts.ENDING_S * self._time_factor):
                await self._stays.wait()
        return self.closed.is_set()

    async def _in_turn(self, command: str, arguments: Mapping[str, object] | None) -> Any:
        """Run a command in band. Its slot is free only when it is answered, also where nobody waits for that any more.

        What was given up still stands in the queue of a QEMU whose main loop hangs. Were more sent, that queue would be full,
        and then QEMU reads nothing any more, out-of-band commands neither: those which free it.
        """
        await self._slots.acquire()
        running = asyncio.create_task(self._client.execute(command, arguments))
        running.add_done_callback(self._answered)
        return await asyncio.shield(running)

    def _answered(self, running: asyncio.Task[Any]) -> None:
        self._slots.release()
        if not running.cancelled():
            running.exception()  # whoever waits for it sees it; nobody may

    def _lost(self, command: str, *, sent: bool) -> MonitorLost:
        return MonitorLost(
            f"the monitor of {self.label} is gone ({command})",
            sent=sent,
            hint="QEMU has ended, or the connection to its host has",
            host=self.host,
        )

    async def close(self) -> None:
        """Close the connection. Never raises; safe to call twice."""
        watcher, self._watcher = self._watcher, None
        self._mark_closed()
        await self._disconnect()
        if watcher is not None:
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)


def _seconds(stamp: object) -> float:
    """Return QEMU's event time; 0.0 for anything else than QEMU sends."""
    match stamp:
        case {"seconds": int(seconds), "microseconds": int(micros)}:
            return seconds + micros / 1e6
    return 0.0


def _reason(error: BaseException) -> str:
    root: BaseException = error
    while root.__cause__ is not None:
        root = root.__cause__
    return str(root) or type(root).__name__
