"""Hosts reached over SSH.

paramiko blocks, so every call of it runs in a worker thread of the host's own small pool; asyncio's default pool is
left alone. What arrives from a guest's monitor does not pass the pool: see :mod:`qmp_migrate.hosts.ssh.socket_pump`.

An SSH server that hangs (rather than dies) is noticed by a watchdog: paramiko itself sends keep-alives but never misses
their answers. Everything pending then fails with :class:`~qmp_migrate.errors.ConnectionLost`.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from qmp_migrate.errors import ChannelRefused, ConnectionLost, HostUnreachable
from qmp_migrate.hosts import files
from qmp_migrate.hosts.base import OUTPUT_LIMIT, Completed, HeldLock, HostAddress, check_unix_path
from qmp_migrate.hosts.lock import HOLDERS, LockTable, Streams
from qmp_migrate.hosts.lock_scripts import HOLDER
from qmp_migrate.hosts.shell_command import (
    END_GROUP,
    GREETING_LIMIT,
    behind_login_shell,
    checked,
    command_line,
    leader,
    not_refused,
    relay_refused,
    script_argv,
    without_greeting,
)

if TYPE_CHECKING:
    from qmp_migrate.hosts.ssh.connection import Connection
    from qmp_migrate.hosts.ssh.remote_process import Execution

T = TypeVar("T")

#: Commands at once on one connection; more wait. With the lock holders, and one more that ends commands that were given
#: up, this stays within sshd's default MaxSessions (10).
SESSIONS = 10 - HOLDERS - 1
RELAYED_MONITORS = 3
LINE_LIMIT = 1000
#: How long ending a command that was given up may take.
KILL_LIMIT_S = 5.0
#: Seconds until a host that hung up early is asked again: about twice as long each time, at random, so that those that were
#: sent away together do not come back together.
FIRST_PAUSE_S = 0.1
MOST_PAUSE_S = 1.0


class SshHost:
    """A host reached over SSH; see :class:`~qmp_migrate.hosts.base.Host` for what each method does.

    Args:
        address: How to reach it.
    """

    def __init__(self, address: HostAddress) -> None:
        self.address = address
        self._connection: Connection | None = None
        self._connecting = asyncio.Lock()
        # Monitors behind a relay are sessions, too.
        self._sessions = asyncio.Semaphore(SESSIONS - RELAYED_MONITORS if address.relay else SESSIONS)
        self._killing = asyncio.Lock()
        self._endings: set[asyncio.Task[None]] = set()
        self._locks = LockTable(address.name, self._start_holder, address.timing)
        self._watchdog: asyncio.Task[None] | None = None
        self._pool: ThreadPoolExecutor | None = None

    @property
    def name(self) -> str:
        """The host's name in the settings."""
        return self.address.name

    async def connect(self) -> None:
        """Connect; see :meth:`qmp_migrate.hosts.base.Host.connect`."""
        async with self._connecting:
            if self._connection is not None and self._connection.active:
                return
            await self._close()
            # More than can ever be blocked at once (a session and its end, sockets, a sign of life), so that closing
            # something never waits for a free worker. Threads are only made when needed.
            self._pool = ThreadPoolExecutor(32, thread_name_prefix=f"ssh-{self.name}")
            try:
                connection = await self._open()
            except BaseException:
                await self._close()
                raise
            self._connection = connection
            self._locks = LockTable(self.name, self._start_holder, self.address.timing)
            self._watchdog = asyncio.create_task(self._watch(connection), name=f"{self.name}-ssh-watchdog")

    async def close(self) -> None:
        """End everything; see :meth:`qmp_migrate.hosts.base.Host.close`."""
        async with self._connecting:
            await self._close()

    async def run(
        self, argv: Sequence[str], *, input: bytes = b"", timeout: float = 10.0, check: bool = True
    ) -> Completed:
        """Run one command; see :meth:`qmp_migrate.hosts.base.Host.run`."""
        completed = await self._execute(argv, input, timeout, OUTPUT_LIMIT)
        return checked(completed, self.name, argv[0]) if check else completed

    async def script(
        self,
        source: str,
        args: Sequence[str] = (),
        *,
        input: bytes = b"",
        timeout: float = 10.0,
        check: bool = True,
    ) -> Completed:
        """Run a shell script of ours; see :meth:`qmp_migrate.hosts.base.Host.script`."""
        completed = await self._execute(script_argv(source, args), input, timeout, OUTPUT_LIMIT)
        return checked(completed, self.name, "a script") if check else completed

    async def open_unix(self, path: str, *, timeout: float = 5.0) -> socket.socket:
        """Connect to a UNIX socket; see :meth:`qmp_migrate.hosts.base.Host.open_unix`."""
        check_unix_path(self.name, path)
        connection = self._connected()
        timeout *= self.address.time_factor
        if self.address.relay:
            return await self._through_relay(connection, path, timeout)
        future = self._submit(connection.open_unix, path, timeout)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            future.add_done_callback(_close_unwanted)
            raise

    async def _through_relay(self, connection: Connection, path: str, timeout: float) -> socket.socket:
        """Connect to a monitor through the relay: its first line says whether it does."""
        command = command_line(self.name, ["qmp-relay", "connect", path])
        sock = await self._submit(connection.open_process, command, timeout)
        loop = asyncio.get_running_loop()
        line = b""
        try:
            async with asyncio.timeout(timeout):
                while not line.endswith(b"\n") and len(line) < LINE_LIMIT and (byte := await loop.sock_recv(sock, 1)):
                    line += byte
        except BaseException as error:
            sock.close()
            if not isinstance(error, TimeoutError):
                raise
            raise ChannelRefused(
                f"the relay did not connect to {path} within {timeout:g} s",
                hint="is the host overloaded?",
                host=self.name,
            ) from None
        if line == b"ok\n":
            return sock
        sock.close()
        if not line or line.startswith(b"refused: "):
            raise relay_refused(line.removeprefix(b"refused: ") or b"no word; see journalctl -t qmp-relay", self.name)
        reason = line.decode("utf-8", "replace").strip().removeprefix("error ")
        raise ChannelRefused(
            f"cannot connect to {path}: {reason}", hint="does the guest's QEMU still run?", host=self.name
        )

    async def read_file(self, path: str, *, limit: int = 1 << 20, offset: int = 0) -> bytes:
        """Read a part of a file; see :meth:`qmp_migrate.hosts.base.Host.read_file`."""
        argv = script_argv(files.READ, [path, str(offset), str(limit)])
        return files.content(await self._execute(argv, b"", files.TIMEOUT_S, limit), path, self.name)

    async def write_file(self, path: str, data: bytes, *, mode: int = 0o600) -> None:
        """Write a file atomically; see :meth:`qmp_migrate.hosts.base.Host.write_file`."""
        argv = script_argv(files.WRITE, files.write_args(path, data, mode))
        files.written(await self._execute(argv, data, files.TIMEOUT_S, OUTPUT_LIMIT), path, self.name)

    async def hold_lock(self, path: str, *, owner: str) -> HeldLock:
        """Take a lock; see :meth:`qmp_migrate.hosts.base.Host.hold_lock`."""
        self._connected()
        return await self._locks.hold(path, owner)

    # -- inside ----------------------------------------------------------------------------------------------------

    def _connected(self) -> Connection:
        if self._connection is None:
            raise HostUnreachable("not connected", hint="call connect() first", host=self.name)
        return self._connection

    def _submit(self, call: Callable[..., T], *args: object) -> asyncio.Future[T]:
        if self._pool is None:
            raise HostUnreachable("not connected", hint="call connect() first", host=self.name)
        return asyncio.get_running_loop().run_in_executor(self._pool, call, *args)

    @property
    def _connect_limit_s(self) -> float:
        return self.address.connect_timeout_s * self.address.time_factor

    async def _open(self) -> Connection:
        """Open a connection within the time limit, with more than one try where the host hangs up early."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._connect_limit_s
        pause = FIRST_PAUSE_S
        sent_away: HostUnreachable | None = None
        while True:
            connection = await self._submit(_new_connection, self.address)
            try:
                await self._open_until(connection, deadline)
                return connection
            except HostUnreachable as error:
                if connection.hung_up_early:
                    sent_away = error
                elif sent_away is None or loop.time() < deadline:
                    raise
                wait = random.uniform(pause / 2, pause)  # noqa: S311 - spreads callers, hides nothing
                if loop.time() + wait >= deadline:
                    raise sent_away from None  # it says more than that time is up
            await asyncio.sleep(wait)
            pause = min(2 * pause, MOST_PAUSE_S)

    async def _open_until(self, connection: Connection, deadline: float) -> None:
        """Open a connection within the time limit. Giving up closes the socket, which ends the worker's call."""
        opening = self._submit(connection.open)
        try:
            async with asyncio.timeout_at(deadline):
                await asyncio.shield(opening)
        except TimeoutError:
            await self._give_up(connection.close)
            opening.add_done_callback(_forget)  # a resolver that hangs cannot be interrupted: do not wait for it
            raise HostUnreachable(
                f"no SSH connection to {self.address.address}:{self.address.port} within {self._connect_limit_s:g} s",
                hint="the host is slow or hangs; for a slow one, set time_factor in its settings",
                host=self.name,
            ) from None
        except asyncio.CancelledError:
            await self._give_up(connection.close)
            opening.add_done_callback(_forget)
            raise

    async def _close(self) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
            await asyncio.gather(self._watchdog, return_exceptions=True)
            self._watchdog = None
        connection, self._connection = self._connection, None
        if connection is not None:
            await self._submit(connection.close)
        await self._locks.close()
        await asyncio.gather(*self._endings, return_exceptions=True)
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False)  # the connection is closed, so every worker is on its way out

    async def _execute(self, argv: Sequence[str], data: bytes, timeout: float, limit: int) -> Completed:
        from qmp_migrate.hosts.ssh.remote_process import Execution

        connection = self._connected()
        timeout *= self.address.time_factor
        command = command_line(self.name, behind_login_shell(argv, timeout))
        try:
            async with asyncio.timeout(timeout):
                await self._sessions.acquire()
        except TimeoutError:
            raise ChannelRefused(
                f"all {SESSIONS} sessions of the connection were in use for {timeout:g} s; {argv[0]!r} was not started",
                hint="the host is slow, or too much is asked of it at once",
                host=self.name,
            ) from None
        execution = Execution(connection, command, data, limit=limit + GREETING_LIMIT)
        running = self._submit(execution.run, timeout)
        try:
            async with asyncio.timeout(timeout):
                completed = await asyncio.shield(running)
        except BaseException as error:
            if running.done():
                _forget(running)
                self._sessions.release()
            else:
                ending = asyncio.create_task(self._abandon(connection, execution, running))
                self._endings.add(ending)
                ending.add_done_callback(self._endings.discard)
            if not isinstance(error, TimeoutError):
                raise
            raise ConnectionLost(
                f"{argv[0]!r} did not end within {timeout:g} s",
                hint="it was given up; look how far it got before you repeat it",
                host=self.name,
            ) from None
        self._sessions.release()
        return not_refused(without_greeting(completed, limit), self.name)

    async def _abandon(self, connection: Connection, execution: Execution, running: asyncio.Future[Completed]) -> None:
        """End a command that nobody waits for any more, then let others have its session."""
        from qmp_migrate.hosts.ssh.remote_process import Execution

        try:
            await self._give_up(execution.abandon)
            await asyncio.wait([running])
            _forget(running)
            found = leader(bytes(execution.stdout))
            if found is None or not connection.active:
                return  # not begun, or out of reach: timeout(1) on the host ends it
            async with self._killing:  # the one session that the limit on commands leaves free
                killer = Execution(connection, command_line(self.name, script_argv(END_GROUP, found)), b"")
                killing = self._submit(killer.run, KILL_LIMIT_S)
                await asyncio.wait([killing], timeout=KILL_LIMIT_S)
                if not killing.done():
                    await self._give_up(killer.abandon)
                    await asyncio.wait([killing])
                _forget(killing)
        except HostUnreachable:
            pass  # closed meanwhile, and everything with it
        finally:
            self._sessions.release()

    async def _give_up(self, call: Callable[[], None]) -> None:
        """Run ``call``, which ends another one, to its end; there is nothing to end once the pool is gone."""
        if self._pool is not None:
            await asyncio.shield(self._submit(call))

    async def _start_holder(self) -> Streams:
        connection = self._connected()
        command = command_line(self.name, script_argv(HOLDER, [str(self.address.timing.lease_s), "connection"]))
        sock = await self._submit(connection.open_process, command, 10.0)
        return await asyncio.open_connection(sock=sock)

    async def _watch(self, connection: Connection) -> None:
        while connection.active:
            try:
                async with asyncio.timeout(self.address.timing.ping_limit_s):
                    await asyncio.shield(self._submit(connection.ping))
            except TimeoutError:
                break
            await asyncio.sleep(self.address.timing.ping_every_s)
        await self._give_up(connection.close)


def _new_connection(address: HostAddress) -> Connection:
    # In a worker thread: importing paramiko takes 0.2 s, and nothing that only prints a help text should pay for it.
    from qmp_migrate.hosts.ssh.connection import Connection

    return Connection(address)


def _forget(future: asyncio.Future[T]) -> None:
    """Look at an exception that nobody waits for any more, so that asyncio does not complain about it."""
    if not future.cancelled():
        future.exception()


def _close_unwanted(future: asyncio.Future[socket.socket]) -> None:
    if not future.cancelled() and future.exception() is None:
        future.result().close()
