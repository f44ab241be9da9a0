"""The one way onto the bus, for publishers and subscribers alike.

A `BusClient` connects in the background and for ever. Publishing is a plain call that takes a fraction of a
millisecond, never waits and never raises, whatever the broker does: a migration must not notice that the broker is
gone (DESIGN §7). An outage is logged once when it begins and once when it ends.

::

    async with BusClient(BrokerAddress.parse("mqtt://127.0.0.1"), Topics(), role="ctl") as client:
        client.publish_state(topics.migration_state(id), message)     # at once, broker or not
        async with client.subscribe(topics.all_hosts()) as messages:
            async for received in messages: ...
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import aiomqtt
import structlog

from qmp_migrate.bus.client.address import BrokerAddress
from qmp_migrate.bus.client.backoff import Outage
from qmp_migrate.bus.client.connection import Connection
from qmp_migrate.bus.client.outbox import Entry, Outbox
from qmp_migrate.bus.client.presence import Presence
from qmp_migrate.bus.client.subscription import Subscription
from qmp_migrate.bus.messages.codec import decode, encode
from qmp_migrate.bus.messages.registry import BusMessage, StatusMessage
from qmp_migrate.bus.messages.topics import Topics
from qmp_migrate.errors import BusError

KEEPALIVE_S: Final = 10
CONNECT_TIMEOUT_S: Final = 10.0
IN_FLIGHT: Final = 8
"""Messages sent without waiting for the acknowledgement of the one before. aiomqtt warns above 10."""
STOP_TIMEOUT_S: Final = 0.5

log = structlog.get_logger("qmp_migrate.bus")


@dataclass(frozen=True, slots=True)
class Sign:
    """Whether we are there, for those who know nothing of sessions: retained, and our last will.

    Attributes:
        topic: Where it is said.
        there: Payload after each connect.
        away: Payload of the last will, and at the end.
    """

    topic: str
    there: bytes = b"online"
    away: bytes = b"offline"


class BusClient:
    """A connection to the broker that is always there, as far as the caller can tell.

    Args:
        address: The broker.
        topics: The topics in use.
        role: Short word for the client id, for example ``ctl``, ``agent``, ``events``; for the broker's logs.
        presence: Our own status with its last will, or ``None`` for a mere subscriber.
        sign: The same for a publisher of topics that are not the bus's own; not together with `presence`.

    Attributes:
        topics: The topics in use.
        presence: Our own status.
        tried: Set once the first attempt to connect has ended, either way.
    """

    def __init__(
        self,
        address: BrokerAddress,
        topics: Topics,
        *,
        role: str,
        presence: Presence | None = None,
        sign: Sign | None = None,
    ) -> None:
        self.topics = topics
        self.presence = presence
        self._sign = sign
        self._address = address
        # Unique per process and the same after a reconnect, so that the broker ends the old connection first.
        # At most 23 characters: all that MQTT 3.1.1 promises.
        self._identifier = f"qm-{role[:6]}-{os.getpid() % 10**7:x}-{secrets.token_hex(3)}"
        self._outbox = Outbox()
        self._subscriptions: list[Subscription] = []
        self._to_subscribe: list[Subscription] = []
        self._to_unsubscribe: list[str] = []
        self._wake = asyncio.Event()
        self._drained = asyncio.Event()
        self._connected = asyncio.Event()
        self.tried = asyncio.Event()
        self._outage = Outage(address.url)
        self._closing = False
        self._task: asyncio.Task[None] | None = None
        self._connection: Connection | None = None
        self._own: Subscription | None = None
        self._refused_once: set[str] = set()

    # -- life ---------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def start(self) -> None:
        """Begin to connect, in the background. Returns at once."""
        if self._task is None and not self._closing:
            self._task = asyncio.create_task(self._stay_connected(), name="mqtt client")

    @property
    def connected(self) -> bool:
        """Whether the broker is there now."""
        return self._connected.is_set()

    @property
    def waiting(self) -> int:
        """How many messages wait to be sent."""
        return len(self._outbox)

    @property
    def dropped(self) -> int:
        """How many messages were given up."""
        return self._outbox.dropped

    async def wait_connected(self, timeout: float = CONNECT_TIMEOUT_S) -> None:
        """Wait until the broker is there: for those whose purpose is the bus.

        Args:
            timeout: Seconds.

        Raises:
            BusError: It is not, with the reason of the last attempt.
        """
        try:
            async with asyncio.timeout(timeout):
                await self._connected.wait()
        except TimeoutError:
            raise BusError(
                f"no connection to the broker {self._address.url} within {timeout:g} s: {self._outage.reason}",
                hint="is the broker running, and are [mqtt] url, user and certificates right?",
            ) from None

    async def close(self, flush_timeout: float = 1.0) -> None:
        """Say ``stopped``, send what waits if that is quickly done, and disconnect. Safe to call twice.

        Never raises and never takes longer than `flush_timeout` and a second, broker or not. Where the last words
        could not be sent, the connection is cut without a farewell, so that the broker says ``lost`` for us.

        Args:
            flush_timeout: Seconds for what waits.
        """
        if self._closing:
            return
        self._say_farewell()
        self._closing = True
        task, self._task = self._task, None
        if task is not None:
            if len(self._outbox) and not self._outage.lasts:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(flush_timeout):
                        await self._drained.wait()
            if len(self._outbox) and self._connection is not None:
                self._connection.cut()
            task.cancel()
            await asyncio.wait({task}, timeout=STOP_TIMEOUT_S)
        for subscription in self._subscriptions:
            subscription.end()

    # -- publishing: plain calls that never wait and never raise ------------------------------------------------

    def publish_state(self, topic: str, message: BusMessage, *, qos: int = 1) -> None:
        """Publish a state. The broker keeps it; it is sent again whenever the broker may have forgotten it.

        Args:
            topic: Where to.
            message: What; encoded now, so later changes of its parts do not matter.
            qos: 1, or 0 where the next one comes soon anyway.
        """
        if (payload := self._encode(topic, message)) is not None:
            self._outbox.put_state(topic, payload, qos=qos)
            self._nudge()

    def clear_state(self, topic: str) -> None:
        """Make the broker forget the state of a topic: the thing is gone."""
        if not self._closing:
            self._outbox.put_state(topic, b"")
            self._nudge()

    def publish_foreign(self, topic: str, payload: bytes) -> None:
        """Publish a retained payload on a topic that is not the bus's own, in the format of others; empty: clear it.

        Args:
            topic: Where to.
            payload: What.
        """
        if not self._closing:
            self._outbox.put_state(topic, payload)
            self._nudge()

    def publish_sign(self) -> None:
        """Say again that we are there, where there is a `Sign`."""
        if self._sign is not None:
            self.publish_foreign(self._sign.topic, self._sign.there)

    def publish_event(self, topic: str, message: BusMessage) -> None:
        """Publish an event. Kept through an outage as far as there is room, in order."""
        if (payload := self._encode(topic, message)) is not None:
            self._outbox.put_event(topic, payload)
            self._nudge()

    def publish_progress(self, topic: str, message: BusMessage) -> None:
        """Publish a progress report: the newest per topic counts, and it is the first to be dropped."""
        if (payload := self._encode(topic, message)) is not None:
            self._outbox.put_progress(topic, payload)
            self._nudge()

    def announce(self) -> None:
        """Publish our own status again, after its state was changed."""
        if self.presence is not None:
            self.publish_state(self.presence.topic, self.presence.current())

    def _encode(self, topic: str, message: BusMessage) -> bytes | None:
        if self._closing:
            return None
        try:
            return encode(message)
        except BusError as error:
            self._log_once("message-not-published", topic, error.message)
            return None

    def _nudge(self) -> None:
        self._drained.clear()
        self._wake.set()

    # -- subscribing --------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def subscribe(self, *filters: str) -> AsyncIterator[Subscription]:
        """Subscribe, through every reconnect, until the context ends.

        Retained state comes first, and again after each reconnect. The subscription's iteration raises `BusError`
        if the broker refuses it.

        Args:
            filters: MQTT topic filters, for example ``topics.all_hosts()``.
        """
        subscription = self._open(*filters)
        try:
            yield subscription
        finally:
            subscription.end()
            self._subscriptions.remove(subscription)
            wanted = {pattern for other in self._subscriptions for pattern in other.filters}
            self._to_unsubscribe.extend(set(filters) - wanted)
            self._wake.set()

    def _open(self, *filters: str) -> Subscription:
        subscription = Subscription(self.topics, filters)
        self._subscriptions.append(subscription)
        self._to_subscribe.append(subscription)
        self._wake.set()
        return subscription

    # -- in the background --------------------------------------------------------------------------------------

    async def _stay_connected(self) -> None:
        if self.presence is not None:
            self._own = self._open(self.presence.topic)
        while not self._closing:
            began = time.monotonic()
            reason: BaseException | str = "the broker closed the connection"
            try:
                await self._one_connection()
            except* (aiomqtt.MqttError, OSError) as group:
                first = group.exceptions[0]
                reason = first.__cause__ or first  # "connection lost" says more than "disconnected"
            except* Exception as group:  # a bug of ours or of a library must not end the publishing for good
                if not self._outage.lasts:
                    log.exception("mqtt-client-failed", broker=self._address.url)
                reason = group.exceptions[0]
            self._connected.clear()
            self.tried.set()
            self._connection = None
            if not self._closing:
                await asyncio.sleep(self._outage.began(reason, lasted_s=time.monotonic() - began))

    async def _one_connection(self) -> None:
        will = None
        if self.presence is not None:
            # A new session before each connection: the will of the last one must not speak for this one.
            will = aiomqtt.Will(self.presence.topic, encode(self.presence.begin()), qos=1, retain=True)
        elif self._sign is not None:
            will = aiomqtt.Will(self._sign.topic, self._sign.away, qos=1, retain=True)
        connection = Connection.to(
            self._address,
            identifier=self._identifier,
            will=will,
            keepalive_s=KEEPALIVE_S,
            timeout_s=CONNECT_TIMEOUT_S,
        )
        async with connection:
            self._connection = connection
            self._to_unsubscribe.clear()
            self._to_subscribe = list(self._subscriptions)
            if self.presence is not None and not self._closing:
                self._outbox.put_state(self.presence.topic, encode(self.presence.current()))
            if self._sign is not None and not self._closing:
                self._outbox.put_state(self._sign.topic, self._sign.there)
            self._outbox.resend_states(last=self.presence.topic if self.presence else None)
            self._nudge()
            self._outage.ended()
            self._connected.set()
            self.tried.set()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._receive(connection))
                group.create_task(self._send(connection))

    async def _receive(self, connection: Connection) -> None:
        async for message in connection.messages:
            if self._own is not None and self.presence is not None and self._own.matches(message):
                self._mind_own_status(message)
            for subscription in self._subscriptions:
                if subscription is not self._own and subscription.matches(message):
                    subscription.put(message)

    async def _send(self, connection: Connection) -> None:
        while True:
            if self._to_unsubscribe:
                gone, self._to_unsubscribe = self._to_unsubscribe, []
                await connection.unsubscribe(gone)
            while self._to_subscribe:
                await self._subscribe(connection, self._to_subscribe.pop(0))
            batch = self._outbox.take(IN_FLIGHT)
            if batch:
                await self._publish(connection, batch)
                continue
            self._drained.set()
            self._wake.clear()
            await self._wake.wait()

    async def _publish(self, connection: Connection, batch: list[Entry]) -> None:
        async def publish(entry: Entry) -> None:
            await connection.publish(entry.topic, entry.payload, qos=entry.qos, retain=entry.retain)

        # Tasks start in the order they were made, and paho sends in the order of the calls: the order is kept.
        tasks = [asyncio.create_task(publish(entry)) for entry in batch]
        try:
            await asyncio.wait(tasks)
        finally:  # also when we are cancelled because the connection has ended
            for entry, task in zip(batch, tasks, strict=True):
                if task.done() and not task.cancelled() and task.exception() is None:
                    self._outbox.sent(entry)
                    continue
                task.cancel()
                if self._outbox.failed(entry):
                    self._log_once("message-given-up", entry.topic, "the connection ends whenever it is sent")
        for task in tasks:
            task.result()

    async def _subscribe(self, connection: Connection, subscription: Subscription) -> None:
        try:
            codes = await connection.subscribe([(pattern, 1) for pattern in subscription.filters])
        except ValueError as error:  # paho finds that a filter is none
            subscription.end(
                BusError(f"cannot subscribe to {subscription.filters}: {error}", hint="see MQTT 3.1.1, 4.7")
            )
            return
        # A refusal is no error for aiomqtt, only a number: 0x80, or more with MQTT 5.
        numbers = [code if isinstance(code, int) else int(code.value) for code in codes]
        refused = [pattern for pattern, number in zip(subscription.filters, numbers, strict=False) if number >= 0x80]
        if not refused:
            subscription.established.set()
        elif subscription is self._own:
            self._log_once("own-status-unreadable", refused[0], "the broker refuses: a stale last will may stay")
        else:
            subscription.end(
                BusError(
                    f"the broker {self._address.url} refuses the subscription to {', '.join(refused)}",
                    hint="the broker's access list must allow this user to read these topics",
                )
            )

    # -- our own status -----------------------------------------------------------------------------------------

    def _mind_own_status(self, message: aiomqtt.Message) -> None:
        """Say again what is true when an old will (or a wipe) has been put on our topic."""
        if self.presence is None or self._closing:
            return
        try:
            _, status = decode(self.topics, str(message.topic), message.payload)
        except BusError:
            status = None
        verdict: str = self.presence.judge(status) if status is not None else "stale"
        left_over = message.retain or (isinstance(status, StatusMessage) and status.state in ("lost", "stopped"))
        if verdict == "rival" and status is not None and left_over:
            verdict = "outranked" if self.presence.outrank(status) else "rival"
        if verdict == "outranked" or (verdict == "stale" and not message.retain):
            self.announce()
        elif verdict == "rival":
            self._log_once("name-used-twice", self.presence.topic, "another process publishes under our name")

    def _say_farewell(self) -> None:
        if self._sign is not None and self._task is not None:
            self.publish_foreign(self._sign.topic, self._sign.away)
        if self.presence is None or self._task is None:
            return
        self.presence.state = "stopped"
        if self.presence.ephemeral:
            self.publish_event(self.presence.topic, self.presence.current())
            self.clear_state(self.presence.topic)
        else:
            self.announce()

    def _log_once(self, event: str, topic: str, reason: str) -> None:
        if event not in self._refused_once:
            self._refused_once.add(event)
            log.warning(event, broker=self._address.url, topic=topic, reason=reason, further="not repeated")
