"""Retained states of migrations that ended long ago are cleared: the bus is no archive (that is the journal).

Any controller does it for all, whoever drove them: one that has died cannot. What has not ended stays, whatever became of its
controller: it is not gone.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final

import structlog

from qmp_migrate.bus.client.client import BusClient
from qmp_migrate.bus.messages.field_types import now
from qmp_migrate.bus.messages.registry import MigrationState
from qmp_migrate.errors import BusError

KEEP: Final = timedelta(hours=24)
"""For how long what came of a migration stays to be read by who subscribes late."""

log = structlog.get_logger("qmp_migrate.bus")


async def forget_old(client: BusClient, *, keep: timedelta = KEEP) -> None:
    """Clear what is old, as it comes; runs until it is cancelled, and never raises.

    Args:
        client: Who may write migrations' topics.
        keep: How long a state stays after its last change.
    """
    try:
        async with client.subscribe(f"{client.topics.root}/migration/+/state") as messages:
            async for received in messages:
                state = received.message
                if not received.retained or not isinstance(state, MigrationState):
                    continue
                if state.outcome is not None and now() - state.at > keep:
                    client.clear_state(received.topic)
    except BusError as error:
        log.info("old-migrations-stay", reason=error.message)
