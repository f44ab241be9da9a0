"""What one QEMU can do, asked from itself: never guessed from its version (DESIGN §5).

Asking costs three short queries (a few milliseconds); the full ``query-qmp-schema`` (about 60 ms) is not needed for what
is done so far.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qmp_migrate.errors import MonitorError
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


async def loses_writes(monitor: Monitor) -> bool:
    """Tell whether this QEMU loses guest writes in a live migration of more than one pass.

    Before QEMU 9.0, TCG goes on writing through translations that were made before a dirty sync and no longer marks
    those pages dirty: what the guest writes to them while a later pass sends them never arrives, and the guest crashes
    or computes on old data (seen here on 7.2.22: 12 of 12 guests that dirtied memory; never on 10.0.2). The fix cannot
    be seen in the schema; the capability ``mapped-ram`` came with the same release.

    Raises:
        MonitorError: It did not answer.
    """
    capabilities = await monitor.execute("query-migrate-capabilities")
    if any(entry.get("capability") == "mapped-ram" for entry in capabilities):
        return False
    return not bool((await monitor.execute("query-kvm")).get("enabled"))
