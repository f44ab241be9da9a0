"""Why a guest's QEMU has ended, from what was seen of it: pure."""

from __future__ import annotations

from typing import Final

MIGRATED: Final = "migrated"


def ending(*, shutdown_reason: str | None, role: str, migration_status: str | None, watched: bool) -> str:
    """Return one word for the event ``guest-gone``.

    Args:
        shutdown_reason: ``reason`` of QEMU's event ``SHUTDOWN``; ``None``: none came.
        role: Its last part in a migration.
        migration_status: Its last migration status.
        watched: Its events were listened to until the end.

    Returns:
        ``migrated`` (it had handed the guest over), ``shutdown`` (the guest powered off), ``panic``, ``quit`` (told to by a
        monitor), ``killed`` (QEMU took a signal that it could tell of), ``crashed`` (it ended without a word), ``unknown``
        (nobody was listening).
    """
    if role == "source" and migration_status == "completed":
        return MIGRATED
    match shutdown_reason:
        case "guest-panic":
            return "panic"
        case "guest-shutdown" | "guest-reset":
            return "shutdown"
        case "host-qmp-quit" | "host-qmp-system-reset" | "host-ui":
            return "quit"
        case "host-signal":
            return "killed"
        case None | "":
            return "crashed" if watched else "unknown"
    return shutdown_reason
