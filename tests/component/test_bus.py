"""The bus against real brokers: the embedded one and Mosquitto."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from qmp_migrate.bus.broker.embedded import EmbeddedBroker
from qmp_migrate.bus.client.address import BrokerAddress
from qmp_migrate.bus.client.client import BusClient
from qmp_migrate.bus.client.presence import Presence
from qmp_migrate.bus.consume.ordered import Followed, follow
from qmp_migrate.bus.messages.registry import HostVm
from qmp_migrate.bus.messages.topics import Topics
from qmp_migrate.bus.publish.mqtt_reporter import MqttReporter, controller_client
from qmp_migrate.errors import BusError
from qmp_migrate.migration.model.reporter import MigrationView
from tests.support.data.golden_messages import event, presence_of_a, vm
from tests.support.real.brokers import PATIENCE_S, AnyBroker, Embedded, Mosquitto, free_port, until

TOPICS = Topics()


@pytest.fixture(params=["embedded", "mosquitto"])
async def broker(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[AnyBroker]:
    made: AnyBroker = Embedded() if request.param == "embedded" else Mosquitto(tmp_path)
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def mosquitto(tmp_path: Path) -> AsyncIterator[Mosquitto]:
    made = Mosquitto(tmp_path)
    await made.start()
    yield made
    await made.stop()


def client(broker: AnyBroker, role: str = "test", presence: Presence | None = None) -> BusClient:
    return BusClient(BrokerAddress.parse(broker.url), TOPICS, role=role, presence=presence)


class Follower:
    """Reads everything from a broker, in the background."""

    def __init__(self, broker: AnyBroker, vm: str | None = None) -> None:
        self.client = client(broker, "events")
        self.news: list[Followed] = []
        self._vm = vm

    async def __aenter__(self) -> Follower:
        self.client.start()
        self._task = asyncio.create_task(self._read())
        await self.client.wait_connected()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self.client.close()

    async def _read(self) -> None:
        async for followed in follow(self.client, vm=self._vm):
            self.news.append(followed)

    def last(self, topic: str) -> Any:
        """The newest message of a topic; ``False`` where none came."""
        found = [item.received.message for item in self.news if item.received.topic == topic]
        return found[-1] if found else False


async def test_a_late_subscriber_learns_the_state_and_a_cleared_topic_is_gone(broker: AnyBroker) -> None:
    async with client(broker) as publisher:
        publisher.publish_state(TOPICS.host_vm("a", "web1"), vm("web1", runstate="paused"))
        publisher.publish_state(TOPICS.host_vm("a", "web1"), vm("web1", runstate="running"))
        publisher.publish_state(TOPICS.host_vm("a", "web2"), vm("web2"))
        publisher.clear_state(TOPICS.host_vm("a", "web2"))
        await publisher.wait_connected()
        await until(lambda: not len(publisher._outbox), "all is sent")
        async with Follower(broker) as follower:
            await until(lambda: bool(follower.news), "the state comes")
            first = follower.news[0].received
            assert first.retained
            assert isinstance(first.message, HostVm)
            assert (first.message.vm, first.message.runstate) == ("web1", "running")
            publisher.clear_state(TOPICS.host_vm("a", "web1"))
            await until(lambda: follower.last(TOPICS.host_vm("a", "web1")) is None, "the guest is gone")
            assert follower.last(TOPICS.host_vm("a", "web2")) is False


async def test_a_broker_that_comes_back_empty_gets_all_state_again_and_the_outage_is_said_once(
    broker: AnyBroker,
) -> None:
    with capture_logs() as logs:
        async with client(broker, presence=presence_of_a()) as publisher:
            for name in ("web1", "web2", "web3"):
                publisher.publish_state(TOPICS.host_vm("a", name), vm(name))
            publisher.publish_event(TOPICS.migration_event("m-1"), event(1))
            await publisher.wait_connected()
            await until(lambda: not len(publisher._outbox), "all is sent")
            await broker.stop()
            await until(lambda: not publisher.connected, "the loss is noticed")
            publisher.publish_state(TOPICS.host_vm("a", "web2"), vm("web2", runstate="paused"))
            publisher.clear_state(TOPICS.host_vm("a", "web3"))
            publisher.publish_event(TOPICS.migration_event("m-1"), event(2))
            attempts = publisher._outage._attempts
            await until(lambda: publisher._outage._attempts >= attempts + 2, "it tries again")
            await broker.start()
            async with Follower(broker) as follower:
                await until(lambda: bool(follower.last(TOPICS.host_status("a"))), "the publisher is back")
                await until(lambda: bool(follower.last(TOPICS.migration_event("m-1"))), "the kept event came")
                states = {name: follower.last(TOPICS.host_vm("a", name)) for name in ("web1", "web2", "web3")}
                assert states["web1"].runstate == "running"
                assert states["web2"].runstate == "paused"
                assert not states["web3"]
                assert follower.last(TOPICS.migration_event("m-1")).seq == 2
    said = [entry["event"] for entry in logs]
    assert said.count("broker-unreachable") == 1
    assert said.count("broker-back") == 1


async def test_a_dead_broker_is_said_once_and_never_holds_up_a_publisher() -> None:
    address = BrokerAddress.parse(f"mqtt://127.0.0.1:{free_port()}")
    with capture_logs() as logs:
        publisher = controller_client(address, TOPICS, "ctl-1")
        reporter = MqttReporter(publisher, "ctl-1")
        publisher.start()
        await until(lambda: publisher._outage._attempts >= 3, "it has tried three times")
        view = MigrationView(
            id="m-1", vm="web1", source="a", destination="b", mode="live", phase="copying", rev=1, started_at=1.0
        )
        durations = []
        for _ in range(500):
            began = time.perf_counter()
            reporter.phase(view)
            durations.append(time.perf_counter() - began)
        durations.sort()
        assert durations[250] < 0.002, f"median {durations[250] * 1e6:.0f} µs"
        with pytest.raises(BusError, match="refused"):
            await publisher.wait_connected(0.1)
        began = time.perf_counter()
        await publisher.close(flush_timeout=5.0)
        assert time.perf_counter() - began < 4.0, "there is nothing to wait for"
    assert [entry["event"] for entry in logs if entry["log_level"] != "debug"] == ["broker-unreachable"]


async def test_a_clean_end_says_stopped_and_a_controller_leaves_nothing_behind(broker: AnyBroker) -> None:
    async with Follower(broker) as follower:
        agent, controller = client(broker, presence=presence_of_a()), None
        controller = controller_client(BrokerAddress.parse(broker.url), TOPICS, "ctl-1")
        topics = (TOPICS.host_status("a"), TOPICS.controller_status("ctl-1"))
        for publisher in (agent, controller):
            publisher.start()
        for topic in topics:
            await until(lambda topic=topic: bool(follower.last(topic)), "it is there")
        for publisher in (agent, controller):
            await publisher.close()
        await until(lambda: follower.last(topics[0]).state == "stopped", "the agent has stopped")
        await until(lambda: follower.last(topics[1]) is None, "the controller's topic is cleared")
        told = [item.received.message for item in follower.news if item.received.topic == topics[1]]
        assert [status and status.state for status in told] == ["ready", "stopped", None]
    async with Follower(broker) as late:
        await until(lambda: bool(late.last(topics[0])), "the agent's last word is kept")
        assert late.last(topics[0]).state == "stopped"
        assert late.last(topics[1]) is False


async def test_a_late_last_will_is_put_right(broker: AnyBroker) -> None:
    """The will of an older session lands on the topic after the birth of the newer one."""
    presence = presence_of_a()
    old_will = presence.begin()
    async with client(broker, presence=presence) as publisher, client(broker) as ghost:
        await publisher.wait_connected()
        await until(lambda: not len(publisher._outbox), "the birth is there")
        ghost.publish_state(presence.topic, old_will)
        await until(lambda: not len(ghost._outbox), "the old will is there")

        async def put_right() -> bool:
            async with Follower(broker) as late:
                await until(lambda: bool(late.last(presence.topic)), "there is a status")
                return bool(late.last(presence.topic).state == "ready")

        await until(put_right, "the status is right again")


async def test_two_publishers_of_one_name_do_not_fight(mosquitto: Mosquitto) -> None:
    with capture_logs() as logs:
        first, second = client(mosquitto, presence=presence_of_a()), client(mosquitto, presence=presence_of_a())
        async with first, Follower(mosquitto) as follower:
            await first.wait_connected()
            async with second:
                await until(lambda: any(log["event"] == "name-used-twice" for log in logs), "it is noticed")
                seen = len(follower.news)
                first.announce()
                await until(lambda: len(follower.news) > seen or not len(first._outbox), "it is published")
                await until(lambda: not len(second._outbox), "the second one has answered")
            assert len(follower.news) < 10
    assert [log["event"] for log in logs].count("name-used-twice") == 1


async def test_a_subscription_that_is_refused_is_an_error_for_its_reader_only() -> None:
    class Strict(EmbeddedBroker):
        """Refuses, where Mosquitto 2.0 grants every subscription and drops what may not be read."""

        def configuration(self) -> dict[str, Any]:
            configuration = super().configuration()
            allowed = {"anonymous": [TOPICS.all_hosts()]}
            acl = {"acl": allowed, "publish_acl": allowed}
            configuration["plugins"]["amqtt.plugins.topic_checking.TopicAccessControlListPlugin"] = acl
            return configuration

    async with Strict() as broker, BusClient(BrokerAddress.parse(broker.url), TOPICS, role="test") as reader:
        for pattern, reason in ((TOPICS.all_migrations(), "refuses"), ("a/#/b", "cannot subscribe")):
            async with reader.subscribe(pattern) as refused:
                with pytest.raises(BusError, match=reason):
                    await asyncio.wait_for(anext(refused), PATIENCE_S)
        async with reader.subscribe(TOPICS.all_hosts()) as allowed:
            await asyncio.wait_for(allowed.established.wait(), PATIENCE_S)
            reader.publish_state(TOPICS.host_vm("a", "web1"), vm("web1"))
            received = await asyncio.wait_for(anext(allowed), PATIENCE_S)
            assert isinstance(received.message, HostVm)


async def test_a_frozen_broker_is_noticed_and_its_return_too(
    mosquitto: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qmp_migrate.bus.client.client.KEEPALIVE_S", 1)
    monkeypatch.setattr("qmp_migrate.bus.client.client.CONNECT_TIMEOUT_S", 1.0)
    async with client(mosquitto) as publisher:
        await publisher.wait_connected()
        mosquitto.freeze()
        publisher.publish_state(TOPICS.host_vm("a", "web1"), vm("web1"))
        await until(lambda: not publisher.connected, "the silence is noticed")
        mosquitto.thaw()
        await publisher.wait_connected()
        await until(lambda: not len(publisher._outbox), "the state got through after all")


async def test_a_frozen_broker_does_not_hold_up_the_end_and_says_lost_for_us(mosquitto: Mosquitto) -> None:
    publisher = client(mosquitto, presence=presence_of_a())
    publisher.start()
    await publisher.wait_connected()
    await until(lambda: not len(publisher._outbox), "all is sent")
    mosquitto.freeze()
    began = time.monotonic()
    await publisher.close(flush_timeout=0.2)
    assert time.monotonic() - began < 8.0  # and not the ten seconds of a keepalive
    mosquitto.thaw()
    async with Follower(mosquitto) as late:
        # The farewell is in the frozen broker's socket, so either word may be the last one; never `ready`.
        await until(
            lambda: bool(late.last(TOPICS.host_status("a"))) and late.last(TOPICS.host_status("a")).state != "ready",
            "the end is known",
        )


async def test_events_that_a_broker_lost_show_as_a_gap(broker: AnyBroker) -> None:
    async with client(broker) as publisher, Follower(broker, vm="web1") as follower:
        await publisher.wait_connected()
        for seq in (1, 2, 5):
            publisher.publish_event(TOPICS.migration_event("m-1"), event(seq))
        await until(lambda: len(follower.news) == 3, "the events come")
        assert [item.missed for item in follower.news] == [0, 0, 2]


async def test_garbage_on_our_topics_is_logged_once_and_skipped(mosquitto: Mosquitto) -> None:
    import aiomqtt

    with capture_logs() as logs:
        async with Follower(mosquitto) as follower, aiomqtt.Client("127.0.0.1", mosquitto.port) as vandal:
            for payload in (b"{", b"\xff", b"[" * 60_000, b"x" * 200_000):
                for _ in range(3):
                    await vandal.publish(TOPICS.host_status("a"), payload, qos=1)
            await vandal.publish("qmp-migrate/v1/host/A/../status", b"{}", qos=1)
            async with client(mosquitto) as publisher:
                publisher.publish_state(TOPICS.host_vm("a", "web1"), vm("web1"))
                await until(lambda: bool(follower.news), "what is sound comes through")
            assert [item.received.topic for item in follower.news] == [TOPICS.host_vm("a", "web1")]
    refused = [entry["code"] for entry in logs if entry["event"] == "message-refused"]
    assert sorted(refused) == ["bus_not_json", "bus_too_large", "bus_topic"]
