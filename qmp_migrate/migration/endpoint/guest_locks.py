"""One controller per guest: a lock on both hosts and a number that only rises.

The lock lives as long as the SSH channel that holds it, so a dead controller frees it. The epoch is kept on both hosts
under the lock and in the journal: whoever takes the guest next has a higher one, and what an older controller still
does over :meth:`GuestLock.fence` is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from qmp_migrate.errors import CommandFailed, FileFailed, HostUnreachable, LockBusy, QmpMigrateError, TransportError
from qmp_migrate.hosts import HeldLock, Host
from qmp_migrate.hosts.fenced import FencedHost, fenced
from qmp_migrate.hosts.lock import end_holder
from qmp_migrate.hosts.scripts import script
from qmp_migrate.migration.endpoint.endpoint import Side

# Seconds for taking a lock again while we hold the guest's other one: another controller that tries may have this one
# for a moment, but cannot keep it; and an earlier holder of our own may have to be ended first.
_RENEW_S: Final = 5.0
_RENEW_PAUSE_S: Final = 0.1

_PLACE: Final = script("guest_locks/place")

_BUMP: Final = script("guest_locks/raise_epoch")

_EPOCH: Final = script("guest_locks/read_epoch")

_HOLDER: Final = script("guest_locks/read_holder")


def lock_path(side: Side) -> str:
    """Return the guest's lock file on a host."""
    return f"{side.settings.run_dir}/.locks/{side.vm}.lock"


def epoch_path(side: Side) -> str:
    """Return the guest's epoch file on a host."""
    return f"{side.settings.run_dir}/.locks/{side.vm}.epoch"


@dataclass(slots=True)
class GuestLock:
    """The locks on one guest, on both hosts (on one where the other cannot be reached), and the epoch.

    Attributes:
        held: The locks.
        epoch: The number on the hosts since we took the guest.
        before: The highest one found there before, 0 where none was.
        since: The epoch from which on nobody has taken the guest but for the same purpose: a migration that another
            controller takes up knows by it whether somebody else has had the guest meanwhile.
        missing: The names of hosts that could not be reached; nothing is held there.
    """

    held: list[HeldLock]
    epoch: int
    before: int = 0
    since: int = 0
    missing: tuple[str, ...] = ()
    _owner: str = ""
    _places: list[tuple[Side, Host]] = field(default_factory=list)  # as `held`; the hosts without a fence

    @property
    def lost(self) -> bool:
        """Whether a lock ended without `release`: the connection to its host was cut."""
        return any(lock.lost.is_set() for lock in self.held)

    def fence(self, side: Side) -> Host:
        """Return a side's host, bound to our epoch; the host as it is where nothing is held on it.

        Args:
            side: One of the two that the lock was taken for. Its host may be replaced by the returned one.
        """
        for place, host in self._places:
            if place.name == side.name:
                return FencedHost(host, epoch_path(side), self.epoch)
        return side.host

    async def renew(self) -> None:
        """Take again what was lost: connect anew, lock anew, and see that nobody had the guest meanwhile.

        Locks that still stand are kept. An earlier holder of our own that the host has not given up yet is ended,
        together with the connection that it lives on: its channels would keep the monitors.

        Raises:
            Fenced: Another controller has had the guest since. Everything was given back.
            LockBusy: Another controller holds it now; the message says who. Everything was given back.
            TransportError: A host cannot be reached. What is held stays held: may be called again.
            FileFailed, CommandFailed: A lock or epoch file cannot be used. Everything was given back.
        """
        try:
            for number, (side, host) in enumerate(self._places):
                if self.held[number].lost.is_set():
                    await host.connect()
                    self.held[number] = await self._again(side, host)
            for side, host in self._places:
                found = (await host.script(_EPOCH, [epoch_path(side)], check=False)).text
                if found != str(self.epoch):
                    raise fenced(side.name, self.epoch, found or "unknown")
        except QmpMigrateError as error:
            if not isinstance(error, TransportError):
                await self.release()
            raise

    async def _again(self, side: Side, host: Host) -> HeldLock:
        """Take one lost lock again; an old holder of our own gives way, and so does who cannot get the guest's other."""
        clock = asyncio.get_running_loop().time
        limit = clock() + _RENEW_S
        path = lock_path(side)
        while True:
            try:
                return await _hold_of(side, self._owner, host)
            except LockBusy:
                ours = await end_holder(host, path, self._owner)
                keep_trying = ours or any(not lock.lost.is_set() for lock in self.held)
                if not keep_trying or clock() > limit:
                    raise
            await asyncio.sleep(_RENEW_PAUSE_S)

    async def release(self) -> None:
        """Give the locks back. Never raises: a lock whose channel died is free already."""
        for lock in reversed(self.held):
            with contextlib.suppress(QmpMigrateError, OSError):
                await lock.release()


