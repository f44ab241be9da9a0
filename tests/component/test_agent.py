"""The agent as a process of its own: real brokers, real QEMU (without a guest)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from qmp_migrate.bus.client.address import BrokerAddress
from qmp_migrate.bus.client.client import BusClient
from qmp_migrate.bus.consume.ordered import Followed, follow
from qmp_migrate.bus.messages.registry import HostEvent, HostInfo, HostLoad, HostStatus, HostVm
from qmp_migrate.bus.messages.session import boot_id
from qmp_migrate.bus.messages.topics import Topics
from tests.support.real.brokers import PATIENCE_S, AnyBroker, Embedded, Mosquitto, free_port, until

SOON_S = 5.0
"""Within a second, on a machine that is not five times too slow."""
ENDED_S = 4.5
"""How long an agent may take to end: less than anything lasts that it could wait for (a QEMU that does not answer, 5 s)."""
TOPICS = Topics()
STATUS, INFO, LOAD = TOPICS.host_status("a"), TOPICS.host_info("a"), TOPICS.host_load("a")


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


class Qemus:
    """Real QEMUs without a guest, as `vm start` leaves them under a RUN_DIR."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> subprocess.Popen[bytes]:
        binary = shutil.which("qemu-system-x86_64")
        if binary is None:
            pytest.skip("QEMU is not installed: apt-get install qemu-system-x86")
        directory = self.run_dir / name
        directory.mkdir(parents=True)
        argv = [binary, "-M", "none", "-display", "none"]
        for monitor in ("qmp", "agent"):
            argv += ["-qmp", f"unix:{directory}/{monitor}.sock,server=on,wait=off"]
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
        self._processes[name] = process
        ticks = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19]
        (directory / "argv.json").write_text(json.dumps(argv))
        (directory / "pid").write_text(f"{process.pid} {ticks} {boot_id()}\n")
        return process

    def kill_all(self) -> None:
        for process in self._processes.values():
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait(10)


@pytest.fixture
def qemus(tmp_path: Path) -> Iterator[Qemus]:
    made = Qemus(tmp_path / "run")
    yield made
    made.kill_all()


class Agent:
    """``qmp-hostagent run``."""

    def __init__(self, directory: Path, url: str, **options: str) -> None:
        self._ready = directory / "ready.json"
        self.log = directory / "agent.log"
        words = {"host": "a", "run-dir": str(directory / "run"), "mqtt": url, "interval": "200ms", **options}
        self.argv = [sys.executable, "-W", "error", "-m", "hostagent.app.cli", "run", "--ready-file", str(self._ready)]
        for key, value in words.items():
            self.argv += [f"--{key}", value]
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> Agent:
        self._ready.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *self.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        await until(lambda: self._ready.exists() or self.ended, "the agent is ready")
        assert not self.ended, self.text
        return self

    @property
    def ended(self) -> bool:
        return self.process is not None and self.process.returncode is not None

    @property
    def text(self) -> str:
        return self.log.read_text()

    async def end(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), PATIENCE_S)


@contextlib.asynccontextmanager
async def running(directory: Path, broker: AnyBroker) -> AsyncIterator[Agent]:
    agent = await Agent(directory, broker.url).start()
    try:
        yield agent
    finally:
        if not agent.ended:
            await agent.end(signal.SIGKILL)


class Observer:
    """Follows a broker from now on."""

    def __init__(self, broker: AnyBroker) -> None:
        self.client = BusClient(BrokerAddress.parse(broker.url), TOPICS, role="events")
        self.news: list[Followed] = []

    async def __aenter__(self) -> Observer:
        self.client.start()
        self._task = asyncio.create_task(self._read())
        await self.client.wait_connected()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self.client.close()

    async def _read(self) -> None:
        async for followed in follow(self.client):
            self.news.append(followed)

    def last(self, topic: str) -> Any:
        """The newest message of a topic; ``False`` where none came."""
        found = [item.received.message for item in self.news if item.received.topic == topic]
        return found[-1] if found else False

    def vm(self, name: str) -> Any:
        return self.last(TOPICS.host_vm("a", name))

    def state(self) -> str:
        status = self.last(STATUS)
        return status.state if isinstance(status, HostStatus) else ""

    def events(self, vm: str) -> list[str]:
        messages = [item.received.message for item in self.news]
        found = [item for item in messages if isinstance(item, HostEvent) and item.subject == vm]
        return [item.type.rpartition(".")[2] for item in found]


