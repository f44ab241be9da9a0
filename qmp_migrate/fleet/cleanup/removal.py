"""Taking a leftover away: the guest's lock first, then a second look, then the one act that its kind allows."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import replace
from typing import Any, Final

from qmp_migrate.errors import CommandFailed, ConnectionLost, QmpMigrateError, RemoteError
from qmp_migrate.fleet.cleanup.classification import OUR_CAPABILITIES, Action, Finding, Kind
from qmp_migrate.fleet.cleanup.scripts import QUARANTINE, REMOVE_FILE, REMOVE_KEYS
from qmp_migrate.hosts import HeldLock
from qmp_migrate.hosts.process import identify
from qmp_migrate.migration.endpoint import guest_locks
from qmp_migrate.migration.endpoint.endpoint import Side
from qmp_migrate.qemu import features
from qmp_migrate.qemu import migration as qmp

PURPOSE: Final = "doctor --leftovers --remove"

Look = Callable[[str, Collection[tuple[str, str]]], Awaitable[Sequence[Finding]]]
"""Looks again at one guest on all hosts; told which locks we hold ourselves."""

_DOES: Final[dict[Action, Action]] = {
    "would-remove": "removed",
    "would-quarantine": "quarantined",
    "would-put-back": "put-back",
}
DONE: Final = frozenset(_DOES.values())


async def remove(finding: Finding, side_of: Callable[[str, str], Side], look: Look) -> Finding:
    """Take one leftover away, if it still is one under the guest's lock.

    Args:
        finding: What a look has found.
        side_of: Makes the side of a host and a guest.
        look: Looks again.

    Returns:
        It, with what was done; ``kept`` and why where that was nothing.
    """
    if finding.action not in _DOES or finding.vm is None:
        return finding
    side = side_of(finding.host, finding.vm)
    with_locks: list[HeldLock] = []
    try:
        # A loaded destination may go only as long as the guest runs over there: nobody else may act on either.
        if finding.kind is Kind.LOADED_DESTINATION:
            taken = await guest_locks.take(side, side_of(finding.about, finding.vm), PURPOSE)
            with_locks = taken.held
            mine = {(finding.host, finding.vm), (finding.about, finding.vm)}
        else:
            with_locks = [await guest_locks.hold(side, PURPOSE)]
            mine = {(finding.host, finding.vm)}
        if finding.kind is not Kind.LOCK_FILE:
            again = {found.key: found for found in await look(finding.vm, mine)}.get(finding.key)
            if again is None or again.action != finding.action:
                return replace(
                    finding, action="kept", why="it has changed since the look: nothing was done", hint="look again"
                )
        _still_ours(with_locks)
        why = await _act(finding, side)
        return replace(finding, action=_DOES[finding.action], why=why or finding.why)
    except QmpMigrateError as error:
        said = error.stderr.strip() if isinstance(error, CommandFailed) and error.stderr.strip() else str(error)
        return replace(finding, action="kept", why=f"left alone: {said}", hint=error.hint or "look again")
    finally:
        await side.detach()
        for lock in reversed(with_locks):
            with contextlib.suppress(QmpMigrateError, OSError):
                await lock.release()


def _still_ours(held: Sequence[HeldLock]) -> None:
    """Refuse to act without the locks.

    Raises:
        ConnectionLost: One of them has ended.
    """
    if any(lock.lost.is_set() for lock in held):
        raise ConnectionLost("the guest's lock was lost before anything was done", hint="look again")


async def _act(finding: Finding, side: Side) -> str:
    """Do what the kind allows; return what to say of it, ``""``: the finding's own words."""
    run_dir, name = side.settings.run_dir, side.vm
    below = (finding.path or "").removeprefix(f"{run_dir}/")
    match finding.kind:
        case Kind.KEY_DIRECTORY:
            await side.host.script(REMOVE_KEYS, [run_dir, name, below.rpartition("/")[2]])
        case Kind.DIRECTORY:
            return await _quarantine(side)
        case Kind.WAITING_DESTINATION | Kind.LOADED_DESTINATION:
            await _end(side, finding.pid)
            return f"it was ended; {await _quarantine(side)}"
        case Kind.WIRING:
            await _put_back(side)
        case Kind.LOCK_FILE if below.endswith(".beat"):
            await side.host.script(REMOVE_FILE, [run_dir, below])
        case Kind.LOCK_FILE:
            pass  # giving back the lock that we hold now removes the file, if it still is the one that was locked
        case Kind.TEMPORARY_FILE:
            await side.host.script(REMOVE_FILE, [run_dir, below])
    return ""


async def _quarantine(side: Side) -> str:
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    done = await side.host.script(QUARANTINE, [side.settings.run_dir, side.vm, stamp], timeout=30)
    return f"its directory is {side.settings.run_dir}/{done.text} now"


async def _end(side: Side, pid: int | None) -> None:
    """Kill the QEMU that was looked at, and no other.

    Raises:
        RemoteError: It is another one by now, or it could not be proven gone.
    """
    side.process = await identify(side.host, side.directory)
    if side.process is None or side.process.pid != pid:
        raise RemoteError("another QEMU is there than the one that was looked at", hint="look again", host=side.name)
    if not await side.kill():
        raise RemoteError(
            f"process {pid} could not be proven gone",
            hint="a process that waits for dead storage stays",
            host=side.name,
        )


async def _put_back(side: Side) -> None:
    """Take a migration's settings out of force in a guest that runs on.

    Raises:
        MonitorError, TransportError: QEMU refused or did not answer.
    """
    monitor = await side.attach()
    known = await features.probe(monitor)
    creds = str(known.parameters.get("tls-creds") or "")
    await qmp.set_parameters(monitor, {"tls-creds": "", "tls-hostname": ""} if creds else {})
    keep = {name: on for name, on in known.capabilities.items() if name not in OUR_CAPABILITIES}
    await qmp.set_capabilities(monitor, known, keep)
    objects: list[dict[str, Any]] = await monitor.execute("qom-list", {"path": "/objects"})
    for entry in objects:
        if entry["type"] == "child<tls-creds-psk>" and str(entry["name"]).startswith("tls-m"):
            await monitor.execute("object-del", {"id": entry["name"]})
