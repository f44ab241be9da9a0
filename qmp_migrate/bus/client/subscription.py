"""What a subscriber gets: decoded messages, in order, as long as it wants them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

import aiomqtt

from qmp_migrate.bus.messages.codec import decode
from qmp_migrate.bus.messages.registry import BusMessage
from qmp_migrate.bus.messages.topics import Address, Topics
from qmp_migrate.errors import BusError

QUEUE_LIMIT: Final = 50_000
QUEUE_BYTES_LIMIT: Final = 64 * 1024 * 1024
"""What is kept for a slow reader; beyond that the oldest messages go."""


@dataclass(frozen=True, slots=True)
class Received:
    """One message from the bus.

    Attributes:
        topic: Where it came on.
        retained: True: it is the state from before the subscription, not news.
        address: The topic taken apart; ``None`` only where it is none of ours.
        message: The message; ``None`` where the topic was cleared, or the payload refused.
        error: Why the payload was refused, or ``None``.
    """

    topic: str
    retained: bool
    address: Address | None
    message: BusMessage | None
    error: BusError | None = None

    @property
    def cleared(self) -> bool:
        """Whether the retained state of this topic was cleared: the thing is gone."""
        return self.message is None and self.error is None


class Subscription:
    """Some topic filters and what arrives on them. Made by `BusClient.subscribe`; lives across reconnects.

    Attributes:
        filters: MQTT topic filters.
        established: Set once the broker has agreed, in the present connection or an earlier one.
        dropped: Messages that were given up because nobody took them.
    """

    def __init__(self, topics: Topics, filters: tuple[str, ...]) -> None:
        self.filters = filters
        self.established = asyncio.Event()
        self.dropped = 0
        self._topics = topics
        self._queue: deque[aiomqtt.Message] = deque()
        self._bytes = 0
        self._wake = asyncio.Event()
        self._error: BusError | None = None
        self._ended = False

    def __aiter__(self) -> AsyncIterator[Received]:
        return self

    async def __anext__(self) -> Received:
        """Return the next message.

        Raises:
            BusError: The broker refuses this subscription.
            StopAsyncIteration: The client was closed.
        """
        while not self._queue:
            if self._error is not None:
                raise self._error
            if self._ended:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        return self._decode(self._pop())

    def matches(self, message: aiomqtt.Message) -> bool:
        """Tell whether a message came for one of our filters."""
        return any(message.topic.matches(pattern) for pattern in self.filters)

    def put(self, message: aiomqtt.Message) -> None:
        """Take a message for the reader."""
        self._queue.append(message)
        self._bytes += len(message.payload)
        while len(self._queue) > QUEUE_LIMIT or self._bytes > QUEUE_BYTES_LIMIT:
            self._pop()
            self.dropped += 1
        self._wake.set()

    def end(self, error: BusError | None = None) -> None:
        """End the iteration, with an error where the broker has refused."""
        self._ended = True
        self._error = self._error or error
        self._wake.set()

    def _pop(self) -> aiomqtt.Message:
        message = self._queue.popleft()
        self._bytes -= len(message.payload)
        return message

    def _decode(self, message: aiomqtt.Message) -> Received:
        topic = str(message.topic)
        try:
            address, decoded = decode(self._topics, topic, message.payload)
        except BusError as error:
            return Received(topic, message.retain, self._topics.parse(topic), None, error.with_traceback(None))
        return Received(topic, message.retain, address, decoded)