def owner_text(purpose: str) -> str:
    """Return what others read when they find the guest locked: who, where, what for, since when (UTC).

    Args:
        purpose: ``migration ID``, ``vm start``.
    """
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"{user}@{socket.gethostname()} pid {os.getpid()}, {purpose}, since {since}"


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
        await _place(side)  # most likely the first guest ever on that host
        return await side.host.hold_lock(lock_path(side), owner=owner_text(purpose))


async def holder(side: Side) -> str | None:
    """Return who holds a guest on a host now, or None.

    Raises:
        TransportError, CommandFailed: The host cannot tell.
    """
    return (await side.host.script(_HOLDER, [lock_path(side)])).text or None


async def take(source: Side, destination: Side, purpose: str, *, partial: bool = False) -> GuestLock:
    """Lock a guest on both hosts and raise its epoch.

    Always in the same order, whoever asks, whichever way the guest is to move, and whatever the hosts are called in
    somebody's settings: so that of two controllers one gets both.

    Args:
        source: Where the guest is.
        destination: Where it shall be.
        purpose: For those who find it locked: ``migration ID``.
        partial: Leave out a host that cannot be reached, and name it in `GuestLock.missing`.

    Raises:
        LockBusy: Another controller holds it; the message says who.
        FileFailed: A lock or epoch file cannot be written.
        HostUnreachable: With `partial`: none of the hosts can be reached.
        TransportError: Without `partial`: one of them cannot be reached.
    """
    return await _take((source, destination), purpose, partial=partial)


async def take_at(side: Side, purpose: str) -> GuestLock:
    """Lock a guest on the one host that is concerned, and raise its epoch there.

    Args:
        side: Where the guest is, or shall be.
        purpose: For those who find it locked: ``save ID``.

    Raises:
        LockBusy: Another controller holds it; the message says who.
        FileFailed: The lock or epoch file cannot be written.
        TransportError: The host cannot be reached.
    """
    return await _take((side,), purpose, partial=False)


async def _take(sides: Sequence[Side], purpose: str, *, partial: bool) -> GuestLock:
    lock = GuestLock([], 0, _owner=owner_text(purpose))
    try:
        for side in await _in_order(sides, lock, partial=partial):
            lock.held.append(await _hold_of(side, lock._owner, side.host))
            lock._places.append((side, side.host))
        epochs = await asyncio.gather(*(_bump(side, 0, purpose) for side, _ in lock._places))
        lock.before = max(before for before, _, _ in epochs)
        lock.epoch = max(epoch for _, epoch, _ in epochs)
        lock.since = max(since for _, _, since in epochs)
        for (side, _), (_, epoch, _) in zip(lock._places, epochs, strict=True):
            if epoch != lock.epoch:
                await _bump(side, lock.epoch - 1, purpose)
    except BaseException:
        await lock.release()
        raise
    return lock


async def _hold_of(side: Side, owner: str, host: Host) -> HeldLock:
    try:
        return await host.hold_lock(lock_path(side), owner=owner)
    except LockBusy as error:
        who = error.message.partition(" is locked by ")[2] or error.message
        raise LockBusy(f"{side.vm} is held by another controller: {who}", hint=error.hint, host=side.name) from error


async def _in_order(sides: Sequence[Side], lock: GuestLock, *, partial: bool) -> list[Side]:
    """Return the sides that can be reached, in the order of locking; the others are named in the lock."""
    for side in sides if partial else ():
        with contextlib.suppress(TransportError):
            await side.host.connect()
    places = await asyncio.gather(*(_place(side) for side in sides), return_exceptions=True)
    found: list[tuple[str, Side]] = []
    unreachable: list[str] = []
    for side, place in zip(sides, places, strict=True):
        if isinstance(place, str):
            found.append((place, side))
        elif partial and isinstance(place, TransportError):
            lock.missing += (side.name,)
            unreachable.append(str(place))
        else:
            raise place
    if not found:
        raise HostUnreachable(
            f"no host of {sides[0].vm} can be reached: {'; '.join(unreachable)}",
            hint="a guest can only be taken where at least one of its hosts answers",
        )
    return [side for _, side in sorted(found, key=lambda entry: entry[0])]


async def _place(side: Side) -> str:
    """Make the directory of the locks and return what tells it from all others, whatever the host is called."""
    try:
        return (await side.host.script(_PLACE, [side.settings.run_dir])).text
    except CommandFailed as error:
        raise FileFailed(
            f"{side.settings.run_dir} cannot be made: {error.stderr.strip()}",
            hint="make it as root and give it to the SSH user of that host",
            host=side.name,
        ) from error


async def _bump(side: Side, at_least: int, purpose: str) -> tuple[int, int, int]:
    """Raise the epoch on one host; return the old one, the new one, and since when the purpose is the same."""
    path = epoch_path(side)
    try:
        before, epoch, since = (await side.host.script(_BUMP, [path, str(at_least), purpose])).text.split()
        return int(before), int(epoch), int(since)
    except (CommandFailed, ValueError) as error:
        raise FileFailed(
            f"cannot raise the epoch in {path}: {getattr(error, 'stderr', error)}",
            hint="the file must hold one number; remove it only when no migration of this guest is under way",
            host=side.name,
        ) from error
