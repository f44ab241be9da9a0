"""The ways to a broker: TLS, websockets, one that never answers; and the embedded broker as a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import trustme

from qmp_migrate.bus.broker.embedded import EmbeddedBroker
from qmp_migrate.bus.client.address import BrokerAddress
from qmp_migrate.bus.client.client import BusClient
from qmp_migrate.bus.messages.registry import HostVm
from qmp_migrate.bus.messages.topics import Topics
from qmp_migrate.errors import BusError
from tests.support.data.golden_messages import vm
from tests.support.real.brokers import PATIENCE_S, Mosquitto, free_port, listens, until

TOPICS = Topics()


async def test_a_broker_that_does_not_answer_holds_up_neither_close_nor_the_end_of_the_process() -> None:
    """Its port accepts, and nothing ever comes: connecting blocks in a thread that nobody may wait for."""
    silent = socket.create_server(("127.0.0.1", 0))
    port = silent.getsockname()[1]
    program = f"""
import asyncio, time
from qmp_migrate.bus.client.address import BrokerAddress
from qmp_migrate.bus.publish.mqtt_reporter import controller_client
from qmp_migrate.bus.messages.topics import Topics
async def main():
    began = time.monotonic()
    clients = [controller_client(BrokerAddress.parse(f"{{scheme}}://127.0.0.1:{port}"), Topics(), "c1")
               for scheme in ("mqtt", "mqtts")]
    for client in clients:
        client.start()
    await asyncio.sleep(0.3)
    for client in clients:
        await client.close(flush_timeout=0.5)
    print(time.monotonic() - began, time.monotonic())
asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", "-c", program, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    assert process.returncode == 0, err.decode()
    assert err.decode() == ""
    closing, at = map(float, out.split())
    assert closing < 5.0  # and not the ten seconds that a try to connect may take
    assert time.monotonic() - at < 5.0
    silent.close()


async def test_tls_with_a_certificate_for_each_side_and_a_password(tmp_path: Path) -> None:
    ca, stranger = trustme.CA(), trustme.CA()
    server, agent = ca.issue_cert("127.0.0.1"), ca.issue_cert("agent-a")
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    stranger.cert_pem.write_to_path(tmp_path / "stranger.pem")
    server.cert_chain_pems[0].write_to_path(tmp_path / "server.pem")
    server.private_key_pem.write_to_path(tmp_path / "server.key")
    agent.private_key_and_cert_chain_pem.write_to_path(tmp_path / "agent.pem")
    (tmp_path / "password").write_text("hush\n")
    passwd = shutil.which("mosquitto_passwd")
    if passwd is None:
        pytest.skip("mosquitto_passwd is not installed: apt-get install mosquitto")
    created = await asyncio.create_subprocess_exec(passwd, "-b", "-c", str(tmp_path / "users"), "agent-a", "hush")
    assert await created.wait() == 0
    listener = [
        f"cafile {tmp_path}/ca.pem",
        f"certfile {tmp_path}/server.pem",
        f"keyfile {tmp_path}/server.key",
        "require_certificate true",
        "allow_anonymous false",
        f"password_file {tmp_path}/users",
    ]
    broker = Mosquitto(tmp_path, listener="\n".join(listener), scheme="mqtts")
    await broker.start()

    def address(**changes: Any) -> BrokerAddress:
        options = {
            "ca_file": tmp_path / "ca.pem",
            "cert_file": tmp_path / "agent.pem",
            "username": "agent-a",
            "password_file": tmp_path / "password",
        }
        return BrokerAddress.parse(broker.url, **{**options, **changes})

    try:
        async with BusClient(address(), TOPICS, role="test") as good:
            await good.wait_connected()
        for wrong in ({"ca_file": tmp_path / "stranger.pem"}, {"cert_file": None}, {"username": "other"}):
            bad = BusClient(address(**wrong), TOPICS, role="test")
            bad.start()
            await until(lambda bad=bad: bad._outage.lasts, "it is refused")
            assert not bad.connected
            await bad.close()
    finally:
        await broker.stop()


async def test_the_embedded_broker_as_a_process_of_its_own(tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-m", "qmp_migrate.bus.broker.embedded", "--ready-file", str(ready)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        await until(ready.exists, "the broker is ready")
        told = json.loads(ready.read_text())
        assert told["pid"] == process.pid
        assert await process.stdout.readline() == f"ready {told['url']}\n".encode()  # type: ignore[union-attr]
        async with BusClient(BrokerAddress.parse(told["url"]), TOPICS, role="test") as visitor:
            await visitor.wait_connected()
            os.kill(process.pid, signal.SIGTERM)  # with a client connected
            out, err = await asyncio.wait_for(process.communicate(), PATIENCE_S)
        assert (process.returncode, out, err) == (0, b"", b"")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_taken_port_is_an_error_with_a_hint() -> None:
    async with EmbeddedBroker() as first:
        with pytest.raises(BusError, match="cannot listen") as refused:
            await EmbeddedBroker(port=first.port).__aenter__()
        assert refused.value.hint


async def test_a_broker_that_ends_takes_nobody_else_however_long_that_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    """amqtt ends its clients one by one before it stops listening: those that came back meanwhile were never served."""
    monkeypatch.setattr("qmp_migrate.bus.broker.embedded.STOP_TIMEOUT_S", 0.2)
    broker = await EmbeddedBroker().__aenter__()
    async with BusClient(BrokerAddress.parse(broker.url), TOPICS, role="test") as client:
        await client.wait_connected()
        begun, listening = asyncio.Event(), []

        async def stuck(_client_id: str) -> None:
            listening.append(listens(broker.port))
            begun.set()
            await asyncio.Event().wait()

        monkeypatch.setattr(broker._broker, "_cleanup_session", stuck)
        await broker.__aexit__(None, None, None)
        assert (begun.is_set(), listening) == (True, [False])
        assert not listens(broker.port)


async def test_websockets() -> None:
    class OverWebsockets(EmbeddedBroker):
        def configuration(self) -> dict[str, Any]:
            configuration = super().configuration()
            configuration["listeners"]["default"]["type"] = "ws"
            return configuration

        @property
        def url(self) -> str:
            return f"ws://{self.address}:{self.port}/mqtt"

    async with OverWebsockets(port=free_port()) as broker:
        address = BrokerAddress.parse(broker.url)
        async with (
            BusClient(address, TOPICS, role="one") as publisher,
            BusClient(address, TOPICS, role="two") as reader,
        ):
            publisher.publish_state(TOPICS.host_vm("a", "web1"), vm("web1"))
            async with reader.subscribe(TOPICS.all_hosts()) as messages:
                received = await asyncio.wait_for(anext(messages), PATIENCE_S)
                assert isinstance(received.message, HostVm)
