"""Make two QEMUs ready for each other: capabilities, parameters, encryption, a port to listen on.

Everything is set on both sides and read back. What an earlier attempt left is cleared, since leftovers break the next
migration (a capability that stays on, a key object of yesterday).
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, replace
from typing import Any, Final

from qmp_migrate.errors import QmpMigrateError
from qmp_migrate.hosts.scripts import script
from qmp_migrate.migration.convergence import policies
from qmp_migrate.migration.endpoint.endpoint import Side
from qmp_migrate.migration.model import policy_terms
from qmp_migrate.migration.model.request import MigrationRequest
from qmp_migrate.migration.transport.negotiation import Profile
from qmp_migrate.qemu import dirty_limit, encryption, features
from qmp_migrate.qemu import migration as qmp
from qmp_migrate.qemu.features import Features

OF_TRANSPORT: Final = (
    "multifd-channels",
    "multifd-compression",
    "zero-page-detection",
    "xbzrle-cache-size",
    "max-postcopy-bandwidth",
)
"""Parameters that `negotiation` sets, on one side or both."""

RESTORED: Final = (
    "max-bandwidth",
    "downtime-limit",
    "avail-switchover-bandwidth",
    "tls-creds",
    "tls-hostname",
    *policies.ARMED_THROTTLE,
    *OF_TRANSPORT,
)
"""Parameters of the source that are put back as they were when the guest stays there."""


@dataclass(slots=True)
class Wires:
    """What was set up, and what must be undone.

    Attributes:
        source, destination: What the two QEMUs can do, and what their parameters were before.
        credentials: Id of the TLS object on both sides; None where the stream is not encrypted.
        source_credentials: The object exists at the source, where it must be removed.
        key_directories: Directories that hold this migration's key, until `remove_keys`.
        port: Where the destination listens.
        throttle: The source can slow the guest down.
        dirty_limit: The dirty rate of the source's vCPUs may be limited; nobody had limited it before.
    """

    source: Features | None = None
    destination: Features | None = None
    credentials: str | None = None
    source_credentials: bool = False
    key_directories: tuple[tuple[Side, str], ...] = ()
    port: int = 0
    throttle: bool = False
    dirty_limit: bool = False

    @property
    def source_parameters(self) -> dict[str, object]:
        """What the source's parameters were that are changed: written down before, so that anybody can put them back."""
        known = self.source.parameters if self.source else {}
        return {name: known[name] for name in RESTORED if name in known}

    @property
    def destination_parameters(self) -> dict[str, object]:
        """The same for the destination, which keeps the guest: what is changed there says only how memory comes in."""
        known = self.destination.parameters if self.destination else {}
        return {name: known[name] for name in OF_TRANSPORT if name in known}

    def key_directory(self, side: Side) -> str:
        """Return where this migration's key is on a side's host."""
        return next(directory for other, directory in self.key_directories if other is side)


async def survey(source: Side, destination: Side, wires: Wires) -> None:
    """Ask both QEMUs what they can do and how they are set now.

    Raises:
        MonitorError, TransportError: One of them does not answer.
    """
    monitors = await asyncio.gather(source.attach(), destination.attach())
    wires.source, wires.destination = await asyncio.gather(*(features.probe(monitor) for monitor in monitors))


async def find(
    source: Side,
    destination: Side,
    migration_id: str,
    *,
    encrypt: bool,
    dirty_limit: bool,
    before: dict[str, Any],
    destination_before: dict[str, Any],
) -> Wires:
    """Return the wires of a migration that another controller has set up, so that they can be used and undone.

    Args:
        source: Sends; left out where it does not answer.
        destination: Receives; likewise.
        migration_id: The migration.
        encrypt: It is encrypted.
        dirty_limit: See `Wires`.
        before: What the journal says of `Wires.source_parameters`.
        destination_before: What it says of `Wires.destination_parameters`.
    """
    wires = Wires(dirty_limit=dirty_limit)
    for side in (source, destination):
        with contextlib.suppress(QmpMigrateError):
            if side.process is not None and not side.fenced:
                found = await features.probe(await side.attach())
                if side is source:
                    wires.source = replace(found, parameters=found.parameters | before)
                else:
                    wires.destination = replace(found, parameters=found.parameters | destination_before)
    wires.throttle = wires.source is not None and wires.source.capabilities.get("auto-converge", False)
    if encrypt:
        wires.credentials, wires.source_credentials = _name(migration_id), True
        wires.key_directories = _key_directories(source, destination, migration_id)
    return wires


def _name(migration_id: str) -> str:
    return f"tls-{migration_id}"


def _key_directories(source: Side, destination: Side, migration_id: str) -> tuple[tuple[Side, str], ...]:
    return tuple((side, f"{side.directory}/{_name(migration_id)}") for side in (source, destination))


async def wire(
    source: Side, destination: Side, request: MigrationRequest, profile: Profile, wires: Wires, *, one_pass: bool
) -> None:
    """Wire both sides; `wires` says at any moment what has been set up, also when this raises. `survey` goes before.

    Args:
        source: Sends.
        destination: Waits, and listens when this returns.
        request: What is wanted.
        profile: How memory travels.
        wires: Filled.
        one_pass: See `Copying.one_pass`.

    Raises:
        MonitorError: A capability is lacking, a value did not take, the address cannot be bound.
        FileFailed: The key could not be written.
    """
    if request.encrypt:
        await place_keys(source, destination, request, wires)
    await asyncio.gather(
        _wire_source(source, request, profile, wires, one_pass=one_pass),
        _wire_destination(destination, profile, wires),
    )


