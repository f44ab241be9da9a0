"""The broker of `qmp-migrate broker init`: as each identity, what is refused. A real Mosquitto with just these files."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiomqtt
import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID
from typer.testing import CliRunner

from qmp_migrate.bus.broker.acl_check import probe
from qmp_migrate.bus.broker.pki import Authority
from qmp_migrate.bus.client.address import BrokerAddress
from qmp_migrate.bus.client.client import BusClient
from qmp_migrate.bus.client.connection import Connection
from qmp_migrate.bus.messages.topics import Topics
from qmp_migrate.cli.main import app
from tests.support.real.brokers import PATIENCE_S, START_S, find_mosquitto, free_port, listens, until

pytestmark = pytest.mark.skipif(
    find_mosquitto() is None, reason="mosquitto is not installed: apt-get install mosquitto"
)

TOPICS = Topics()
EMPTY_S = 0.1
"""How long a queue is read that is full already."""


def broker_command(*words: str) -> dict[str, object]:
    ran = CliRunner().invoke(app, ["broker", *words, "--json"])
    assert ran.exit_code == 0, ran.output
    document: dict[str, object] = json.loads(ran.stdout)
    return document


class Secured:
    """A Mosquitto made by ``broker init``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port, self.websockets = free_port(), free_port()
        self._process: subprocess.Popen[bytes] | None = None
        (directory.with_name("state")).mkdir()
        words = ["--host", "a", "--host", "b", "--controller", "main", "--subscriber", "dash"]
        words += ["--bridge", "ha", "--address", "localhost"]
        words += ["--port", str(self.port), "--websockets", str(self.websockets), "--bind", "127.0.0.1"]
        broker_command("init", str(directory), *words, "--state", str(directory.with_name("state")), "--run-as", "root")
        self.url = f"mqtts://localhost:{self.port}"

    @property
    def authority(self) -> Authority:
        return Authority.open(self.directory)

    async def start(self) -> None:
        argv = [str(find_mosquitto()), "-c", str(self.directory / "mosquitto.conf")]
        with self.directory.with_name("log").open("ab") as log:
            self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)  # noqa: ASYNC220
        await until(lambda: listens(self.port) and listens(self.websockets), "mosquitto listens", timeout=START_S)

    async def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(self._process.wait, 10)

    def as_(self, name: str, *, url: str = "", identifier: str = "") -> Connection:
        base = self.directory / "identities" / name
        address = BrokerAddress.parse(
            url or self.url,
            ca_file=self.directory / "ca.crt",
            cert_file=base.with_name(f"{name}.crt"),
            key_file=base.with_name(f"{name}.key"),
        )
        return Connection.to(address, identifier=identifier or f"t-{name}"[:23], will=None, keepalive_s=30, timeout_s=5)


@pytest.fixture
async def secured(tmp_path: Path) -> AsyncIterator[Secured]:
    made = Secured(tmp_path / "broker")
    await made.start()
    yield made
    await made.stop()


@pytest.mark.parametrize("scheme", ["mqtts", "wss"])
async def test_each_identity_may_what_it_must_and_nothing_else(secured: Secured, scheme: str) -> None:
    port = secured.port if scheme == "mqtts" else secured.websockets
    trials = await probe(
        f"{scheme}://localhost:{port}", TOPICS, secured.directory / "ca.crt", secured.authority.identities()
    )
    assert [trial for trial in trials if not trial.passed] == []
    assert len(trials) >= 20


async def heard(connection: Connection, pattern: str) -> list[str]:
    """Return the topics of what is retained for this one.

    Mosquitto sends it before it answers the next subscription: once that is answered all is there, and nothing else comes.
    """
    await connection.subscribe([(pattern, 1)])
    await connection.subscribe([("nothing/of/this/name", 1)])
    topics: list[str] = []
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(EMPTY_S):
            async for message in connection.messages:
                topics.append(str(message.topic))
    return topics


async def test_nobody_reads_what_is_not_for_him(secured: Secured) -> None:
    async with secured.as_("controller@main") as controller:
        await controller.publish("qmp-migrate/v1/migration/m-1/state", b"x", qos=1, retain=True)
    async with secured.as_("a") as agent:
        await agent.publish("qmp-migrate/v1/host/a/status", b"x", qos=1, retain=True)
        await agent.publish("qmp-migrate/v1/host/a/token/m-1", b"x", qos=1, retain=True)
    async with secured.as_("b") as agent:
        assert await heard(agent, "#") == ["qmp-migrate/v1/host/a/token/m-1"]
    async with secured.as_("b") as agent:
        assert await heard(agent, "$SYS/#") == []
    async with secured.as_("controller@main") as controller:
        assert sorted(await heard(controller, "qmp-migrate/v1/host/#")) == [
            "qmp-migrate/v1/host/a/status",
            "qmp-migrate/v1/host/a/token/m-1",
        ]
    async with secured.as_("subscriber@dash") as subscriber:
        assert len(await heard(subscriber, "#")) == 3


