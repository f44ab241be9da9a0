"""A guest is handed over by two agents, without its controller: real QEMUs, real agents, a real Mosquitto."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from hostagent.failover.guest_lock import read_epoch
from qmp_migrate.bus.client.address import BrokerAddress
from qmp_migrate.bus.client.client import BusClient
from qmp_migrate.bus.messages.registry import HostToken
from qmp_migrate.bus.messages.topics import Topics
from tests.support.real.brokers import PATIENCE_S, Mosquitto, until
from tests.support.real.failover_pair import EPOCH, MIGRATION, HandingPair, HeldLock
from tests.support.real.pre_switchover_pair import binaries
from tests.support.side_by_side import side_by_side

LIMIT_S = 2.0
NEVER_S = LIMIT_S + 3.0
"""How long it is watched that nothing is done: longer than all would take."""
TOPICS = Topics()

pytestmark = pytest.mark.skipif(not binaries(), reason="QEMU is not installed: apt-get install qemu-system-x86")


class Agents:
    """``qmp-hostagent run`` for host a (the source's) and b."""

    def __init__(self, base: Path, url: str) -> None:
        self._base, self._url = base, url
        self._running: dict[str, asyncio.subprocess.Process] = {}

    async def start(self, name: str) -> None:
        run_dir = self._base / {"a": "run", "b": "elsewhere"}[name]
        argv = [sys.executable, "-W", "error", "-m", "hostagent.app.cli", "run", "--host", name, "--mqtt", self._url]
        argv += ["--run-dir", str(run_dir), "--guardian-limit", f"{LIMIT_S:g}s"]
        with (self._base / f"{name}.log").open("ab") as log:
            self._running[name] = await asyncio.create_subprocess_exec(
                *argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        await until(lambda: "agent-ready" in self.text(name), "the agent serves")

    def text(self, name: str) -> str:
        return (self._base / f"{name}.log").read_text()

    async def kill(self, name: str) -> None:
        process = self._running.pop(name, None)
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def kill_all(self) -> None:
        for name in list(self._running):
            await self.kill(name)

    async def stop(self) -> None:
        names = list(self._running)
        await self.kill_all()
        for name in names:
            assert "Traceback" not in self.text(name), self.text(name)


@dataclass
class Stand:
    """What each test has of its own."""

    broker: Mosquitto
    pair: HandingPair
    agents: Agents


@contextlib.asynccontextmanager
async def a_stand(directory: Path) -> AsyncIterator[Stand]:
    broker = Mosquitto(directory)
    pair = HandingPair(directory, binaries()[0])
    agents = Agents(directory, broker.url)
    try:
        await broker.start()
        await pair.begin()
        yield Stand(broker, pair, agents)
        await agents.stop()
    finally:
        await agents.kill_all()
        await pair.stop()
        await broker.stop()


@pytest.fixture
async def stand(tmp_path: Path) -> AsyncIterator[Stand]:
    async with a_stand(tmp_path) as made:
        yield made


@pytest.fixture
def broker(stand: Stand) -> Mosquitto:
    return stand.broker


@pytest.fixture
def pair(stand: Stand) -> HandingPair:
    return stand.pair


@pytest.fixture
def agents(stand: Stand) -> Agents:
    return stand.agents


@contextlib.asynccontextmanager
async def bus(broker: Mosquitto) -> AsyncIterator[BusClient]:
    async with BusClient(BrokerAddress.parse(broker.url), TOPICS, role="test") as client:
        await client.wait_connected()
        yield client


async def stands_still(pair: HandingPair, *, seconds: float = NEVER_S) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert not await pair.runs_at_destination()
        assert not pair.source_gone()
        await asyncio.sleep(0.2)


async def handed_over(pair: HandingPair, *, timeout: float = PATIENCE_S) -> None:
    async def so() -> bool:
        runs = await pair.runs_at_destination()
        assert pair.source_gone() or not runs, "two copies run"
        return runs

    await until(so, "the guest runs at the destination", timeout=timeout)
    assert pair.source_gone()
    await until(lambda: pair.record(pair.destination_dir) == "ran", "the agent has seen it run")


@pytest.mark.timeout(300)
async def test_each_of_these_side_by_side(directory: Path) -> None:
    """What watches that nothing comes, or waits for a limit. One at a time each of them is a test of its own, below."""

    async def within(name: str, act: Callable[[Stand], Awaitable[None]]) -> None:
        place = directory / name
        place.mkdir()
        async with a_stand(place) as made:
            await act(made)

    cases: dict[str, Callable[[Stand], Awaitable[None]]] = {
        "source held": lambda on: test_nothing_happens_while_a_controller_holds_the_lock_of_one_host(
            "source", on.pair, on.agents
        ),
        "destination held": lambda on: test_nothing_happens_while_a_controller_holds_the_lock_of_one_host(
            "destination", on.pair, on.agents
        ),
        "alone": lambda on: test_nothing_happens_without_the_other_agent_nor_without_the_broker(
            on.pair, on.agents, on.broker
        ),
        "void": lambda on: test_a_mandate_of_an_older_epoch_is_void(on.pair, on.agents),
        "died": lambda on: test_an_agent_that_died_between_its_word_and_its_deed_goes_on(on.pair, on.agents),
        "hostile": lambda on: test_only_a_fresh_signed_token_of_this_migration_starts_a_guest(
            on.pair, on.agents, on.broker
        ),
        "late": lambda on: test_a_late_token_starts_nothing(on.pair, on.agents, on.broker),
    }
    await side_by_side({name: within(name, act) for name, act in cases.items()})


async def test_two_agents_hand_a_guest_over_whose_controller_is_gone(
    pair: HandingPair, agents: Agents, broker: Mosquitto, capsys: pytest.CaptureFixture[str]
) -> None:
    heard: list[HostToken] = []
    async with bus(broker) as client, client.subscribe(TOPICS.tokens_of(MIGRATION)) as messages:
        listening = asyncio.create_task(_hear(messages, heard))
        await agents.start("a")
        await agents.start("b")
        pair.beat_at(pair.source_dir)
        pair.beat_at(pair.destination_dir)
        gone = time.monotonic()
        await handed_over(pair)
        with capsys.disabled():
            print(f"\n  runs again {time.monotonic() - gone:.2f} s after the last sign of life (limit {LIMIT_S:g} s)")
        await until(lambda: "handover-done" in agents.text("a"), "the source's agent is told")
        await until(lambda: any(token.step == "runs" for token in heard), "all is heard")
        listening.cancel()
    # On a busy machine an offer may have had its time before the answer came; the next one goes the same way.
    assert list(dict.fromkeys(token.step for token in heard)) == ["offer", "ready", "run", "runs"]
    assert pair.record(pair.source_dir) == "ended"
    assert not (pair.source_dir / ".handover" / "web1.mandate").exists()  # the secret with it
    for run_dir in (pair.source_dir, pair.destination_dir):
        assert read_epoch(run_dir, "web1")[:2] == (EPOCH + 1, f"{EPOCH} migration {MIGRATION}")
    async with bus(broker) as client:  # all that was said, said again: nothing comes of it
        await pair.destination.execute("stop")
        for token in heard:
            client.publish_event(TOPICS.host_token(token.host, MIGRATION), token)
        await asyncio.sleep(1.5)
        assert not await pair.runs_at_destination()


async def _hear(messages: object, heard: list[HostToken]) -> None:
    async for received in messages:  # type: ignore[attr-defined]
        if isinstance(received.message, HostToken):
            heard.append(received.message)


@pytest.mark.full
@pytest.mark.parametrize("side", ["source", "destination"])
async def test_nothing_happens_while_a_controller_holds_the_lock_of_one_host(
    side: str, pair: HandingPair, agents: Agents
) -> None:
    lock = HeldLock(pair.source_dir if side == "source" else pair.destination_dir)
    await agents.start("a")
    await agents.start("b")
    held = "a" if side == "source" else "b"
    await until(lambda: "handover-waits" in agents.text(held), "the agent finds the lock held")
    await stands_still(pair, seconds=2.0)
    assert pair.record(pair.source_dir) == pair.record(pair.destination_dir) == ""
    lock.release()
    await handed_over(pair)


@pytest.mark.full
async def test_nothing_happens_without_the_other_agent_nor_without_the_broker(
    pair: HandingPair, agents: Agents, broker: Mosquitto
) -> None:
    await agents.start("a")
    await stands_still(pair)
    await broker.stop()
    await agents.start("b")
    await stands_still(pair, seconds=2.0)
    await broker.start()
    await handed_over(pair)


@pytest.mark.full
async def test_a_mandate_of_an_older_epoch_is_void(pair: HandingPair, agents: Agents) -> None:
    (pair.source_dir / ".locks" / "web1.epoch").write_text(f"{EPOCH + 1}\n{EPOCH + 1} recovery\n")
    await agents.start("a")
    await agents.start("b")
    await until(lambda: "mandate-void" in agents.text("a"), "the mandate is found void")
    await stands_still(pair, seconds=2.0)


@pytest.mark.full
async def test_an_agent_that_died_between_its_word_and_its_deed_goes_on(pair: HandingPair, agents: Agents) -> None:
    mark = "0f" * 16
    (pair.source_dir / ".locks" / "web1.epoch").write_text(f"{EPOCH + 1}\n{EPOCH} migration {MIGRATION}\n{mark}\n")
    words = {"migration": MIGRATION, "state": "released", "mark": mark}
    (pair.source_dir / ".handover" / "web1.record").write_text(json.dumps(words))
    await agents.start("a")
    await until(lambda: pair.record(pair.source_dir) == "ended", "the source is ended")
    assert pair.source_gone()
    await agents.kill("a")
    await agents.start("b")
    await agents.start("a")
    await handed_over(pair)


async def told(say: Callable[[], None], agents: Agents, reason: str) -> None:
    """Say something until the agent has refused it: it listens from some time after its start."""

    def heard() -> bool:
        say()
        return reason in agents.text("b")

    await until(heard, "the agent listens")


@pytest.mark.full
async def test_only_a_fresh_signed_token_of_this_migration_starts_a_guest(
    pair: HandingPair, agents: Agents, broker: Mosquitto
) -> None:
    """The test is the source's agent, and a hostile one."""
    await agents.start("b")
    offer, other = "0a" * 16, "0b" * 16
    answers: list[HostToken] = []
    async with bus(broker) as client, client.subscribe(TOPICS.host_token("b", MIGRATION)) as messages:
        listening = asyncio.create_task(_hear(messages, answers))

        def say(token: HostToken) -> None:
            client.publish_event(TOPICS.host_token(token.host, token.migration), token)

        good = pair.token("run", offer, other)
        await told(lambda: say(good.model_copy(update={"signature": "1" * 64})), agents, "its signature is not one")
        say(good)  # answers nothing
        say(good.model_copy(update={"signature": "0" * 64}))
        say(pair.token("offer", offer).model_copy(update={"offer": other}))  # changed on the way
        say(pair.token("offer", offer, epoch=EPOCH - 1))
        say(pair.token("offer", offer, vm="web2"))
        say(pair.token("offer", offer, process="1 2 3"))
        await stands_still(pair, seconds=1.5)
        assert answers == []
        say(pair.token("offer", offer))
        await until(lambda: len(answers) == 1, "it is ready")
        first = answers[0]
        assert (first.step, first.offer, first.verified(pair.secret)) == ("ready", offer, True)
        say(pair.token("run", offer, other))  # not what it made up
        say(pair.token("run", other, first.ready))
        say(good)
        await stands_still(pair, seconds=1.0)
        say(pair.token("offer", other))  # a new try: what belonged to the old one is worth nothing
        await until(lambda: len(answers) == 2, "it is ready again")
        say(pair.token("run", offer, first.ready))
        await stands_still(pair, seconds=1.0)
        run = await _started(pair, say, answers)
        await until(lambda: pair.record(pair.destination_dir) == "ran", "it is written down")
        await pair.destination.execute("stop")
        say(run)  # once is once
        await asyncio.sleep(1.5)
        assert not await pair.runs_at_destination()
        listening.cancel()
    text = agents.text("b")
    for reason in ("its signature is not one", "it speaks of another guest", "it is late, was used"):
        assert text.count(reason) == 1, reason


async def _started(pair: HandingPair, say: Callable[[HostToken], None], answers: list[HostToken]) -> HostToken:
    """Start the guest with a token; return that. An offer is good for seconds: a busy machine may need a second one."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        offer, before = secrets.token_hex(16), len(answers)
        say(pair.token("offer", offer))
        await until(lambda before=before: len(answers) > before, "it is ready once more")  # type: ignore[misc]
        run = pair.token("run", offer, answers[-1].ready)
        say(run)
        for _ in range(20):
            if await pair.runs_at_destination():
                return run
            await asyncio.sleep(0.1)
    raise AssertionError("the guest does not run")


@pytest.mark.full
async def test_a_late_token_starts_nothing(pair: HandingPair, agents: Agents, broker: Mosquitto) -> None:
    await agents.start("b")
    answers: list[HostToken] = []
    async with bus(broker) as client, client.subscribe(TOPICS.host_token("b", MIGRATION)) as messages:
        listening = asyncio.create_task(_hear(messages, answers))

        def answered() -> bool:  # the agent listens from some time after its start
            client.publish_event(TOPICS.host_token("a", MIGRATION), pair.token("offer", "0a" * 16))
            return bool(answers)

        await until(answered, "it is ready", every=0.5)
        lock = pair.destination_dir / ".locks" / "web1.lock"
        await until(lambda: not lock.exists(), "the lock is given back")
        client.publish_event(TOPICS.host_token("a", MIGRATION), pair.token("run", "0a" * 16, answers[-1].ready))
        await stands_still(pair, seconds=1.5)
        listening.cancel()
    assert "it is late" in agents.text("b")
