"""``qmp-migrate home-assistant`` with a real Mosquitto: what a Home Assistant finds there, and what is left when it ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from qmp_migrate.bus.client.address import BrokerAddress
from qmp_migrate.bus.client.client import BusClient
from qmp_migrate.bus.client.connection import Connection
from qmp_migrate.bus.messages.registry import HostStatus
from qmp_migrate.bus.messages.topics import Kind, Topics
from qmp_migrate.bus.publish.home_assistant import HomeAssistant
from qmp_migrate.fleet.integrations.home_assistant import Announcer
from tests.support.data.golden_messages import message, vm
from tests.support.real.brokers import Mosquitto, until

TOPICS = Topics()
NODE = "homeassistant/qmp-migrate_v1"
WEB1 = f"{NODE}/vm/web1"
HOST = "homeassistant/sensor/qmp-migrate_v1/guest_web1_host/config"


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Mosquitto]:
    made = Mosquitto(tmp_path)
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def agent(broker: Mosquitto) -> AsyncIterator[BusClient]:
    async with BusClient(BrokerAddress.parse(broker.url), TOPICS, role="test") as client:
        ready = message(Kind.HOST_STATUS, host="a", state="ready")
        assert isinstance(ready, HostStatus)
        client.publish_state(TOPICS.host_status("a"), ready)
        client.publish_state(TOPICS.host_load("a"), message(Kind.HOST_LOAD, host="a"))
        client.publish_state(TOPICS.host_vm("a", "web1"), vm("web1", runstate="running", role="idle"))
        yield client


class Seen:
    """What a Home Assistant sees on its topics."""

    def __init__(self) -> None:
        self.topics: dict[str, str] = {}

    def document(self, topic: str) -> Any:
        return json.loads(self.topics[topic]) if self.topics.get(topic) else None


@pytest.fixture
async def seen(broker: Mosquitto) -> AsyncIterator[Seen]:
    found = Seen()
    connection = Connection.to(BrokerAddress.parse(broker.url), identifier="ha", will=None, keepalive_s=30, timeout_s=5)

    async def listen() -> None:
        async for each in connection.messages:
            found.topics[str(each.topic)] = bytes(each.payload).decode()

    async with connection:
        await connection.subscribe([("homeassistant/#", 1)])
        task = asyncio.create_task(listen())
        yield found
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def config(broker: Mosquitto, tmp_path: Path) -> Path:
    path = tmp_path / "qmp-migrate.toml"
    path.write_text(f'[controller]\nstate = "sqlite:///{tmp_path}/journal.sqlite"\n[mqtt]\nurl = "{broker.url}"\n')
    return path


def command(config: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "qmp_migrate.cli", "--config", str(config), "home-assistant", *words]


@contextlib.contextmanager
def running(config: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command(config, *words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


async def test_hosts_and_guests_are_announced_followed_and_taken_away(
    agent: BusClient, seen: Seen, config: Path
) -> None:
    with running(config) as process:
        await until(lambda: seen.document(WEB1) is not None and HOST in seen.topics, "the guest is announced")
        assert seen.topics[f"{NODE}/status"] == "online"
        assert seen.document(WEB1)["host"] == "a"
        configs = [topic for topic in seen.topics if topic.endswith("/config")]
        assert len(configs) == 12
        agent.publish_state(TOPICS.host_vm("b", "web1"), vm("web1", host="b", runstate="running", role="idle"))
        agent.clear_state(TOPICS.host_vm("a", "web1"))
        await until(lambda: seen.document(WEB1)["host"] == "b", "it is followed")
        process.kill()
        await until(lambda: seen.topics[f"{NODE}/status"] == "offline", "its last will")
    assert seen.document(WEB1)["host"] == "b", "what it said is kept, and marked as old"

    with running(config) as process:
        await until(lambda: seen.topics[f"{NODE}/status"] == "online", "it is there again")
        process.send_signal(signal.SIGTERM)
        _, err = await asyncio.to_thread(process.communicate, timeout=20)
        assert (process.returncode, "Traceback" in err) == (0, False), err
        await until(lambda: seen.topics[f"{NODE}/status"] == "offline", "it says that it ends")

    done = await asyncio.to_thread(
        subprocess.run, command(config, "--remove"), capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    assert "13 topics cleared" in done.stderr
    await until(lambda: not any(seen.topics.values()), "nothing is left")


async def test_a_dry_run_shows_all_of_it_and_publishes_nothing(agent: BusClient, seen: Seen, config: Path) -> None:
    await until(lambda: not agent.waiting, "the agent has published")
    words = command(config, "--dry-run", "--vm", "web*")
    done = await asyncio.to_thread(subprocess.run, words, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {line["topic"] for line in lines} >= {WEB1, HOST}
    assert len(lines) == 13
    assert seen.topics == {}


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [(["--prefix", "a/#"], 2, "homeassistant"), (["--prefix", "qmp-migrate"], 2, "another one")],
)
async def test_bad_words_are_refused(config: Path, words: list[str], code: int, says: str) -> None:
    done = await asyncio.to_thread(subprocess.run, command(config, *words), capture_output=True, text=True, timeout=30)
    assert (done.returncode, says in done.stderr) == (code, True), done.stderr


async def test_what_an_earlier_run_left_is_taken_away(agent: BusClient, seen: Seen, broker: Mosquitto) -> None:
    old = "homeassistant/sensor/qmp-migrate_v1/guest_old_host/config"
    other = "homeassistant/sensor/another/thing/config"
    for topic in (old, f"{NODE}/vm/old", other):
        agent.publish_foreign(topic, b"{}")
    await until(lambda: len(seen.topics) == 3, "they are there")
    async with BusClient(BrokerAddress.parse(broker.url), TOPICS, role="hass") as client:
        task = asyncio.create_task(Announcer(HomeAssistant(TOPICS), leftovers_s=2.0).run(client))
        await until(lambda: seen.topics[old] == seen.topics[f"{NODE}/vm/old"] == "", "they are gone")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert seen.topics[other] == "{}"
    assert seen.document(WEB1)["host"] == "a"


async def test_a_broker_that_forgot_everything_is_told_again(agent: BusClient, broker: Mosquitto, config: Path) -> None:
    with running(config):
        await broker_holds(broker, WEB1)
        await broker.stop()
        await broker.start()
        await broker_holds(broker, WEB1)
        await broker_holds(broker, f"{NODE}/status")


async def broker_holds(broker: Mosquitto, topic: str) -> None:
    connection = Connection.to(
        BrokerAddress.parse(broker.url), identifier="look", will=None, keepalive_s=30, timeout_s=5
    )
    async with connection:
        await connection.subscribe([(topic, 1)])
        async with asyncio.timeout(60):
            async for each in connection.messages:
                if each.payload:
                    return
