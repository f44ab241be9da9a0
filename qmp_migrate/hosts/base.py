"""What every host can do for us, however it is reached.

:class:`Host` is the port; :class:`~qmp_migrate.hosts.ssh.host.SshHost` and :class:`~qmp_migrate.hosts.local.LocalHost` are
its drivers. Nothing here knows QMP: a host runs commands, moves small files, opens UNIX sockets and holds locks.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from qmp_migrate.errors import ChannelRefused
from qmp_migrate.hosts.timing import USUAL, Timing

#: Standard output and standard error of a command are each kept up to this many bytes; the rest is read and dropped.
OUTPUT_LIMIT = 1 << 20

#: ``sun_path`` is 108 bytes on Linux with the closing NUL: a longer path cannot be bound nor connected.
UNIX_PATH_LIMIT = 107


@dataclass(frozen=True, slots=True)
class HostAddress:
    """Everything needed to reach one host.

    Attributes:
        name: The host's name in the settings; appears in every message.
        address: SSH address: DNS name or IP address.
        port: SSH port.
        user: SSH user; ``None``: the user of this process.
        identity_file: Private key. ``None``: the keys of the SSH agent, then ``~/.ssh/id_*``.
        known_hosts: File with the host's key. ``None``: ``~/.ssh/known_hosts``, then ``/etc/ssh/ssh_known_hosts``.
        jump: ``user@host:port`` of a host to go through (``user@`` and ``:port`` optional), or ``None``.
        local: True where the host is this machine and no SSH is used.
        connect_timeout_s: Seconds for the whole of connecting: TCP, key exchange, authentication.
        relay: The key there has no shell: a relay decides what is done, and leads to monitors.
        timing: How long it may be silent, and how often it is spoken to.
        time_factor: By what time limits over SSH are multiplied, connecting included: more than 1 for slow hosts.
    """

    name: str
    address: str = "127.0.0.1"
    port: int = 22
    user: str | None = None
    identity_file: Path | None = None
    known_hosts: Path | None = None
    jump: str | None = None
    local: bool = False
    connect_timeout_s: float = 10.0
    relay: bool = False
    timing: Timing = USUAL
    time_factor: float = 1.0


@dataclass(frozen=True, slots=True)
class Completed:
    """How a command ended.

    Attributes:
        returncode: Exit status; negative where a signal ended the command.
        stdout: Standard output, at most :data:`OUTPUT_LIMIT` bytes.
        stderr: Standard error, at most :data:`OUTPUT_LIMIT` bytes.
        truncated: True where either stream was longer than what was kept.
    """

    returncode: int
    stdout: bytes
    stderr: bytes
    truncated: bool = False

    @property
    def text(self) -> str:
        """Standard output as text without surrounding white space; bytes that are not UTF-8 are replaced."""
        return self.stdout.decode("utf-8", "replace").strip()

    @property
    def error_text(self) -> str:
        """Standard error as text without surrounding white space; bytes that are not UTF-8 are replaced."""
        return self.stderr.decode("utf-8", "replace").strip()


class LockHolder(Protocol):
    """What holds locks on a host, and gives one back."""

    async def drop(self, lock: HeldLock) -> None:
        """Give a lock back."""


class HeldLock:
    """A lock that is held until :meth:`release`, or until the connection ends.

    Attributes:
        path: The lock file on the host.
        lost: Set when the lock ended without :meth:`release`: someone else may hold it by now.
    """

    def __init__(self, path: str, holder: LockHolder, slot: int) -> None:
        self.path = path
        self.lost = asyncio.Event()
        self._holder = holder
        self.slot = slot
        self._released = False

    async def release(self) -> None:
        """Give the lock back and remove its file. May be called again, and after a loss."""
        if not self._released:
            self._released = True
            await asyncio.shield(asyncio.create_task(self._holder.drop(self)))


class Host(Protocol):
    """One machine that runs guests.

    Every method may raise :class:`~qmp_migrate.errors.ConnectionLost` when the connection ends meanwhile or the time
    limit passes: what was running may then have ended, or not, or may still be running. Cancelling a call is safe and
    means the same.
    """

    @property
    def name(self) -> str:
        """The host's name in the settings."""
        ...

    async def connect(self) -> None:
        """Connect; does nothing when connected. After a loss it connects anew (locks that were held stay lost).

        Raises:
            HostUnreachable: Refused, no route, or not within the time limit.
            HostKeyError: The host's key is unknown, revoked, or not the one that is known.
            AuthenticationFailed: The host accepted none of our keys.
        """
        ...

    async def close(self) -> None:
        """End everything that lives on the connection: channels, sockets, threads, locks. May be called again."""
        ...

    async def run(
        self, argv: Sequence[str], *, input: bytes = b"", timeout: float = 10.0, check: bool = True
    ) -> Completed:
        """Run one command and wait for its end.

        Args:
            argv: Program and arguments; no shell syntax has a meaning in them.
            input: Standard input.
            timeout: Seconds until the call gives up; the command's outcome is then unknown.
            check: Raise when the exit status is not 0.

        Raises:
            CommandFailed: The exit status is not 0 and ``check`` is set.
            ConnectionLost: The outcome is unknown: connection lost, or the time limit passed.
            ChannelRefused: The host allows no further session.
        """
        ...

    async def script(
        self,
        source: str,
        args: Sequence[str] = (),
        *,
        input: bytes = b"",
        timeout: float = 10.0,
        check: bool = True,
    ) -> Completed:
        """Run a POSIX shell script of ours and wait for its end.

        Args:
            source: The script: always a constant. What varies arrives in ``args``.
            args: ``$1``, ``$2``, … of the script; no shell syntax has a meaning in them.
            input: Standard input.
            timeout: Seconds until the call gives up; the script's outcome is then unknown.
            check: Raise when the exit status is not 0.

        Raises:
            CommandFailed: The exit status is not 0 and ``check`` is set.
            ConnectionLost: The outcome is unknown: connection lost, or the time limit passed.
            ChannelRefused: The host allows no further session.
        """
        ...

    async def open_unix(self, path: str, *, timeout: float = 5.0) -> socket.socket:
        """Connect to a UNIX socket of the host.

        Args:
            path: Absolute path, at most :data:`UNIX_PATH_LIMIT` bytes.
            timeout: Seconds.

        Returns:
            A connected, non-blocking socket that the caller owns. It reads end-of-file when the other end, the
            channel or the whole connection has ended.

        Raises:
            ChannelRefused: The path is too long, nobody listens there, or the host forwards no sockets.
        """
        ...

    async def read_file(self, path: str, *, limit: int = 1 << 20, offset: int = 0) -> bytes:
        """Read up to ``limit`` bytes of a file from byte ``offset`` on.

        Raises:
            FileFailed: The file is absent or cannot be read.
        """
        ...

    async def write_file(self, path: str, data: bytes, *, mode: int = 0o600) -> None:
        """Write a file so that a reader sees the old or the new content, never a part, and a crash keeps one of them.

        Args:
            path: Absolute path. The content is put into a new file beside it, synced, and renamed over it.
            data: The content; travels on standard input, never in a command line.
            mode: Permissions, set before the content is written.

        Raises:
            FileFailed: The file could not be written; what was there before is still there.
        """
        ...

    async def hold_lock(self, path: str, *, owner: str) -> HeldLock:
        """Take the exclusive lock on ``path``, without waiting; it ends with the connection at the latest.

        Args:
            path: Absolute path of the lock file; made when absent, removed on release.
            owner: One line that tells others who holds it: user, machine, process, purpose, since when.

        Raises:
            LockBusy: Someone else holds it; the message says who.
            FileFailed: The lock file cannot be made.
        """
        ...


def check_unix_path(host: str, path: str) -> None:
    """Refuse a socket path that no kernel call can take.

    Raises:
        ChannelRefused: ``path`` is longer than :data:`UNIX_PATH_LIMIT` bytes, or has a NUL in it.
    """
    length = len(path.encode("utf-8", "surrogateescape"))
    if length > UNIX_PATH_LIMIT or "\0" in path:
        raise ChannelRefused(
            f"socket path of {length} bytes cannot be used: {path!r}",
            hint=f"UNIX socket paths end at {UNIX_PATH_LIMIT} bytes; set a shorter run_dir for the host",
            host=host,
        )