async def test_a_host_and_its_guests_are_seen(broker: AnyBroker, qemus: Qemus, tmp_path: Path) -> None:
    qemus.start("web1")
    async with running(tmp_path, broker) as agent, Observer(broker) as observer:
        await until(lambda: bool(observer.vm("web1")), "the guest that was there")
        web1 = observer.vm("web1")
        assert isinstance(web1, HostVm)
        assert (web1.monitor, web1.runstate, web1.role, web1.vcpus) == ("connected", "running", "idle", 0)
        await until(lambda: isinstance(observer.last(INFO), HostInfo), "the host's description")
        info = observer.last(INFO)
        assert info.memory_bytes > 0
        assert any("pc-q35" in machine for qemu in info.qemu for machine in qemu.machine_types)
        await until(lambda: isinstance(observer.last(LOAD), HostLoad) and observer.last(LOAD).seq >= 2, "its load")
        (load,) = observer.last(LOAD).guests
        assert (load.vm, load.cpu_percent is not None, load.resident_bytes > 0) == ("web1", True, True)

        began = time.monotonic()
        process = qemus.start("web2")
        await until(lambda: bool(observer.vm("web2")), "the guest that came")
        assert time.monotonic() - began < SOON_S
        began = time.monotonic()
        process.kill()
        await until(lambda: observer.vm("web2") is None, "the guest that went")
        assert time.monotonic() - began < SOON_S
        await until(lambda: observer.events("web2")[-1:] == ["guest-gone"], "is told")
        assert observer.vm("web1") is not None

        assert observer.state() == "ready"
        assert await agent.end() == 0
        await until(lambda: observer.state() == "stopped", "the agent says that it stops")
    async with Observer(broker) as late:
        await until(lambda: late.state() == "stopped", "for those who come late too")
        await until(lambda: bool(late.vm("web1")), "an agent that stops does not mean that its guests are gone")
        assert not late.vm("web2")


async def test_events_and_run_states_are_passed_on(mosquitto: Mosquitto, qemus: Qemus, tmp_path: Path) -> None:
    qemus.start("web1")
    async with running(tmp_path, mosquitto), Observer(mosquitto) as observer:
        await until(lambda: bool(observer.vm("web1")), "the guest is there")
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.connect(str(qemus.run_dir / "web1" / "qmp.sock"))
            for command, runstate in (("qmp_capabilities", "running"), ("stop", "paused"), ("cont", "running")):
                monitor.sendall(json.dumps({"execute": command}).encode())
                await until(lambda state=runstate: observer.vm("web1").runstate == state, runstate)
            monitor.sendall(b'{"execute": "quit"}')
            await until(lambda: observer.vm("web1") is None, "it is gone")
        await until(lambda: observer.events("web1")[-1:] == ["guest-gone"], "and that is told last")
        assert observer.events("web1")[-4:] == ["STOP", "RESUME", "SHUTDOWN", "guest-gone"]
        gone = next(m for m in (item.received.message for item in reversed(observer.news)) if isinstance(m, HostEvent))
        assert gone.data["shutdown_reason"] == "host-qmp-quit"
        assert sum(item.missed for item in observer.news) == 0


