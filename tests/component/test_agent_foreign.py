"""The agent and QEMUs that something else has started: found, told of within a second, never held. Real QEMU, Mosquitto."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from qmp_migrate.bus.client.address import BrokerAddress
from qmp_migrate.bus.client.client import BusClient
from qmp_migrate.bus.client.subscription import Received
from qmp_migrate.bus.messages.registry import HostEvent, HostVm
from qmp_migrate.bus.messages.topics import Topics
from tests.support.real.brokers import PATIENCE_S, Mosquitto, until
from tests.support.real.lab import wait_for
from tests.support.real.pre_switchover_pair import binaries

SOON_S = 5.0
"""Within a second, on a machine that is not five times too slow."""

pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(not binaries(), reason="QEMU is not installed: apt-get install qemu-system-x86"),
]
"""Its agent sees all QEMUs of this machine, those of other tests too, and connects to their monitors for a moment."""


class Place:
    """An agent that tells of foreign guests, and who listens."""

    def __init__(self, base: Path, broker: Mosquitto) -> None:
        self.base, self.broker = base, broker
        self.heard: list[Received] = []
        self.qemus: list[subprocess.Popen[bytes]] = []
        self.agent: asyncio.subprocess.Process | None = None
        (base / "run").mkdir()

    async def start(self) -> None:
        argv = [sys.executable, "-W", "error", "-m", "hostagent.app.cli", "run", "--host", "a", "--foreign"]
        argv += ["--mqtt", self.broker.url, "--run-dir", str(self.base / "run")]
        with (self.base / "agent.log").open("ab") as log:
            self.agent = await asyncio.create_subprocess_exec(*argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    async def stop(self, number: int = signal.SIGTERM) -> None:
        if self.agent is not None:
            self.agent.send_signal(number)
            await self.agent.wait()
            self.agent = None

    def qemu(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        argv = [
            binaries()[0],
            "-M",
            "pc",
            "-m",
            "16",
            "-nodefaults",
            "-display",
            "none",
            "-accel",
            "tcg",
            "-name",
            name,
        ]
        process = subprocess.Popen([*argv, *words], stdin=subprocess.DEVNULL, cwd=self.base)
        self.qemus.append(process)
        return process

    def event(self, kind: str, pid: int) -> dict[str, Any] | None:
        for received in self.heard:
            message = received.message
            if isinstance(message, HostEvent) and message.type.endswith(kind) and message.data.get("pid") == pid:
                return {"vm": message.subject, **message.data}
        return None

    def last(self, pid: int) -> HostVm | None:
        found = [r.message for r in self.heard if isinstance(r.message, HostVm) and r.message.pid == pid]
        return found[-1] if found else None


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    broker = Mosquitto(tmp_path)
    await broker.start()
    made = Place(tmp_path, broker)
    topics = Topics()
    async with BusClient(BrokerAddress.parse(broker.url), topics, role="test") as client:

        async def listen() -> None:
            async with client.subscribe(topics.all_hosts()) as messages:
                async for received in messages:
                    made.heard.append(received)

        listening = asyncio.create_task(listen())
        await made.start()
        await until(lambda: any(r.topic.endswith("/status") for r in made.heard), "the agent is there")
        yield made
        listening.cancel()
        for process in made.qemus:
            process.kill()
            process.wait(10)
        await made.stop()
    await broker.stop()
    assert "Traceback" not in (tmp_path / "agent.log").read_text()


async def timed(condition: Any, what: str) -> float:
    began = time.monotonic()
    await until(condition, what)
    took = time.monotonic() - began
    assert took < SOON_S, what
    return took


async def test_a_foreign_guest_is_told_of_when_it_comes_and_when_it_goes(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    process = place.qemu("byhand", "-qmp", "unix:m.sock,server=on,wait=off")
    came = await timed(lambda: place.event("guest-appeared", process.pid), "it has come")
    assert place.event("guest-appeared", process.pid) == {"vm": "byhand", "pid": process.pid, "origin": "foreign"}
    await until(lambda: (s := place.last(process.pid)) is not None and s.runstate == "running", "its state")
    state = place.last(process.pid)
    assert state is not None
    assert (state.origin, state.memory_bytes, state.vcpus) == ("foreign", 16 << 20, 1)
    with socket.socket(socket.AF_UNIX) as user:  # nobody holds its monitor
        user.settimeout(5)
        user.connect(str(place.base / "m.sock"))
        assert b"QMP" in user.recv(4096)
    process.kill()
    process.wait(10)
    went = await timed(lambda: place.event("guest-gone", process.pid), "it has gone")
    assert (place.event("guest-gone", process.pid) or {})["reason"] == "unknown"
    with capsys.disabled():
        print(f"\n  told {came:.2f} s after its start, {went:.2f} s after its end")


async def test_a_busy_monitor_and_none_are_left_alone(place: Place) -> None:
    held = place.qemu("held", "-qmp", "unix:held.sock,server=on,wait=off")
    with socket.socket(socket.AF_UNIX) as user:
        await until(lambda: user.connect_ex(str(place.base / "held.sock")) == 0, "somebody listens")
        without = place.qemu("without")
        nameless = place.qemu("Not A Name")
        for process in (held, without, nameless):
            await until(lambda p=process: place.event("guest-appeared", p.pid), "it has come")  # type: ignore[misc]
        await until(lambda: (s := place.last(without.pid)) is not None and s.runstate == "unknown", "unknown")
        assert (place.event("guest-appeared", nameless.pid) or {})["vm"] == f"qemu-{nameless.pid}"
        assert b"QMP" in user.recv(4096)
    assert held.poll() is None


async def test_an_agent_that_is_restarted_says_of_nobody_that_it_is_gone(place: Place) -> None:
    process = place.qemu("stays")
    await until(lambda: place.last(process.pid), "it is told of")
    before = len(place.heard)
    await place.stop(signal.SIGKILL)
    await place.start()
    await until(lambda: any(isinstance(r.message, HostVm) and not r.retained for r in place.heard[before:]), "again")
    await asyncio.sleep(1.0)
    # other QEMUs of this machine, foreign to it too, may come and go
    assert not [r for r in place.heard[before:] if r.cleared and r.topic.endswith("/stays")]
    assert place.event("guest-gone", process.pid) is None


def test_discover_lists_what_is_there(tmp_path: Path) -> None:
    argv = [binaries()[0], "-M", "pc", "-m", "16", "-nodefaults", "-display", "none", "-accel", "tcg", "-name", "seen"]
    discover = [sys.executable, "-m", "hostagent.app.cli", "discover", "--json", "--run-dir", str(tmp_path)]

    def listed() -> list[dict[str, Any]]:
        ran = subprocess.run(discover, capture_output=True, check=True)
        return [guest for guest in json.loads(ran.stdout)["guests"] if guest["pid"] == process.pid]

    with subprocess.Popen(argv, stdin=subprocess.DEVNULL) as process:
        try:
            # One that has just begun is not listed yet: it may be asked for its version only.
            (found,) = wait_for(listed, PATIENCE_S)
        finally:
            process.kill()
    assert found == {"vm": "seen", "pid": process.pid, "origin": "foreign", "monitors": []}
