"""A host on which an older controller can do nothing: every act is bound to the guest's epoch.

The epoch is a number in a file on the host that rises whenever a controller takes the guest. The shell that acts reads
it right before the act; where it is not the expected one, nothing is done. So what a controller had begun to send when
it was frozen or cut off does nothing when it arrives late.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Final

from qmp_migrate.errors import Fenced
from qmp_migrate.hosts import files
from qmp_migrate.hosts.base import Completed, HeldLock, Host
from qmp_migrate.hosts.shell_command import checked

_STATUS: Final = 75
_MARK: Final = "qmp-migrate: the epoch is "

# $1 epoch file, $2 the epoch; the act's own arguments follow. The mark tells it from an act that itself ends with 75.
FENCE: Final = f"""
epoch=
{{ IFS= read -r epoch <"$1"; }} 2>/dev/null
[ "$epoch" = "$2" ] || {{ echo "{_MARK}${{epoch:-unknown}}" >&2; exit {_STATUS}; }}
shift 2
"""


class FencedHost:
    """A host as one controller sees it for one guest; see :class:`~qmp_migrate.hosts.base.Host` for the methods.

    Commands, scripts, written files and opened sockets raise :class:`~qmp_migrate.errors.Fenced` where the epoch is
    no longer this one; nothing was done then. Reading is always allowed, and a lock needs no second one.

    Args:
        host: The host itself; remains usable without the fence.
        epoch_path: The guest's epoch file there.
        epoch: The number that the file must hold.
    """

    def __init__(self, host: Host, epoch_path: str, epoch: int) -> None:
        self._host = host
        self._path = epoch_path
        self._epoch = epoch

    @property
    def name(self) -> str:
        """The host's name in the settings."""
        return self._host.name

    async def connect(self) -> None:
        """Connect; see :meth:`qmp_migrate.hosts.base.Host.connect`."""
        await self._host.connect()

    async def close(self) -> None:
        """End everything; see :meth:`qmp_migrate.hosts.base.Host.close`."""
        await self._host.close()

    async def run(
        self, argv: Sequence[str], *, input: bytes = b"", timeout: float = 10.0, check: bool = True
    ) -> Completed:
        """Run one command, if the epoch is ours; see :meth:`qmp_migrate.hosts.base.Host.run`."""
        completed = await self._act('exec "$@"', argv, input, timeout)
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
        """Run a shell script of ours, if the epoch is ours; see :meth:`qmp_migrate.hosts.base.Host.script`."""
        completed = await self._act(source, args, input, timeout)
        return checked(completed, self.name, "a script") if check else completed

    async def open_unix(self, path: str, *, timeout: float = 5.0) -> socket.socket:
        """Connect to a UNIX socket, if the epoch is ours; see :meth:`qmp_migrate.hosts.base.Host.open_unix`.

        The epoch is looked at before, by a script: one more round trip.
        """
        await self._act(":", (), b"", timeout)
        return await self._host.open_unix(path, timeout=timeout)

    async def read_file(self, path: str, *, limit: int = 1 << 20, offset: int = 0) -> bytes:
        """Read a part of a file, whatever the epoch; see :meth:`qmp_migrate.hosts.base.Host.read_file`."""
        return await self._host.read_file(path, limit=limit, offset=offset)

    async def write_file(self, path: str, data: bytes, *, mode: int = 0o600) -> None:
        """Write a file atomically, if the epoch is ours; see :meth:`qmp_migrate.hosts.base.Host.write_file`."""
        completed = await self._act(files.WRITE, files.write_args(path, data, mode), data, files.TIMEOUT_S)
        files.written(completed, path, self.name)

    async def hold_lock(self, path: str, *, owner: str) -> HeldLock:
        """Take a lock, whatever the epoch; see :meth:`qmp_migrate.hosts.base.Host.hold_lock`."""
        return await self._host.hold_lock(path, owner=owner)

    async def _act(self, source: str, args: Sequence[str], data: bytes, timeout: float) -> Completed:
        words = [self._path, str(self._epoch), *args]
        completed = await self._host.script(FENCE + source, words, input=data, timeout=timeout, check=False)
        if completed.returncode == _STATUS and completed.error_text.startswith(_MARK):
            raise fenced(self.name, self._epoch, completed.error_text.removeprefix(_MARK))
        return completed


def fenced(host: str, epoch: int, found: str) -> Fenced:
    """Return the error that says: another controller has taken the guest.

    Args:
        host: The host's name.
        epoch: Ours.
        found: What the host has, as text.
    """
    return Fenced(
        f"the guest's epoch is {found} here and no longer {epoch}; nothing was done",
        hint="another controller has taken the guest: leave it to that one, and look with: qmp-migrate status",
        host=host,
    )