async def test_the_last_words_of_a_guest_are_heard_by_an_agent_that_was_held_up(
    mosquitto: Mosquitto, qemus: Qemus, tmp_path: Path
) -> None:
    """It finds both at once: that the process has ended, and what QEMU had said before."""
    process = qemus.start("web1")
    async with running(tmp_path, mosquitto) as agent, Observer(mosquitto) as observer:
        await until(lambda: bool(observer.vm("web1")) and observer.vm("web1").monitor == "connected", "it listens")
        assert agent.process is not None
        agent.process.send_signal(signal.SIGSTOP)
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.connect(str(qemus.run_dir / "web1" / "qmp.sock"))
            monitor.sendall(b'{"execute": "qmp_capabilities"}{"execute": "quit"}')
            await until(lambda: process.poll() is not None, "it has ended")
        agent.process.send_signal(signal.SIGCONT)
        await until(lambda: observer.vm("web1") is None, "it is gone")
        await until(lambda: "guest-gone" in observer.events("web1"), "and that is told")
        assert observer.events("web1")[-2:] == ["SHUTDOWN", "guest-gone"]
        states = [item.received.message for item in observer.news if item.received.topic == TOPICS.host_vm("a", "web1")]
        assert states[-1] is None
        assert states[-2].monitor == "connected"  # type: ignore[union-attr]
        gone = next(m for m in (item.received.message for item in reversed(observer.news)) if isinstance(m, HostEvent))
        assert gone.data["reason"] == "quit"


async def test_an_agent_that_is_killed_is_lost_and_its_successor_is_not(
    broker: AnyBroker, qemus: Qemus, tmp_path: Path
) -> None:
    process = qemus.start("web1")
    qemus.start("web2")
    async with running(tmp_path, broker) as first, Observer(broker) as observer:
        await until(lambda: bool(observer.vm("web1") and observer.vm("web2")), "both guests are there")
        await first.end(signal.SIGKILL)
        await until(lambda: observer.state() == "lost", "the last will")
        process.kill()
        process.wait(10)
        assert observer.vm("web1"), "nobody can have told"
        news = len(observer.news)
        async with running(tmp_path, broker):
            await until(lambda: observer.state() == "ready", "the successor")
            await until(lambda: observer.vm("web1") is None, "what went meanwhile is cleared")
            told = [
                item.received for item in observer.news[news:] if item.received.topic == TOPICS.host_vm("a", "web2")
            ]
            assert all(item.message is not None for item in told), "what stayed was never called gone"
            sessions = {item.received.message.session for item in observer.news if item.received.topic == STATUS}  # type: ignore[union-attr]
            assert len(sessions) == 2


async def test_a_broker_that_comes_back_empty_is_told_everything(
    broker: AnyBroker, qemus: Qemus, tmp_path: Path
) -> None:
    qemus.start("web1")
    async with running(tmp_path, broker) as agent:
        async with Observer(broker) as observer:
            await until(lambda: bool(observer.vm("web1") and observer.last(INFO)), "all is there")
        await broker.stop()
        qemus.start("web2")
        await broker.start()
        async with Observer(broker) as late:
            await until(lambda: bool(late.vm("web1") and late.vm("web2") and late.last(INFO)), "all is there again")
            await until(lambda: late.state() == "ready", "and the agent")
        assert agent.text.count("broker-unreachable") == agent.text.count("broker-back") == 1
        assert await agent.end() == 0


async def test_a_broker_that_remembers_what_is_no_longer_so_is_put_right(qemus: Qemus, tmp_path: Path) -> None:
    """With persistence it comes back with its old state: guests that have gone meanwhile, also with their agent, must go."""
    broker = Mosquitto(tmp_path, persistent=True)
    await broker.start()
    seen, stays, goes = qemus.start("seen"), qemus.start("stays"), qemus.start("goes")
    async with running(tmp_path, broker) as agent:
        async with Observer(broker) as observer:
            await until(lambda: all(observer.vm(name) for name in ("seen", "stays", "goes")), "all are known")
        await broker.stop()
        seen.kill()
        seen.wait(10)
        await until(lambda: "guest-gone" in agent.text, "the agent has seen it go")
        await agent.end(signal.SIGKILL)  # and now nobody remembers that it has told of `goes`
    goes.kill()
    goes.wait(10)
    await broker.start()
    async with running(tmp_path, broker), Observer(broker) as observer:
        await until(lambda: bool(observer.vm("stays")), "what is there is told of")
        await until(lambda: not observer.vm("seen") and not observer.vm("goes"), "what is gone is cleared")
        async with Observer(broker) as late:
            await until(lambda: bool(late.vm("stays")), "a late subscriber learns it")
            assert {item.received.topic for item in late.news if "/vm/" in item.received.topic} == {
                TOPICS.host_vm("a", "stays")
            }
        assert "guest-gone" not in observer.events("stays")
    assert stays.poll() is None
    await broker.stop()


