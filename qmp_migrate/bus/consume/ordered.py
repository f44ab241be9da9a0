"""Following the bus: what is new, in order, once, with the gaps marked.

A broker repeats itself (retained state comes again after each reconnect, QoS 1 may deliver twice), forgets (a queue
that runs over loses events without a word) and mixes up (a late last will). `Order` sorts that out; it is data in,
data out. `follow` puts it between a `BusClient` and a reader.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

import structlog

from qmp_migrate.bus.client.client import BusClient
from qmp_migrate.bus.client.subscription import Received
from qmp_migrate.bus.messages.registry import (
    BusMessage,
    CloudEvent,
    HostVm,
    MigrationProgress,
    MigrationState,
    StatusMessage,
)
from qmp_migrate.bus.messages.session import Session
from qmp_migrate.bus.messages.topics import Address, Kind

REMEMBERED: Final = 50_000
"""Topics whose last message is remembered; a hostile publisher cannot make it more."""

log = structlog.get_logger("qmp_migrate.bus")


@dataclass(frozen=True, slots=True)
class Followed:
    """One piece of news.

    Attributes:
        received: The message.
        missed: How many events were lost right before it on its topic; 0 for all that is not an event.
    """

    received: Received
    missed: int = 0


class Order:
    """Tells news from repetition, per topic, and finds gaps."""

    def __init__(self) -> None:
        self._last: OrderedDict[str, BusMessage | None] = OrderedDict()

    def admit(self, received: Received) -> Followed | None:
        """Return the message with the gap before it, or ``None`` if it is not news."""
        topic, message = received.topic, received.message
        known = topic in self._last
        before = self._last.get(topic)
        if known and not _is_news(before, message):
            return None
        self._last[topic] = message
        self._last.move_to_end(topic)
        if len(self._last) > REMEMBERED:
            self._last.popitem(last=False)
        if known and isinstance(message, CloudEvent) and isinstance(before, CloudEvent):
            last_seq = before.seq if message.session == before.session else 0
            return Followed(received, missed=max(0, message.seq - last_seq - 1))
        return Followed(received)


def _is_news(before: BusMessage | None, message: BusMessage | None) -> bool:
    match before, message:
        case CloudEvent(), CloudEvent():
            return message.session != before.session or message.seq > before.seq
        case MigrationState(), MigrationState():
            return message.rev > before.rev or message.controller != before.controller
        case MigrationProgress(), MigrationProgress():
            return message.seq > before.seq
        case StatusMessage(), StatusMessage() if message.session != before.session:
            last = Session(before.session, before.started_at)
            return Session(message.session, message.started_at).newer_than(last)
    return message != before


class AboutGuest:
    """Picks what concerns one guest; learns from the states which migrations are its own."""

    def __init__(self, vm: str) -> None:
        self._vm = vm
        self._migrations: set[str] = set()

    def concerns(self, address: Address, message: BusMessage | None) -> bool:
        """Tell whether a message, or the clearing of a topic, is about the guest."""
        if address.kind is Kind.HOST_VM:
            return address.vm == self._vm
        if isinstance(message, CloudEvent):
            return message.subject == self._vm
        if isinstance(message, MigrationState | MigrationProgress | HostVm) and message.vm == self._vm:
            self._migrations.add(address.owner)
        return address.kind.value.startswith("migration.") and address.owner in self._migrations


async def follow(client: BusClient, *, vm: str | None = None) -> AsyncIterator[Followed]:
    """Follow everything, or one guest: first how things are (retained states), then what happens, for ever.

    Refused payloads are logged once per topic and reason, and skipped.

    Args:
        client: A started client.
        vm: Only what concerns this guest.

    Yields:
        News; ``received.retained`` is True for what was so before.

    Raises:
        BusError: The broker refuses the subscription.
    """
    order, guest, refused = Order(), AboutGuest(vm) if vm is not None else None, set[tuple[str, str]]()
    topics = client.topics
    async with client.subscribe(topics.all_hosts(), topics.all_migrations(), topics.all_controllers()) as messages:
        async for received in messages:
            if received.error is not None:
                key = (received.topic, received.error.code)
                if key not in refused and len(refused) < REMEMBERED:
                    refused.add(key)
                    log.warning("message-refused", reason=received.error.message, code=received.error.code)
                continue
            followed = order.admit(received)
            if followed is None or received.address is None:
                continue
            if guest is None or guest.concerns(received.address, received.message):
                yield followed
