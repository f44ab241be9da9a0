"""The standing service behind ``qmp-migrate home-assistant``: listens to the bus, and publishes what discovery wants."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from qmp_migrate.bus.client.client import BusClient
from qmp_migrate.bus.consume.ordered import follow
from qmp_migrate.bus.consume.staleness import with_pauses
from qmp_migrate.bus.publish.home_assistant import HomeAssistant
from qmp_migrate.errors import BusError

LOOK_S: Final = 1.0
"""How often what has changed is published: a migration's numbers come four times a second."""
LEFTOVERS_S: Final = 300.0
"""What an earlier run has announced, and nobody speaks of for so long, is taken away. Agents need a while to come back."""
SETTLED_S: Final = 2.0
"""Retained state has come when nothing new has for so long: MQTT has no mark for its end."""

REPEAT_S: Final = 60.0
"""How often ``online`` is said again: the last will of a run whose machine died comes when the broker notices that."""

log = structlog.get_logger("qmp_migrate.home_assistant")


class Announcer:
    """Keeps Home Assistant told, until cancelled.

    Args:
        devices: What is told.
        leftovers_s: See `LEFTOVERS_S`.
    """

    def __init__(self, devices: HomeAssistant, *, leftovers_s: float = LEFTOVERS_S) -> None:
        self._devices = devices
        self._leftovers_s = leftovers_s
        self._left_out = 0

    async def run(self, client: BusClient) -> None:
        """Listen and publish.

        Args:
            client: A started client.

        Raises:
            BusError: The broker refuses a subscription.
        """
        tidying = asyncio.create_task(self._take_leftovers_away(client))
        try:
            await self._announce(client)
        finally:
            tidying.cancel()
            await asyncio.gather(tidying, return_exceptions=True)

    async def _announce(self, client: BusClient) -> None:
        clock, looked, repeated = asyncio.get_running_loop().time, 0.0, 0.0
        async for news in with_pauses(follow(client), LOOK_S):
            if news is not None:
                self._devices.hear(news.received, clock())
            if (now := clock()) - looked < LOOK_S:
                continue
            looked = now
            if now - repeated >= REPEAT_S:
                client.publish_sign()
                repeated = now
            for topic, payload in self._devices.changes(now).items():
                client.publish_foreign(topic, payload)
            if self._devices.left_out and not self._left_out:
                log.warning("too-many-devices", hint="choose guests with --vm", further="not repeated")
            self._left_out = self._devices.left_out

    async def _take_leftovers_away(self, client: BusClient) -> None:
        try:
            there = await retained(client, self._devices, self._leftovers_s)
        except BusError as error:
            log.warning("leftovers-unknown", reason=error.message)
            return
        for topic in _entities_first(there - set(self._devices.said)):
            log.info("leftover-removed", topic=topic)
            client.publish_foreign(topic, b"")


async def retained(client: BusClient, devices: HomeAssistant, seconds: float) -> set[str]:
    """Return what the broker holds of ours for Home Assistant.

    Args:
        client: A started client.
        devices: Says which topics are ours.
        seconds: For how long it is listened, from when the broker has agreed.

    Raises:
        BusError: The broker refuses the subscription.
    """
    found: set[str] = set()
    async with client.subscribe(*devices.own_topics) as messages:

        async def listen() -> None:
            async for received in messages:
                if received.retained:
                    found.add(received.topic)

        listening = asyncio.create_task(listen())
        agreed = asyncio.create_task(messages.established.wait())
        try:
            await asyncio.wait({listening, agreed}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({listening}, timeout=seconds)
            if listening.done():
                listening.result()  # refused
        finally:
            for task in (listening, agreed):
                task.cancel()
            await asyncio.gather(listening, agreed, return_exceptions=True)
    return found


async def gather(client: BusClient, devices: HomeAssistant) -> dict[str, bytes]:
    """Return what would be published for how things are now.

    Args:
        client: A started client.
        devices: What is told.

    Raises:
        BusError: The broker refuses the subscription.
    """
    clock = asyncio.get_running_loop().time
    await client.wait_connected()
    async for news in with_pauses(follow(client), SETTLED_S):
        if news is None:
            break
        devices.hear(news.received, clock())
    devices.changes(clock())
    return devices.said


async def remove(client: BusClient, devices: HomeAssistant) -> int:
    """Take all of it away again.

    Args:
        client: A started client.
        devices: Says which topics are ours.

    Returns:
        How many topics were cleared.

    Raises:
        BusError: The broker is not there, or refuses the subscription.
    """
    await client.wait_connected()
    there = await retained(client, devices, SETTLED_S)
    for topic in (*_entities_first(there), devices.status_topic):
        client.publish_foreign(topic, b"")
    return len(there)


def _entities_first(topics: set[str]) -> list[str]:
    """Return topics in the order in which they are cleared: an entity that is still there complains of an empty state."""
    return sorted(topics, key=lambda topic: (not topic.endswith("/config"), topic))
