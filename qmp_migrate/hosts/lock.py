"""Locks on a host: ``flock(1)`` held by a process that ends with the connection.

One *holder*, a small shell script, serves up to :data:`LOCKS_PER_HOLDER` locks: it holds them itself, on descriptors 3
to 9 (all that a POSIX shell can name), so there is no child that could outlive it. It ends, and the kernel frees every
lock it had, when

- its standard input ends: the controller closed the connection, was killed, or sshd was;
- it is killed itself;
- it heard nothing for :attr:`Timing.lease_s` seconds: the controller is frozen, or the network to it is cut. Without this its
  lock would keep everybody out until sshd's TCP keep-alive gives up after two hours. Before its locks become free it
  ends the whole SSH connection of that controller and waits until that is proven: whoever gets the lock next finds the
  monitors free, and a controller that wakes up late finds every channel closed. On this machine without SSH there is
  no connection to end: then only the locks end.

The controller gives its locks up first: a sign of life that is not answered within :data:`_ANSWER_S` sets
:attr:`HeldLock.lost`, and :attr:`Timing.beat_s` and :data:`_ANSWER_S` together are less than the lease.

A released lock file is removed while it is still locked; whoever opened it meanwhile notices that the path no longer
leads to the file it locked, and tries again. After a crash the file stays, unlocked, and the next holder takes it over.

Beside a lock whose path ends in ``.lock`` there is a ``.beat`` file while it is held: the host's uptime in seconds (the
first word of ``/proc/uptime``) at the controller's last sign of life. Others on that host, as the agent, learn from it
that a controller is gone or frozen before its lease is over. It goes with the lock, and stays after a crash.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from qmp_migrate.errors import ConnectionLost, FileFailed, LockBusy, QmpMigrateError
from qmp_migrate.hosts import lock_scripts
from qmp_migrate.hosts.base import HeldLock
from qmp_migrate.hosts.timing import Timing

if TYPE_CHECKING:
    from qmp_migrate.hosts.base import Host

#: Descriptors 3 to 9.
LOCKS_PER_HOLDER = 7
#: Holders on one connection: each takes one of the ten sessions that sshd allows.
HOLDERS = 4
# Seconds for an answer. A hung connection is noticed by the watchdog of the host, in about the same time.
_ANSWER_S = 20.0
# Seconds for ending a holder of our own that is left: a hung sshd is killed after one, its zombie may take a while.
_END_S = 15.0

#: Standard output and standard input of a holder.
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class LockTable:
    """All locks held on one host by this controller, over one connection.

    Args:
        host: The host's name, for messages.
        start: Runs :data:`~qmp_migrate.hosts.lock_scripts.HOLDER` on the host; returns its standard output and input.
        timing: How often they are spoken to.
    """

    def __init__(self, host: str, start: Callable[[], Awaitable[Streams]], timing: Timing) -> None:
        self._host = host
        self._start = start
        self._timing = timing
        self._holders: list[_Holder] = []
        self._starting = asyncio.Lock()
        self._giving_back: set[asyncio.Task[None]] = set()
        self._closed = False

    async def hold(self, path: str, owner: str) -> HeldLock:
        """Take a lock; see :meth:`~qmp_migrate.hosts.base.Host.hold_lock`."""
        if any(character in path + owner for character in "\t\n\0"):
            raise FileFailed(f"not a lock path, or not one line of owner text: {path!r}, {owner!r}", host=self._host)
        # A question to a holder must get its answer, or the next one would get it: cancelling gives the lock back after.
        taking = asyncio.create_task(self._take(path, owner))
        try:
            return await asyncio.shield(taking)
        except asyncio.CancelledError:
            giving_back = asyncio.create_task(_release_unwanted(taking))
            self._giving_back.add(giving_back)
            giving_back.add_done_callback(self._giving_back.discard)
            raise

    async def _take(self, path: str, owner: str) -> HeldLock:
        async with self._starting:  # one after the other: two callers must not start two holders for two locks
            if self._closed:
                raise _lost(self._host)
            self._holders = [holder for holder in self._holders if not holder.ended]
            holder = next((holder for holder in self._holders if holder.free), None)
            if holder is None:
                if len(self._holders) == HOLDERS:
                    raise LockBusy(
                        f"this controller holds {HOLDERS * LOCKS_PER_HOLDER} locks on the host already",
                        hint="move fewer guests at once",
                        host=self._host,
                    )
                holder = await _Holder.start(self._host, await self._start(), self._timing)
                self._holders.append(holder)
            return await holder.take(path, owner)

    async def close(self) -> None:
        """End all holders, also one that is just being started; their locks are free and `lost`."""
        self._closed = True
        for holder in list(self._holders):
            await holder.close()  # whoever waits for its answer goes on
        async with self._starting:
            for holder in self._holders:
                await holder.close()
        await asyncio.gather(*self._giving_back)


class _Holder:
    """The controller's side of one holder process."""

    def __init__(self, host: str, streams: Streams, timing: Timing) -> None:
        self._host = host
        self._timing = timing
        self._reader, self._writer = streams
        self._turn = asyncio.Lock()
        self._answers: asyncio.Queue[str] = asyncio.Queue()
        self._slots: dict[int, HeldLock | None] = dict.fromkeys(range(3, 3 + LOCKS_PER_HOLDER))
        self.ended = False
        self._spoken = asyncio.Event()
        self._listening = asyncio.create_task(self._listen(), name=f"{host}-locks-listen")
        self._beating = asyncio.create_task(self._beat(), name=f"{host}-locks-beat")

    @classmethod
    async def start(cls, host: str, streams: Streams, timing: Timing) -> _Holder:
        holder = cls(host, streams, timing)
        try:
            greeting = await holder._answer()
            while greeting != "ready" and not greeting.startswith("error "):
                greeting = await holder._answer()  # a login shell that greets everybody
            if greeting != "ready":
                raise FileFailed(f"locks cannot be held: {greeting.removeprefix('error ')}", host=host)
        except BaseException:
            await holder.close()
            raise
        return holder

    @property
    def free(self) -> bool:
        return not self.ended and None in self._slots.values()

    @property
    def _holds_any(self) -> bool:
        return any(self._slots.values())

    async def take(self, path: str, owner: str) -> HeldLock:
        slot = next(number for number, lock in self._slots.items() if lock is None)
        lock = self._slots[slot] = HeldLock(path, self, slot)
        answer = ""
        try:
            answer = await self._ask(f"lock\t{slot}\t{path}\t{owner}")
        finally:
            if answer != "ok":
                self._slots[slot] = None
        verb, _, rest = answer.partition(" ")
        if verb == "busy":
            raise LockBusy(
                f"{path} is locked by {_printable(rest) or 'someone who has not said who'}",
                hint="wait until that ends, or end it; a lock ends with the process that holds it",
                host=self._host,
            )
        if verb != "ok":
            raise FileFailed(
                f"cannot lock {path}: {rest}",
                hint="the directory must exist on the host and belong to the SSH user",
                host=self._host,
            )
        self._spoken.set()
        return lock

    async def drop(self, lock: HeldLock) -> None:
        if self.ended or self._slots.get(lock.slot) is not lock:
            return
        with contextlib.suppress(ConnectionLost):  # then it is free as well
            await self._ask(f"unlock\t{lock.slot}\t{lock.path}\t")
        self._slots[lock.slot] = None

    async def close(self) -> None:
        self._end()
        self._listening.cancel()
        await asyncio.gather(self._listening, self._beating, return_exceptions=True)
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def _ask(self, line: str) -> str:
        """Send one line and wait for the one that answers it.

        An answer that does not come in time ends the holder: it would be taken for the answer to the next question.
        """
        async with self._turn:
            if self.ended:
                raise _lost(self._host)
            try:
                self._writer.write(line.encode("utf-8", "surrogateescape") + b"\n")
                return await self._answer()
            except BaseException:
                self._end()
                raise

    async def _answer(self) -> str:
        try:
            async with asyncio.timeout(_ANSWER_S):
                answer = await self._answers.get()
        except TimeoutError:
            raise _lost(self._host) from None
        if not answer:
            raise _lost(self._host)
        return answer

    async def _listen(self) -> None:
        """Pass on the holder's lines. Their end is the end of its locks, and is told at once."""
        try:
            with contextlib.suppress(OSError, ValueError):
                while (line := await self._reader.readline()).endswith(b"\n"):
                    self._answers.put_nowait(line.decode("utf-8", "replace").rstrip("\n"))
        finally:
            self._end()
            self._answers.put_nowait("")

    async def _beat(self) -> None:
        with contextlib.suppress(ConnectionLost):
            while True:
                pause_s = self._timing.beat_s if self._holds_any else self._timing.idle_beat_s
                try:
                    async with asyncio.timeout(pause_s):
                        await self._spoken.wait()
                except TimeoutError:
                    await self._ask("beat")
                # A lock that was just taken was a sign of life itself; from now on they come more often.
                self._spoken.clear()

    def _end(self) -> None:
        if not self.ended:
            self.ended = True
            self._writer.close()
            self._beating.cancel()
            for lock in self._slots.values():
                if lock is not None and not lock._released:
                    lock.lost.set()


def _lost(host: str) -> ConnectionLost:
    return ConnectionLost(
        "the process that holds our locks on this host has ended",
        hint="the connection was cut, or the process was killed; its locks are free",
        host=host,
    )


async def end_holder(host: Host, path: str, owner: str) -> bool:
    """End a holder that is left of an earlier connection of ours, and that connection with everything on it.

    The host may not have noticed yet that the connection is gone: until its lease is over, the old holder keeps the
    lock from us, and the old channels keep the monitors.

    Args:
        host: The host, over a new connection.
        path: The lock file.
        owner: The owner line that the lock was taken with; a lock with another one is left alone.

    Returns:
        True when the holder is proven gone, False where the lock is somebody else's.

    Raises:
        CommandFailed: It cannot be ended, or the host cannot tell.
        TransportError: The outcome is unknown.
    """
    answer = (await host.script(lock_scripts.END_HOLDER, [path, owner], timeout=_END_S)).text
    return answer == "ended"


async def _release_unwanted(taking: asyncio.Task[HeldLock]) -> None:
    with contextlib.suppress(QmpMigrateError):
        await (await taking).release()


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)[:300]
