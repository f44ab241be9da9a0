"""The guardian against real QEMUs: the agent as a process of its own, the test as the controller that dies."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from qmp_migrate.bus.client.address import BrokerAddress
from qmp_migrate.bus.client.client import BusClient
from qmp_migrate.bus.consume.ordered import follow
from qmp_migrate.bus.messages.registry import HostEvent
from qmp_migrate.bus.messages.topics import Topics
from tests.support.real.brokers import PATIENCE_S, Mosquitto, free_port, until
from tests.support.real.pre_switchover_pair import HeldPair, binaries
from tests.support.side_by_side import side_by_side

LIMIT_S = 2.0
NEVER_S = 8.0
"""How long it is watched that nothing is done, where a controller is at work."""
SOON_S = LIMIT_S + 1.5
"""The same, in the cases that differ by what QEMU says: longer than the guardian would take."""
LONG_S = 4.0
"""The limit where the test plays a living controller: a busy machine may hold up its signs of life, too."""
DOUBTFUL = {"no file": None, "empty": "", "damaged": "soon\n", "ahead": "99999999.00\n"}

pytestmark = pytest.mark.skipif(not binaries(), reason="QEMU is not installed: apt-get install qemu-system-x86")


class Agent:
    """``qmp-hostagent run``, as a process, with a broker that is not there unless one is named."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._log = directory / "agent.log"
        self._log.touch()
        self.starts = 0
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, url: str | None = None, limit: str = f"{LIMIT_S:g}s") -> None:
        url = url or f"mqtt://127.0.0.1:{free_port()}"
        argv = [sys.executable, "-W", "error", "-m", "hostagent.app.cli", "run", "--host", "a", "--mqtt", url]
        argv += ["--run-dir", str(self._directory / "run"), "--guardian-limit", limit]
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.starts += 1
        await until(lambda: self.text.count("guest-appeared") == self.starts, "the agent sees the guest")

    @property
    def text(self) -> str:
        return self._log.read_text()

    def say(self, event: str) -> bool:
        return f"event={event}" in self.text

    async def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        self._process = None

    def send(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)


@contextlib.asynccontextmanager
async def an_agent(directory: Path) -> AsyncIterator[Agent]:
    made = Agent(directory)
    try:
        yield made
    finally:
        await made.kill()
    assert "Traceback" not in made.text


@contextlib.asynccontextmanager
async def a_pair(directory: Path, binary: str) -> AsyncIterator[HeldPair]:
    made = HeldPair(directory / "run", binary)
    try:
        yield made
    finally:
        await made.stop()


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[Agent]:
    async with an_agent(tmp_path) as made:
        yield made