async def place_keys(source: Side, destination: Side, request: MigrationRequest, wires: Wires) -> None:
    """Put one fresh key on both hosts, beside the guest's sockets (0700), where only QEMU's own user reads it."""
    content = encryption.make_key_file()
    wires.key_directories = _key_directories(source, destination, request.id)

    async def place(side: Side, directory: str) -> None:
        known = wires.destination
        group = encryption.GROUP if side is destination and known and encryption.wants_group(known.version) else b""
        names = [directory, encryption.KEY_FILE, encryption.GROUP_FILE, str(len(content))]
        await side.host.script(_PLACE_KEYS, names, input=content + group)

    await asyncio.gather(*(place(side, directory) for side, directory in wires.key_directories))
    wires.credentials = _name(request.id)


async def _wire_source(
    side: Side, request: MigrationRequest, profile: Profile, wires: Wires, *, one_pass: bool
) -> None:
    monitor, known = await side.attach(), wires.source
    assert known is not None
    wires.throttle = "auto-converge" in profile.source.capabilities
    wires.dirty_limit = profile.dirty_ring > 0
    await qmp.set_capabilities(monitor, known, dict.fromkeys(profile.source.capabilities, True))
    parameters: dict[str, Any] = {
        **policy_terms.parameters(request, one_pass=one_pass),
        "tls-creds": "",
        "tls-hostname": "",
        **profile.source.parameters,
    }
    if wires.credentials is not None:
        directory = wires.key_directory(side)
        await encryption.add_credentials(monitor, wires.credentials, directory, "client")
        wires.source_credentials = True
        parameters["tls-creds"] = wires.credentials
    await qmp.set_parameters(monitor, parameters)
    if wires.credentials is not None:
        await encryption.verify(monitor, wires.credentials)


async def _wire_destination(side: Side, profile: Profile, wires: Wires) -> None:
    """What both sides must agree upon is in force before it listens: later ones are refused, or hang (QEMU 7.2)."""
    monitor, known = await side.attach(), wires.destination
    assert known is not None
    await qmp.set_capabilities(monitor, known, dict.fromkeys(profile.destination.capabilities, True))
    if profile.destination.parameters:
        await qmp.set_parameters(monitor, profile.destination.parameters)
    if wires.credentials is not None:
        directory = wires.key_directory(side)
        await encryption.add_credentials(monitor, wires.credentials, directory, "server")
        await qmp.set_parameters(monitor, {"tls-creds": wires.credentials})
        await encryption.verify(monitor, wires.credentials)
    wires.port = await qmp.listen(monitor, side.migration_listen, side.settings.ports)


_PLACE_KEYS: Final = script("transport/place_keys")

_REMOVE_KEYS: Final = script("transport/remove_keys")


async def remove_keys(wires: Wires) -> list[str]:
    """Remove the key files from both hosts; they have done their work once copying has begun.

    Returns:
        One line per host where a file could not be removed.
    """
    directories, wires.key_directories = wires.key_directories, ()
    names = [encryption.KEY_FILE, encryption.GROUP_FILE]
    lines: list[str] = []

    async def remove(side: Side, directory: str) -> None:
        try:
            await side.host.script(_REMOVE_KEYS, [directory, *names])
        except QmpMigrateError as error:
            wires.key_directories += ((side, directory),)  # for another try
            lines.append(f"the key file in {directory} on {side.name} could not be removed: {error}")

    await asyncio.gather(*(remove(side, directory) for side, directory in directories if not side.fenced))
    return lines


async def unwire_source(side: Side, wires: Wires) -> list[str]:
    """Put the source's capabilities and parameters back, so that the next migration finds a clean QEMU.

    Returns:
        One line per thing that could not be undone.
    """
    known = wires.source
    if known is None:
        return []
    try:
        monitor = await side.attach()
        if (
            wires.dirty_limit
        ):  # first: the guest feels it, and QEMU keeps it after a migration that failed or was cancelled
            await dirty_limit.lift(monitor)
        before = wires.source_parameters
        before["tls-creds"] = ""
        await qmp.set_parameters(monitor, before)
        await qmp.set_capabilities(monitor, known, {})
        if wires.source_credentials and wires.credentials is not None:
            with contextlib.suppress(QmpMigrateError):
                await encryption.remove_credentials(monitor, wires.credentials)
    except QmpMigrateError as error:
        return [f"the source's migration settings could not be put back: {error}"]
    return []


async def unwire_destination(side: Side, wires: Wires) -> None:
    """Free the destination of what belongs to this migration: it is the next one's source.

    Raises:
        MonitorError: It refused, or does not answer.
    """
    monitor = await side.attach()
    if wires.credentials is not None:
        await encryption.remove_credentials(monitor, wires.credentials)
    if wires.destination is not None:
        await qmp.set_capabilities(monitor, wires.destination, {})
        if before := wires.destination_parameters:
            await qmp.set_parameters(monitor, before)
