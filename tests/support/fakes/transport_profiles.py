"""How memory travels between two fake QEMUs: what preflight would have negotiated for them."""

from __future__ import annotations

from qmp_migrate.migration.model.request import MigrationRequest
from qmp_migrate.migration.transport.negotiation import Abilities, Profile, negotiate
from tests.support.data.recorded_replies import V7_2, Release


def agreed(request: MigrationRequest, source: Release = V7_2, destination: Release = V7_2) -> Profile:
    """Return the profile for a request between two releases."""
    ends = [
        Abilities(
            host=host,
            version="{major}.{minor}.{micro}".format_map(release.version["qemu"]),
            capabilities=frozenset(release.capabilities),
            parameters=frozenset(release.parameters),
            compressions=frozenset({"none", "zlib", "zstd"}),
        )
        for host, release in (("a", source), ("b", destination))
    ]
    return negotiate(request, *ends, memory_bytes=256 << 20)
