"""QEMU's migration statuses and run states, sorted by what they mean for a controller.

QEMU added statuses in 9.1, 10.2 and 11.0 and will again: one that is not listed here means "still going" (DESIGN rule 8).
"""

from __future__ import annotations

from typing import Final

IDLE: Final = frozenset({"none", "cancelled", "failed"})
"""No migration is under way, and none has ended with the guest elsewhere."""

TERMINAL: Final = frozenset({"completed", "failed", "cancelled"})

PASSES: Final = frozenset({"active"})
"""RAM is copied while the guest runs."""

SWITCHING: Final = frozenset({"device", "postcopy-device"})
"""The guest is stopped and its device state travels: nothing can be asked of the source's main loop for sure.

``postcopy-device`` (10.2) is the beginning of post-copy: the destination loads the devices; if it fails there, the source
runs on. Before 10.2 the source says ``postcopy-active`` at that time already, and has lost the guest then."""

INTERRUPTED: Final = "postcopy-paused"
"""Post-copy has lost its connection; nothing goes on before it is recovered."""

POSTCOPY: Final = frozenset({"postcopy-active", INTERRUPTED, "postcopy-recover", "postcopy-recover-setup"})
"""No way back from these: no cancel, no resume of the source (DESIGN rule 6)."""

RUNNING_STATES: Final = frozenset({"running"})
"""Run states in which the guest's vCPUs execute."""

ENDED_BY_GUEST: Final = frozenset({"shutdown", "guest-panicked", "internal-error"})
"""Run states that the guest brought about itself; nothing of ours to repair."""


def under_way(status: str) -> bool:
    """Tell whether a status means that a migration goes on (unknown statuses do)."""
    return status not in IDLE and status not in TERMINAL
