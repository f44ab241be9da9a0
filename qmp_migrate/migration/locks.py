"""One controller per guest: a lock on both hosts and a number that only rises.

The lock lives as long as the SSH channel that holds it, so a dead controller frees it. The epoch is kept on both hosts
under the lock and in the journal: whoever takes the guest next has a higher one, and can tell an older controller's
doings from its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import os
import socket
from dataclasses import dataclass
from typing import Final

from qmp_migrate.errors import CommandFailed, FileFailed, QmpMigrateError
from qmp_migrate.hosts import HeldLock
from qmp_migrate.migration.side import Side

# $1: epoch file, $2: the least the new epoch must exceed. Prints the new epoch. Runs under the lock.
_BUMP: Final = """
set -eu
now=0
[ -e "$1" ] && read -r now < "$1"
case "$now" in ''|*[!0-9]*) echo "epoch file holds no number: $1" >&2; exit 65;; esac
[ "$2" -gt "$now" ] && now=$2
now=$((now + 1))
umask 077
printf '%s\\n' "$now" > "$1.new"
sync "$1.new"
mv -f "$1.new" "$1"
echo "$now"
"""


def lock_path(side: Side) -> str:
    """Return the guest's lock file on a host."""
    return f"{side.settings.run_dir}/.locks/{side.vm}.lock"


@dataclass(slots=True)
class GuestLock:
    """Both hosts' locks on one guest, and the epoch."""

    held: list[HeldLock]
    epoch: int

    @property
    def lost(self) -> bool:
        """Whether a lock ended without `release`: the connection to its host was cut."""
        return any(lock.lost.is_set() for lock in self.held)

    async def release(self) -> None:
        """Give both locks back. Never raises: a lock whose channel died is free already."""
        for lock in reversed(self.held):
            with contextlib.suppress(QmpMigrateError, OSError):
                await lock.release()


def owner_text(purpose: str) -> str:
    """Return what others read when they find the guest locked."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()} pid {os.getpid()} {purpose}"


async def hold(side: Side, purpose: str) -> HeldLock:
    """Lock a guest on one host; the run directory is made where it is absent.

    Args:
        side: The guest's name and the host.
        purpose: For those who find it locked: ``migration ID``, ``vm start``.

    Raises:
        LockBusy: Another controller holds it; the message says who.
        FileFailed: The lock file cannot be made.
    """
    try:
        return await side.host.hold_lock(lock_path(side), owner=owner_text(purpose))
    except FileFailed:
        # Most likely the first guest ever on that host.
        try:
            await side.host.script('umask 077; mkdir -p -- "$1/.locks"', [side.settings.run_dir])
        except CommandFailed as error:
            raise FileFailed(
                f"{side.settings.run_dir} cannot be made: {error.stderr.strip()}",
                hint="make it as root and give it to the SSH user of that host",
                host=side.name,
            ) from error
        return await side.host.hold_lock(lock_path(side), owner=owner_text(purpose))


# $1: lock file. Prints who holds it; nothing where nobody does.
_HOLDER: Final = """
[ -e "$1" ] || exit 0
flock -n "$1" true || cat -- "$1"
"""


async def holder(side: Side) -> str | None:
    """Return who holds a guest on a host now, or None.

    Raises:
        TransportError, CommandFailed: The host cannot tell.
    """
    return (await side.host.script(_HOLDER, [lock_path(side)])).text or None


async def take(source: Side, destination: Side, migration_id: str) -> GuestLock:
    """Lock a guest on both hosts and raise its epoch.

    Always in the order of the hosts' names, so that of two controllers one gets both.

    Raises:
        LockBusy: Another controller holds it; the message says who.
        FileFailed: A lock or epoch file cannot be written.
    """
    sides = sorted((source, destination), key=lambda side: side.name)
    lock = GuestLock([], 0)
    try:
        for side in sides:
            lock.held.append(await hold(side, f"migration {migration_id}"))
        epochs = await asyncio.gather(*(_bump(side, 0) for side in sides))
        lock.epoch = max(epochs)
        for side, epoch in zip(sides, epochs, strict=True):
            if epoch != lock.epoch:
                await _bump(side, lock.epoch - 1)
    except BaseException:
        await lock.release()
        raise
    return lock


async def _bump(side: Side, at_least: int) -> int:
    path = f"{side.settings.run_dir}/.locks/{side.vm}.epoch"
    try:
        return int((await side.host.script(_BUMP, [path, str(at_least)])).text)
    except (CommandFailed, ValueError) as error:
        raise FileFailed(
            f"cannot raise the epoch in {path}: {getattr(error, 'stderr', error)}",
            hint="the file must hold one number; remove it only when no migration of this guest is under way",
            host=side.name,
        ) from error
