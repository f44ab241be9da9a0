"""What one QEMU can do, asked from itself: never guessed from its version (DESIGN §5).

Asking costs three short queries (a few milliseconds). The full ``query-qmp-schema`` (about 60 ms) is asked only where the
values that a parameter takes matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from qmp_migrate.errors import MonitorError, QmpCommandFailed
from qmp_migrate.qemu.monitor import Monitor


@dataclass(frozen=True, slots=True)
class Features:
    """What a running QEMU offers.

    Attributes:
        version: For example ``7.2.22``: for messages and compatibility hints, not for decisions.
        package: The distributor's version text, ``""`` where there is none.
        capabilities: Migration capabilities it knows, with the value they have now.
        parameters: Migration parameters it knows, with the value they have now.
    """

    version: str
    package: str
    capabilities: dict[str, bool]
    parameters: dict[str, Any]

    def has_capability(self, name: str) -> bool:
        """Tell whether this binary knows a migration capability."""
        return name in self.capabilities


async def probe(monitor: Monitor) -> Features:
    """Ask a QEMU what it can do.

    Raises:
        MonitorError: It did not answer, or not as QEMU does.
    """
    version = await monitor.execute("query-version")
    capabilities = await monitor.execute("query-migrate-capabilities")
    parameters = await monitor.execute("query-migrate-parameters")
    try:
        numbers = version["qemu"]
        return Features(
            version=f"{numbers['major']}.{numbers['minor']}.{numbers['micro']}",
            package=str(version.get("package", "")).strip(),
            capabilities={str(entry["capability"]): bool(entry["state"]) for entry in capabilities},
            parameters=dict(parameters),
        )
    except (TypeError, KeyError, ValueError) as error:
        raise MonitorError(
            f"{monitor.label} answers, but not as QEMU does: {error!r}",
            hint="is this socket really a QEMU monitor?",
            host=monitor.host,
        ) from error


def enum_values(schema: Iterable[Mapping[str, Any]], command: str, member: str) -> frozenset[str]:
    """Return the values that an argument of a command takes; empty where it has no such argument, or takes anything.

    Types in the schema have numbers for names that differ from build to build, so they are followed, not named.

    Args:
        schema: What ``query-qmp-schema`` said.
        command: For example ``migrate-set-parameters``.
        member: The argument, for example ``multifd-compression``.

    Raises:
        KeyError, TypeError: It is no schema, or there is no such command.
    """
    entities = {entity["name"]: entity for entity in schema}
    arguments = entities[entities[command]["arg-type"]]
    for argument in arguments["members"]:
        if argument["name"] == member:
            found = entities[argument["type"]]
            # `values` is deprecated since 6.2, `members` came with it
            names = [each["name"] for each in found["members"]] if "members" in found else found.get("values", [])
            return frozenset(str(name) for name in names)
    return frozenset()


async def multifd_compressions(monitor: Monitor) -> frozenset[str]:
    """Ask a running QEMU what it takes for ``multifd-compression``: that depends on how it was built.

    Raises:
        MonitorError: It did not answer, or not as QEMU does.
    """
    schema = await monitor.execute("query-qmp-schema")
    try:
        return enum_values(schema, "migrate-set-parameters", "multifd-compression")
    except (TypeError, KeyError) as error:
        raise MonitorError(
            f"{monitor.label}: query-qmp-schema: {error!r}",
            hint="is this socket really a QEMU monitor?",
            host=monitor.host,
        ) from error


async def uses_kvm(monitor: Monitor) -> bool:
    """Ask a running QEMU whether it uses KVM; ``query-kvm`` is deprecated since 11.0, and ``query-accelerators`` is newer.

    Raises:
        MonitorError: It did not answer, or not as QEMU does.
    """
    try:
        try:
            return bool((await monitor.execute("query-accelerators"))["enabled"] == "kvm")
        except QmpCommandFailed:
            return bool((await monitor.execute("query-kvm"))["enabled"])
    except (TypeError, KeyError) as error:
        raise MonitorError(
            f"{monitor.label} answers, but not as QEMU does: {error!r}",
            hint="is this socket really a QEMU monitor?",
            host=monitor.host,
        ) from error


SYNC_WORD_BYTES: Final = 64 * 4096
"""QEMU syncs its dirty bitmap 64 pages at a time where a block of memory is a multiple of this many bytes."""


async def loses_writes(monitor: Monitor, memory_bytes: int) -> bool:
    """Tell whether this QEMU loses guest writes in a live migration of more than one pass.

    Before QEMU 9.0, the dirty sync that goes 64 pages at a time forgets TCG's translations: TCG goes on writing through
    those made before the sync without marking the pages dirty. What the guest writes to them while a later pass sends
    them never arrives, and it crashes or computes on old data (7.2.22: 12 of 12 guests that dirtied memory; with memory
    that is not a multiple of `SYNC_WORD_BYTES`, which is synced page by page, none of 11; 10.0.2: none). Fixed by
    "physmem: Fix migration dirty bitmap coherency with TCG memory access" (QEMU 03bfc2188f06). The fix cannot be seen
    in the schema; the capability ``mapped-ram`` came with the same release.

    Args:
        monitor: The source's.
        memory_bytes: The guest's memory.

    Raises:
        MonitorError: It did not answer.
    """
    if memory_bytes % SYNC_WORD_BYTES:
        return False
    capabilities = await monitor.execute("query-migrate-capabilities")
    try:
        if any(entry["capability"] == "mapped-ram" for entry in capabilities):
            return False
        return not (await monitor.execute("query-kvm"))["enabled"]
    except (TypeError, KeyError) as error:
        raise MonitorError(
            f"{monitor.label} answers, but not as QEMU does: {error!r}",
            hint="is this socket really a QEMU monitor?",
            host=monitor.host,
        ) from error
