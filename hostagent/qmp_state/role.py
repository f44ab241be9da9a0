"""What part a guest has in a migration: a pure decision from what its QEMU says."""

from __future__ import annotations

from qmp_migrate.bus.messages.registry import Role
from qmp_migrate.qemu.states import IDLE, POSTCOPY, under_way


def role_of(*, runstate: str, migration_status: str | None, arrived: bool) -> Role:
    """Say whether a guest is being sent, is arriving, or neither.

    QEMU answers ``query-migrate`` on both sides, and an arrived guest goes on to say ``completed`` for ever: the run
    state and the way it was started tell the sides apart.

    Args:
        runstate: QEMU's run state.
        migration_status: QEMU's migration status, ``None`` where it has had none.
        arrived: True unless it was started with ``-incoming`` and has never been seen running.
    """
    if runstate == "inmigrate":
        return "incoming"
    if runstate == "finish-migrate":
        return "source"
    if runstate == "postmigrate":
        # A paused guest whose migration was cancelled: QEMU 7.2 calls it `postmigrate`, but it is still the guest.
        return "idle" if migration_status in IDLE else "source"
    if migration_status is None:
        return "idle"
    if migration_status in POSTCOPY:
        # The destination runs while the rest of its memory still comes in; the source has stopped for good.
        return "incoming" if runstate == "running" else "source"
    if under_way(migration_status):
        return "source"
    if migration_status == "completed" and not arrived and runstate in ("paused", "prelaunch"):
        return "incoming"  # all is there, and it waits for the controller's `cont`
    return "idle"
