"""A controller on the bus: itself and its migrations, for as long as it works."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from typing import Final

from qmp_migrate.migration.model.reporter import Reporter
from qmp_migrate.settings import Settings

FLUSH_S: Final = 1.0


@contextlib.asynccontextmanager
async def on_the_bus(settings: Settings) -> AsyncIterator[Reporter]:
    """Publish this controller and its migrations for as long as the block lasts; never waits for the broker."""
    from qmp_migrate.bus.client.address import BrokerAddress
    from qmp_migrate.bus.messages.topics import Topics
    from qmp_migrate.bus.publish.mqtt_reporter import MqttReporter, controller_client
    from qmp_migrate.bus.publish.retention import forget_old

    mqtt = settings.mqtt
    address = BrokerAddress.of(mqtt)
    name = f"ctl-{secrets.token_hex(4)}"
    client = controller_client(address, Topics(mqtt.root), name)
    client.start()
    tidying = asyncio.create_task(forget_old(client), name="old migrations")
    try:
        yield MqttReporter(client, name)
    finally:
        tidying.cancel()
        await asyncio.gather(tidying, return_exceptions=True)
        await client.close(FLUSH_S)
