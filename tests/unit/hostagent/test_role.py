"""Roles: every pair of run state and migration status that QEMU was seen to report."""

from __future__ import annotations

import pytest

from hostagent.qmp_state.role import role_of

# run state, migration status, has arrived (or never had to), role
TABLE = [
    ("running", None, True, "idle"),
    ("paused", None, True, "idle"),
    ("prelaunch", None, True, "idle"),
    ("shutdown", None, True, "idle"),
    ("unknown", None, True, "idle"),
    # the source
    ("running", "setup", True, "source"),
    ("running", "active", True, "source"),
    ("paused", "active", True, "source"),
    ("paused", "pre-switchover", True, "source"),
    ("finish-migrate", "device", True, "source"),
    ("finish-migrate", "postcopy-active", True, "source"),
    ("postmigrate", "completed", True, "source"),
    ("postmigrate", "postcopy-paused", True, "source"),
    ("running", "cancelling", True, "source"),
    ("running", "wait-unplug", True, "source"),
    ("running", "some-status-of-qemu-12", True, "source"),
    ("postmigrate", "completed", False, "source"),  # it had come here by a migration itself, and the agent is new
    ("running", "cancelled", True, "idle"),
    ("postmigrate", "cancelled", True, "idle"),  # QEMU 7.2: it was paused before, and is so again
    ("postmigrate", "failed", True, "idle"),
    ("running", "failed", True, "idle"),
    # the destination
    ("inmigrate", None, False, "incoming"),
    ("inmigrate", "active", False, "incoming"),
    ("inmigrate", "failed", False, "incoming"),
    ("paused", "completed", False, "incoming"),
    ("running", "postcopy-active", True, "incoming"),
    ("running", "postcopy-paused", True, "incoming"),
    # afterwards it goes on to say `completed`
    ("running", "completed", True, "idle"),
    ("paused", "completed", True, "idle"),  # or taken back by `cont` where it was sent from, and then stopped
    # and may be sent on
    ("running", "active", True, "source"),
]


@pytest.mark.parametrize(("runstate", "status", "arrived", "role"), sorted(set(TABLE), key=str))
def test_role(runstate: str, status: str | None, arrived: bool, role: str) -> None:
    assert role_of(runstate=runstate, migration_status=status, arrived=arrived) == role