async def test_a_second_agent_of_the_same_guests_is_refused(mosquitto: Mosquitto, qemus: Qemus, tmp_path: Path) -> None:
    qemus.run_dir.mkdir(exist_ok=True)
    async with running(tmp_path, mosquitto) as agent:
        second = await asyncio.create_subprocess_exec(*agent.argv, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        _, err = await asyncio.wait_for(second.communicate(), PATIENCE_S)
        assert second.returncode == 75
        assert b"another agent serves" in err
        assert b"hint:" in err
        assert not agent.ended


async def test_without_a_broker_the_agent_serves_and_stops_all_the_same(qemus: Qemus, tmp_path: Path) -> None:
    qemus.start("web1")
    agent = await Agent(tmp_path, f"mqtt://127.0.0.1:{free_port()}").start()
    assert json.loads((tmp_path / "ready.json").read_text())["connected"] is False
    await until(lambda: "guest-appeared" in agent.text, "it sees the guest")
    began = time.monotonic()
    assert await agent.end() == 0
    assert time.monotonic() - began < ENDED_S
    assert agent.text.count("broker-unreachable") == 1
    assert "Traceback" not in agent.text


async def test_a_frozen_qemu_is_waited_for_and_holds_up_nobody(
    mosquitto: Mosquitto, qemus: Qemus, tmp_path: Path
) -> None:
    frozen = qemus.start("frozen")
    frozen.send_signal(signal.SIGSTOP)
    async with running(tmp_path, mosquitto) as agent, Observer(mosquitto) as observer:
        qemus.start("web1")
        await until(lambda: bool(observer.vm("web1")), "the other one is seen")
        await until(lambda: bool(observer.vm("frozen")), "the frozen one too")
        state = observer.vm("frozen")
        assert (state.monitor, state.runstate) == ("waiting", "unknown")
        frozen.send_signal(signal.SIGCONT)
        await until(lambda: observer.vm("frozen").monitor == "connected", "it thaws")
        began = time.monotonic()
        assert await agent.end() == 0
        assert time.monotonic() - began < ENDED_S


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        ({"host": "a/b"}, 2, "is not a host name"),
        ({"mqtt": "http://x"}, 78, "unknown kind"),
        ({"mqtt": "mqtts://x", "mqtt-ca-file": "/absent"}, 78, "CA file"),
        ({"interval": "soon"}, 2, "is not a time"),
        ({"root": "#"}, 78, "cannot be used"),
        ({"ready-file": "/absent/dir/ready"}, 78, "ready file"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
async def test_bad_options_end_with_the_documented_code(
    tmp_path: Path, options: dict[str, str], status: int, words: str
) -> None:
    agent = Agent(tmp_path, f"mqtt://127.0.0.1:{free_port()}", **options)
    with agent.log.open("wb") as log:
        process = await asyncio.create_subprocess_exec(*agent.argv, stdout=log, stderr=log)
    assert await asyncio.wait_for(process.wait(), PATIENCE_S) == status, agent.text
    assert words in agent.text
    assert "hint: " in agent.text
    assert "Traceback" not in agent.text


def test_options_come_from_the_environment_too(tmp_path: Path) -> None:
    environment = {**os.environ, "QMP_HOSTAGENT_HOST": "A", "QMP_HOSTAGENT_MQTT": "mqtt://127.0.0.1"}
    argv = [sys.executable, "-m", "hostagent.app.cli", "run"]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=20)
    assert (done.returncode, "'A' is not a host name" in done.stderr) == (2, True)
