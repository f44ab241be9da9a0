"""Subscribers of all kinds, on a real Mosquitto, with a real agent: the programs of the guide, `events`, and the schemas."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from qmp_migrate.bus.client.address import BrokerAddress
from qmp_migrate.bus.client.client import BusClient
from qmp_migrate.bus.consume.ordered import follow
from qmp_migrate.bus.messages.registry import HostEvent, HostStatus, HostVm, MigrationState
from qmp_migrate.bus.messages.schemas import json_schema
from qmp_migrate.bus.messages.topics import Kind, Topics
from qmp_migrate.bus.publish.retention import forget_old
from tests import ROOT
from tests.support.data.golden_messages import golden
from tests.support.real.brokers import Mosquitto, until
from tests.support.real.pre_switchover_pair import HeldPair, binaries

EXAMPLES = ROOT / "docs" / "examples"
TOPICS = Topics()

pytestmark = pytest.mark.skipif(not binaries(), reason="QEMU is not installed: apt-get install qemu-system-x86")


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Mosquitto]:
    made = Mosquitto(tmp_path)
    await made.start()
    yield made
    await made.stop()


@contextlib.asynccontextmanager
async def program(*argv: str, out: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    with out.open("wb") as file:
        process = await asyncio.create_subprocess_exec(*argv, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        await process.wait()


def agent(broker: Mosquitto, run_dir: Path, out: Path) -> contextlib.AbstractAsyncContextManager[Any]:
    argv = [sys.executable, "-W", "error", "-m", "hostagent.app.cli", "run", "--host", "a", "--interval", "1s"]
    return program(*argv, "--mqtt", broker.url, "--run-dir", str(run_dir), out=out)


async def test_all_that_an_agent_says_is_valid_and_the_guides_program_understands_it(
    broker: Mosquitto, tmp_path: Path
) -> None:
    pair = HeldPair(tmp_path / "run", binaries()[0])
    payloads: list[dict[str, Any]] = []
    guide = [sys.executable, str(EXAMPLES / "where_is_everybody.py"), "127.0.0.1", str(broker.port)]
    address = BrokerAddress.parse(broker.url)
    async with contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(BusClient(address, TOPICS, role="test"))
        messages = await stack.enter_async_context(client.subscribe(f"{TOPICS.root}/#"))

        async def listen() -> None:
            async for received in messages:
                assert received.error is None, received
                if received.message is not None:
                    payloads.append(json.loads(received.message.model_dump_json(by_alias=True)))

        listening = asyncio.create_task(listen())
        await stack.enter_async_context(program(*guide, out=tmp_path / "guide.log"))
        try:
            await pair.start()
            await stack.enter_async_context(agent(broker, tmp_path / "run", tmp_path / "agent.log"))
            said = tmp_path / "guide.log"
            await until(lambda: "web1 is on a" in said.read_text(), "the guide's program sees the guest")
            await pair.monitor.execute("migrate_cancel")
            await until(lambda: "org.qemu.qmp.RESUME" in said.read_text(), "and its events")
            await until(lambda: any(p["schema"].startswith("host.load/") for p in payloads), "load")
        finally:
            await pair.stop()
        await until(lambda: "web1 is gone from a" in said.read_text(), "and its end")
        listening.cancel()
    assert "Traceback" not in said.read_text()
    kinds = {payload["schema"].partition("/")[0] for payload in payloads}
    assert kinds >= {"host.status", "host.info", "host.load", "host.vm", "host.event"}
    for payload in payloads:
        kind = next(kind for kind in Kind if payload["schema"].startswith(f"{kind}/"))
        jsonschema.Draft202012Validator(json_schema(kind)).validate(payload)


async def test_the_guides_second_program_tells_of_migrations_that_end(broker: Mosquitto, tmp_path: Path) -> None:
    guide = [sys.executable, str(EXAMPLES / "migrations_ended.py"), "127.0.0.1", str(broker.port)]
    out = tmp_path / "guide.log"
    state = MigrationState.model_validate_json(json.dumps({**golden("migration.state-1.0"), "id": "m-1"}))
    async with program(*guide, out=out), BusClient(BrokerAddress.parse(broker.url), TOPICS, role="test") as client:
        client.publish_state(TOPICS.migration_state("m-1"), state)
        await until(lambda: "m-1 web1" in out.read_text(), "it is told")


async def test_events_marks_gaps_and_silence(broker: Mosquitto, tmp_path: Path) -> None:
    config = tmp_path / "qmp-migrate.toml"
    config.write_text(f'[mqtt]\nurl = "{broker.url}"\n')
    out = tmp_path / "events.log"
    argv = [sys.executable, "-m", "qmp_migrate.cli", "--config", str(config), "events", "--json"]
    event = HostEvent.model_validate_json(json.dumps(golden("host.event-1.0")))
    status = HostStatus.model_validate_json(
        json.dumps({**golden("host.status-1.0"), "interval_s": 1.0, "state": "ready"})
    )

    def documents() -> list[dict[str, Any]]:
        return [json.loads(line) for line in out.read_text().splitlines() if line.startswith("{")]

    async with program(*argv, out=out), BusClient(BrokerAddress.parse(broker.url), TOPICS, role="test") as client:
        client.publish_state(TOPICS.host_status("a"), status)
        await until(lambda: bool(documents()), "it follows")
        for seq in (1, 2, 5):
            client.publish_event(TOPICS.host_event("a"), event.model_copy(update={"seq": seq, "id": f"s.{seq}"}))
        await until(lambda: any(d.get("schema") == "events.gap/1" for d in documents()), "the gap")
        (gap,) = [d for d in documents() if d.get("schema") == "events.gap/1"]
        assert (gap["topic"], gap["missed"]) == (TOPICS.host_event("a"), 2)
        await until(lambda: any(d.get("schema") == "events.stale/1" for d in documents()), "the silence")


async def test_events_shows_a_guest_on_two_hosts_and_merges_nothing(broker: Mosquitto, tmp_path: Path) -> None:
    config = tmp_path / "qmp-migrate.toml"
    config.write_text(f'[mqtt]\nurl = "{broker.url}"\n')
    out = tmp_path / "events.log"
    argv = [sys.executable, "-m", "qmp_migrate.cli", "--config", str(config), "events", "--json"]
    state = {**golden("host.vm-1.1"), "vm": "web1", "runstate": "running", "role": "idle", "migration_status": None}

    def documents() -> list[dict[str, Any]]:
        return [json.loads(line) for line in out.read_text().splitlines() if line.startswith("{")]

    async with program(*argv, out=out), BusClient(BrokerAddress.parse(broker.url), TOPICS, role="test") as client:
        for host in ("a", "b"):
            message = HostVm.model_validate_json(json.dumps({**state, "host": host}))
            client.publish_state(TOPICS.host_vm(host, "web1"), message)
        await until(lambda: any(d.get("schema") == "events.conflict/1" for d in documents()), "the conflict")
        (found,) = [d for d in documents() if d.get("schema") == "events.conflict/1"]
        assert (found["vm"], found["hosts"], found["same_uuid"]) == ("web1", ["a", "b"], True)
        assert {d["topic"] for d in documents() if "topic" in d} == {
            TOPICS.host_vm(host, "web1") for host in ("a", "b")
        }


async def test_an_agent_whose_clock_was_set_back_over_a_reboot_is_believed(broker: Mosquitto, tmp_path: Path) -> None:
    """What its earlier boot has left is from the future, by the clock of this one."""
    ahead = datetime.now(UTC) + timedelta(days=400)
    left = {
        **golden("host.status-1.0"),
        "host": "a",
        "state": "lost",
        "session": "00000000-0000-0000-0000-000000000000.99",
        "started_at": re.sub(r"\+00:00", "Z", ahead.isoformat(timespec="milliseconds")),
    }
    address = BrokerAddress.parse(broker.url)
    async with BusClient(address, TOPICS, role="old") as client:
        client.publish_state(TOPICS.host_status("a"), HostStatus.model_validate_json(json.dumps(left)))
        seen: list[str] = []

        async def listen() -> None:
            async for news in follow(client):
                if isinstance(news.received.message, HostStatus):
                    seen.append(news.received.message.state)

        listening = asyncio.create_task(listen())
        await until(lambda: seen == ["lost"], "what is left")
        async with agent(broker, tmp_path / "run", tmp_path / "agent.log"):
            await until(lambda: seen[-1:] == ["ready"], "it is believed")
        await until(lambda: seen[-1:] == ["stopped"], "and its farewell, too")
        listening.cancel()


async def test_migrations_that_ended_long_ago_are_cleared_and_others_stay(broker: Mosquitto) -> None:
    address = BrokerAddress.parse(broker.url)
    base = golden("migration.state-1.0")
    old = "2026-01-01T00:00:00.000Z"
    fresh = re.sub(r"\+00:00", "Z", datetime.now(UTC).isoformat(timespec="milliseconds"))
    told = {
        "m-old": {"at": old, "outcome": "completed"},
        "m-open": {"at": old, "outcome": None, "owner": None},
        "m-new": {"at": fresh, "outcome": "completed"},
    }
    async with BusClient(address, TOPICS, role="dead") as client:
        await client.wait_connected()
        for name, changes in told.items():
            state = MigrationState.model_validate_json(json.dumps({**base, "id": name, **changes}))
            client.publish_state(TOPICS.migration_state(name), state)
    cleared: list[str] = []
    async with BusClient(address, TOPICS, role="test") as client, client.subscribe(TOPICS.all_migrations()) as messages:

        async def listen() -> None:
            async for received in messages:
                if received.cleared:
                    cleared.append(received.topic)

        listening = asyncio.create_task(listen())
        async with BusClient(address, TOPICS, role="ctl") as controller:
            tidying = asyncio.create_task(forget_old(controller))
            await until(lambda: cleared != [], "the old one is cleared")
            await asyncio.sleep(0.5)
            tidying.cancel()
            await asyncio.gather(tidying, return_exceptions=True)
        listening.cancel()
    assert cleared == [TOPICS.migration_state("m-old")]