async def test_a_bridge_tells_home_assistant_and_nobody_else_does(secured: Secured) -> None:
    node = "qmp-migrate_v1"
    allowed = [f"homeassistant/sensor/{node}/guest_web1_host/config", f"homeassistant/{node}/vm/web1"]
    refused = [
        "homeassistant/status",
        "homeassistant/sensor/another/x/config",
        f"homeassistant/sensor/{node}/x/set",
        "qmp-migrate/v1/host/a/vm/web1",
        "qmp-migrate/v1/migration/m-1/state",
    ]
    async with secured.as_("bridge@ha") as bridge:
        for topic in (*allowed, *refused):
            await bridge.publish(topic, b"bridge", qos=1, retain=True)
    for name in ("a", "controller@main", "subscriber@dash"):
        async with secured.as_(name) as other:
            for topic in (*allowed, "homeassistant/status"):
                await other.publish(topic, name.encode(), qos=1, retain=True)
    async with secured.as_("subscriber@dash") as home_assistant:
        assert sorted(await heard(home_assistant, "homeassistant/#")) == sorted(allowed)
    for name in ("a", "controller@main"):
        async with secured.as_(name) as other:
            assert await heard(other, "homeassistant/#") == []
    async with secured.as_("bridge@ha") as bridge:
        await bridge.subscribe([("#", 1)])
        async with asyncio.timeout(PATIENCE_S):
            topics = {}
            async for message in bridge.messages:
                topics[str(message.topic)] = message.payload
                if len(topics) == len(allowed):
                    break
        assert topics == dict.fromkeys(allowed, b"bridge")


@pytest.mark.parametrize("name", ["+", "#", "a/b", "+/vm"])
async def test_a_name_with_a_wildcard_or_a_level_is_never_issued_and_can_do_nothing(
    secured: Secured, name: str
) -> None:
    ran = CliRunner().invoke(app, ["broker", "add", str(secured.directory), "--host", name])
    assert ran.exit_code != 0
    assert "is not a host name" in ran.output
    forged = secured.directory / "identities" / "forged.crt"  # with the authority's own key
    secured.authority._leaf(forged, forged.with_suffix(".key"), name, ExtendedKeyUsageOID.CLIENT_AUTH, [])
    async with secured.as_("controller@main") as controller:
        await controller.subscribe([("qmp-migrate/v1/#", 1)])
        with contextlib.suppress(aiomqtt.MqttError):
            async with secured.as_("forged") as connection:
                for host in ("a", "b"):
                    await connection.publish(f"qmp-migrate/v1/host/{host}/status", b"x", qos=1, retain=True)
                    await connection.publish(f"qmp-migrate/v1/host/{host}/vm/web1", b"x", qos=1, retain=True)
        async with secured.as_("a") as later:  # what was written before this comes before this
            await later.publish("qmp-migrate/v1/host/a/load", b"x", qos=1)
        async with asyncio.timeout(PATIENCE_S):
            assert str((await anext(aiter(controller.messages))).topic) == "qmp-migrate/v1/host/a/load"


async def test_another_authority_no_certificate_plaintext_and_the_revoked_are_kept_out(
    secured: Secured, tmp_path: Path
) -> None:
    other = Authority.create(tmp_path / "other")
    stranger, _ = other.issue("agent", "a")
    address = BrokerAddress.parse(
        secured.url, ca_file=secured.directory / "ca.crt", cert_file=stranger.certificate, key_file=stranger.key
    )
    with pytest.raises(aiomqtt.MqttError):
        async with Connection.to(address, identifier="stranger", will=None, keepalive_s=30, timeout_s=5):
            pass
    plain = BrokerAddress.parse(f"mqtt://localhost:{secured.port}")
    with pytest.raises(aiomqtt.MqttError):
        async with Connection.to(plain, identifier="plain", will=None, keepalive_s=30, timeout_s=3):
            pass
    broker_command("revoke", str(secured.directory), "b")
    await secured.stop()
    await secured.start()
    with pytest.raises(aiomqtt.MqttError):
        async with secured.as_("b"):
            pass
    async with secured.as_("a"):
        pass
    broker_command("renew", str(secured.directory), "b")  # a new key, and it is welcome again
    await secured.stop()
    await secured.start()
    async with secured.as_("b"):
        pass


async def test_a_real_agent_and_a_real_follower_use_their_identities(secured: Secured, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    base, identities = secured.directory, secured.directory / "identities"
    argv = [
        sys.executable,
        "-m",
        "hostagent.app.cli",
        "run",
        "--host",
        "a",
        "--run-dir",
        str(run_dir),
        "--mqtt",
        secured.url,
    ]
    argv += ["--mqtt-ca-file", str(base / "ca.crt"), "--mqtt-cert-file", str(identities / "a.crt")]
    argv += ["--mqtt-key-file", str(identities / "a.key")]
    with (tmp_path / "agent.log").open("wb") as log:
        agent = await asyncio.create_subprocess_exec(*argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        address = BrokerAddress.parse(
            f"wss://localhost:{secured.websockets}",
            ca_file=base / "ca.crt",
            cert_file=identities / "subscriber@dash.crt",
            key_file=identities / "subscriber@dash.key",
        )
        async with BusClient(address, TOPICS, role="test") as client, client.subscribe(TOPICS.all_hosts()) as messages:
            async with asyncio.timeout(PATIENCE_S):
                async for received in messages:
                    if received.topic.endswith("host/a/load"):
                        break
    finally:
        agent.terminate()
        await agent.wait()
    assert "own-status-unreadable" not in (tmp_path / "agent.log").read_text()
    assert "stale-guests-stay" not in (tmp_path / "agent.log").read_text()
