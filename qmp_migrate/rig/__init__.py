"""A lab of several hosts on one machine: sshds, agents, a broker and a test guest, without root.

state = await up(default_directory())
…
await down(state.directory)
"""

from __future__ import annotations

from qmp_migrate.rig.addresses import RigHost, default_directory
from qmp_migrate.rig.lab import RigStatus, down, status, up
from qmp_migrate.rig.state import Part, RigState

__all__ = ["Part", "RigHost", "RigState", "RigStatus", "default_directory", "down", "status", "up"]