@pytest.fixture(params=binaries(), ids=lambda path: Path(path).parts[-2])
def binary(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def pair(binary: str, tmp_path: Path) -> AsyncIterator[HeldPair]:
    async with a_pair(tmp_path, binary) as made:
        yield made


async def stays_held(pair: HeldPair, seconds: float, *, status: str = "pre-switchover") -> None:
    """Watch that nobody touches the source."""
    run_state = "finish-migrate" if status == "pre-switchover" else "postmigrate"
    end = time.monotonic() + seconds
    with pair.monitor.events("STOP", "RESUME", "MIGRATION") as events:
        while time.monotonic() < end:
            assert await pair.now() == (run_state, status)
            await asyncio.sleep(0.25)
        assert events._queue.empty()


def report(what: str, seconds: float, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\n  {what}: {seconds:.2f} s (limit {LIMIT_S:g} s)")


@pytest.mark.timeout(300)
async def test_each_of_these_side_by_side(binary: str, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What waits for the limit, or watches that nothing comes. One at a time each of them is a test of its own, below."""

    async def within(name: str, act: Callable[[HeldPair, Agent, Path], Awaitable[None]]) -> None:
        place = directory / name
        place.mkdir()
        async with a_pair(place, binary) as pair, an_agent(place) as agent:
            await act(pair, agent, place)

    cases: dict[str, Callable[[HeldPair, Agent, Path], Awaitable[None]]] = {
        "living": lambda pair, agent, _: test_a_living_controller_is_never_disturbed(pair, agent),
        "completed": lambda pair, agent, _: test_a_completed_source_is_never_touched(pair, agent),
        "postcopy": lambda pair, agent, _: test_a_migration_that_may_turn_into_postcopy_is_never_touched(pair, agent),
        "off": lambda pair, agent, _: test_turned_off_it_does_nothing(pair, agent),
        "anew": lambda pair, agent, _: test_an_agent_that_is_started_anew_in_the_middle_finishes_the_work(
            pair, agent, capsys
        ),
        "frozen": lambda pair, agent, _: test_an_agent_that_was_frozen_with_the_controller_believes_it_again(
            pair, agent
        ),
        "told": test_it_is_told_on_the_bus,
    }
    for name, text in DOUBTFUL.items():
        cases[name] = lambda pair, agent, _, text=text: test_without_a_beat_that_can_be_believed_it_is_never_touched(
            pair, agent, text
        )
    await side_by_side({name: within(name, act) for name, act in cases.items()})


@pytest.mark.alone
async def test_the_guest_runs_on_when_the_controller_is_gone_and_no_broker_is_there(
    pair: HeldPair, agent: Agent, capsys: pytest.CaptureFixture[str]
) -> None:
    await pair.boot()
    await agent.start()
    assert "event=guardian-on" in agent.text
    assert "limit_s=2.0" in agent.text
    with pair.beating():
        await pair.hold_again()
        await stays_held(pair, LIMIT_S + 0.5)
    pair.write_beat()
    last_beat = time.monotonic()
    took = await pair.until_running(LIMIT_S + 5) - last_beat
    report("from the last beat until the guest ran", took, capsys)
    assert LIMIT_S < took < LIMIT_S + 1
    await until(lambda: agent.say("guardian-cancelled"), "it is told")
    assert await pair.now() == ("running", "cancelled")
    pair.beat.unlink()
    await pair.hold_again()  # what was cancelled can be migrated again


@pytest.mark.full
async def test_a_living_controller_is_never_disturbed(pair: HeldPair, agent: Agent) -> None:
    await pair.start()
    with pair.beating():
        await agent.start(limit=f"{LONG_S:g}s")
        await stays_held(pair, NEVER_S)
    assert "event=guardian-cancel" not in agent.text


@pytest.mark.full
@pytest.mark.parametrize("text", DOUBTFUL.values(), ids=DOUBTFUL)
async def test_without_a_beat_that_can_be_believed_it_is_never_touched(
    pair: HeldPair, agent: Agent, text: str | None
) -> None:
    await pair.start()
    if text is not None:
        pair.write_beat(text)
    await agent.start()
    await until(lambda: agent.say("guardian-stands-by"), "it has looked")
    await stays_held(pair, SOON_S)
    assert agent.text.count("event=guardian-stands-by") == 1


@pytest.mark.full
async def test_a_completed_source_is_never_touched(pair: HeldPair, agent: Agent) -> None:
    await pair.start()
    pair.write_beat("1.00\n")
    await pair.monitor.execute("migrate-continue", {"state": "pre-switchover"})
    await pair.until_status("completed")
    await agent.start()
    await stays_held(pair, SOON_S, status="completed")
    assert (await pair.destination.execute("query-status"))["status"] == "paused"


@pytest.mark.full
async def test_a_migration_that_may_turn_into_postcopy_is_never_touched(pair: HeldPair, agent: Agent) -> None:
    await pair.start(postcopy=True)
    pair.write_beat("1.00\n")
    await agent.start()
    await until(lambda: "may turn into post-copy" in agent.text, "it has asked")
    await stays_held(pair, 1.0)


@pytest.mark.full
async def test_turned_off_it_does_nothing(pair: HeldPair, agent: Agent) -> None:
    await pair.start()
    pair.write_beat("1.00\n")
    await agent.start(limit="0")
    await stays_held(pair, SOON_S)
    assert "event=guardian-off" in agent.text


@pytest.mark.full
async def test_an_agent_that_is_started_anew_in_the_middle_finishes_the_work(
    pair: HeldPair, agent: Agent, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the guest came here by a migration itself, so that its command line says ``-incoming``."""
    await pair.arrive()
    await agent.start()
    pair.write_beat()
    await pair.hold_again()
    await agent.kill()
    began = time.monotonic()
    await agent.start()
    took = await pair.until_running(LIMIT_S + PATIENCE_S) - began
    report("from the agent's restart until the guest ran", took, capsys)
    assert took > LIMIT_S
    await until(lambda: agent.say("guardian-cancelled"), "it is told")


@pytest.mark.full
async def test_an_agent_that_was_frozen_with_the_controller_believes_it_again(pair: HeldPair, agent: Agent) -> None:
    await pair.start()
    with pair.beating():
        await agent.start(limit=f"{LONG_S:g}s")
        await stays_held(pair, 1.0)
    agent.send(signal.SIGSTOP)
    await stays_held(pair, LONG_S + 0.5)  # both are frozen, as on a host that is suspended
    agent.send(signal.SIGCONT)
    await asyncio.sleep(0.3)  # the holder of the lock may need a moment more than we do
    with pair.beating():
        await stays_held(pair, LONG_S + 0.5)


@pytest.mark.full
async def test_it_is_told_on_the_bus(pair: HeldPair, agent: Agent, tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path)
    await broker.start()
    client = BusClient(BrokerAddress.parse(broker.url), Topics(), role="events")
    client.start()
    told: list[HostEvent] = []

    async def read() -> None:
        async for followed in follow(client):
            if isinstance(followed.received.message, HostEvent):
                told.append(followed.received.message)

    reading = asyncio.create_task(read())
    try:
        await client.wait_connected()
        await pair.start()
        pair.write_beat()
        await agent.start(broker.url)
        await until(
            lambda: any(event.type.endswith(".guardian-cancelled") for event in told),
            "it is told",
        )
        event = next(event for event in told if event.type.endswith(".guardian-cancelled"))
        assert (event.type, event.subject) == ("qmp-migrate.host.guardian-cancelled", "web1")
        assert (event.data["reason"], event.data["runstate"]) == ("the controller is gone", "running")
        assert 2_000 <= event.data["paused_ms"] <= event.data["beat_age_ms"] + 1_000
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await client.close()
        await broker.stop()
