"""This machine as a host: the same interface without SSH, the same scripts in the same shell."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Sequence

from qmp_migrate.errors import ChannelRefused, CommandFailed, ConnectionLost
from qmp_migrate.hosts import files
from qmp_migrate.hosts.base import OUTPUT_LIMIT, Completed, HeldLock, check_unix_path
from qmp_migrate.hosts.lock import LockTable, Streams
from qmp_migrate.hosts.lock_scripts import HOLDER
from qmp_migrate.hosts.session import start_session
from qmp_migrate.hosts.shell_command import checked, command_line, script_argv
from qmp_migrate.hosts.timing import USUAL, Timing


class LocalHost:
    """This machine; see :class:`~qmp_migrate.hosts.base.Host` for what each method does.

    Args:
        name: The host's name in the settings.
        timing: How often what holds its locks is spoken to.
    """

    def __init__(self, name: str, timing: Timing = USUAL) -> None:
        self._name = name
        self._timing = timing
        self._locks = LockTable(name, self._start_holder, timing)
        self._holders: list[Process] = []

    @property
    def name(self) -> str:
        """The host's name in the settings."""
        return self._name

    async def connect(self) -> None:
        """Nothing to do: we are here."""

    async def close(self) -> None:
        """Give all locks back; see :meth:`qmp_migrate.hosts.base.Host.close`."""
        locks, self._locks = self._locks, LockTable(self._name, self._start_holder, self._timing)
        await locks.close()
        holders, self._holders = self._holders, []
        for process in holders:
            await process.wait()  # its standard input is closed, so it ends

    async def run(
        self, argv: Sequence[str], *, input: bytes = b"", timeout: float = 10.0, check: bool = True
    ) -> Completed:
        """Run one command; see :meth:`qmp_migrate.hosts.base.Host.run`."""
        completed = await self._execute(argv, input, timeout, OUTPUT_LIMIT)
        return checked(completed, self._name, argv[0]) if check else completed

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
        return checked(completed, self._name, "a script") if check else completed

    async def open_unix(self, path: str, *, timeout: float = 5.0) -> socket.socket:
        """Connect to a UNIX socket; see :meth:`qmp_migrate.hosts.base.Host.open_unix`."""
        check_unix_path(self._name, path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            async with asyncio.timeout(timeout):
                await asyncio.get_running_loop().sock_connect(sock, path)
        except (OSError, TimeoutError) as error:
            sock.close()
            raise ChannelRefused(
                f"cannot connect to the socket {path}: {getattr(error, 'strerror', None) or 'no answer'}",
                hint="nobody listens there: the guest is not running, runs elsewhere, or belongs to another user",
                host=self._name,
            ) from error
        except BaseException:
            sock.close()
            raise
        return sock

    async def read_file(self, path: str, *, limit: int = 1 << 20, offset: int = 0) -> bytes:
        """Read a part of a file; see :meth:`qmp_migrate.hosts.base.Host.read_file`."""
        argv = script_argv(files.READ, [path, str(offset), str(limit)])
        return files.content(await self._execute(argv, b"", files.TIMEOUT_S, limit), path, self._name)

    async def write_file(self, path: str, data: bytes, *, mode: int = 0o600) -> None:
        """Write a file atomically; see :meth:`qmp_migrate.hosts.base.Host.write_file`."""
        argv = script_argv(files.WRITE, files.write_args(path, data, mode))
        files.written(await self._execute(argv, data, files.TIMEOUT_S, OUTPUT_LIMIT), path, self._name)

    async def hold_lock(self, path: str, *, owner: str) -> HeldLock:
        """Take a lock; see :meth:`qmp_migrate.hosts.base.Host.hold_lock`.

        When this process is frozen until the lease is over, the lock ends, but the monitors that it has open stay so:
        there is no SSH connection that could be ended.
        """
        return await self._locks.hold(path, owner)

    # -- inside ----------------------------------------------------------------------------------------------------

    async def _execute(self, argv: Sequence[str], data: bytes, timeout: float, limit: int) -> Completed:
        command_line(self._name, argv)  # refuses the same words as over SSH
        try:
            # A session of its own: Ctrl-C in our terminal must not reach it.
            process = await start_session(*argv, stdin=PIPE, stdout=PIPE, stderr=PIPE)
        except OSError as error:
            raise CommandFailed(
                f"cannot start {argv[0]!r}: {error.strerror}", returncode=127, host=self._name
            ) from error
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            async with asyncio.timeout(timeout):
                _, (stdout, cut), (stderr, also_cut) = await asyncio.gather(
                    _feed(process, data), _collect(process.stdout, limit), _collect(process.stderr, limit)
                )
                returncode = await process.wait()
        except BaseException as error:
            await asyncio.shield(_end_group(process))
            if not isinstance(error, TimeoutError):
                raise
            raise ConnectionLost(
                f"{argv[0]!r} did not end within {timeout:g} s",
                hint="it was given up; look how far it got before you repeat it",
                host=self._name,
            ) from None
        return Completed(returncode, stdout, stderr, cut or also_cut)

    async def _start_holder(self) -> Streams:
        argv = script_argv(
            HOLDER, [str(self._timing.lease_s), "locks"]
        )  # an sshd above us is how somebody logged in here
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, start_new_session=True
        )
        self._holders = [holder for holder in self._holders if holder.returncode is None]
        self._holders.append(process)
        assert process.stdout is not None
        assert process.stdin is not None
        return process.stdout, process.stdin


async def _end_group(process: Process) -> None:
    """End a command that is given up, and what it started, except what has a session of its own by now."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await process.wait()


async def _feed(process: Process, data: bytes) -> None:
    assert process.stdin is not None
    # A command that does not read its input has closed it: how it ends is then told by its status.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        process.stdin.write(data)
        await process.stdin.drain()
    process.stdin.close()


async def _collect(stream: asyncio.StreamReader, limit: int) -> tuple[bytes, bool]:
    kept = bytearray()
    cut = False
    while data := await stream.read(1 << 16):
        room = limit - len(kept)
        cut |= len(data) > room
        kept += data[:room]
    return bytes(kept), cut
