"""One look at a QEMU: alive, dead and unknown are three things."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from qmp_migrate.errors import CommandFailed, ConnectionLost, HostUnreachable, MonitorBusy, MonitorLost
from qmp_migrate.hosts.base import Completed
from qmp_migrate.hosts.process_scripts import IS_ALIVE, KILL, KILL_CLOSED
from qmp_migrate.migration.endpoint.endpoint import Observation, Side
from qmp_migrate.migration.ownership import decision
from qmp_migrate.migration.ownership.decision import Source
from qmp_migrate.qemu.timeouts import HUNG_END_S
from tests.support.fakes.fake_endpoints import FakeHost, side_of
from tests.support.fakes.fake_qemu import Fails, FakeQemu, HangUp


@dataclass
class World:
    """What the host says of the process: alive, gone, or an error where it cannot be asked."""

    alive: bool | Exception = True
    held: str = ""

    async def script(self, source: str, _args: Sequence[str] = (), **_: Any) -> Completed:
        assert source in {IS_ALIVE, KILL, KILL_CLOSED}
        if source == KILL_CLOSED and self.held:
            return Completed(0, f"holds {self.held}".encode(), b"")
        if source in {KILL, KILL_CLOSED}:
            self.alive = False
        if isinstance(self.alive, Exception):
            raise self.alive
        return Completed(0, b"live" if self.alive else b"gone", b"")


@pytest.fixture
def world(virtual_clock: None) -> World:
    return World()


@pytest.fixture
async def qemu() -> AsyncIterator[FakeQemu]:
    async with FakeQemu() as fake:
        yield fake


@pytest.fixture
async def side(qemu: FakeQemu, world: World) -> AsyncIterator[Side]:
    there = side_of("a", qemu)
    host_of(there).script = world.script  # type: ignore[method-assign]
    yield there
    await there.detach()


def host_of(side: Side) -> FakeHost:
    assert isinstance(side.host, FakeHost)
    return side.host


async def test_a_qemu_that_answers_is_alive(qemu: FakeQemu, side: Side) -> None:
    qemu.on("query-migrate", {"status": "active"})
    seen = await side.observe()
    assert (seen.alive, seen.run_state, seen.status) == (True, "running", "active")
    assert str(seen) == "running, migration active"
    assert host_of(side).opened == ["/run/q/web1/qmp.sock"]


async def test_one_that_was_never_started_is_gone(side: Side) -> None:
    side.process = None
    assert await side.observe() == Observation(alive=False)
    assert str(await side.observe()) == "proven gone"


async def test_one_that_hangs_at_its_end_is_ended(qemu: FakeQemu, side: Side, world: World) -> None:
    """Up to QEMU 10.0 a command in the queue makes it hang for ever: its guest has ended, its disks are closed."""
    monitor = await side.attach()
    with monitor.events("SHUTDOWN") as events:
        qemu.emit("SHUTDOWN", {"guest": True, "reason": "guest-shutdown"})
        await events.get(timeout=5)
    qemu.main_loop.clear()
    begun = time.monotonic()
    while (seen := await side.observe()).alive:
        assert time.monotonic() - begun < 2 * HUNG_END_S
    assert time.monotonic() - begun > HUNG_END_S
    assert seen == Observation(alive=False)
    assert world.alive is False
    shutdown = await side.last_words()
    assert shutdown is not None
    assert shutdown.data["reason"] == "guest-shutdown"


async def test_but_not_one_that_still_writes_to_its_disks(qemu: FakeQemu, side: Side, world: World) -> None:
    """A QEMU that flushes to slow storage answers as little as one that hangs."""
    world.held = "/images/web1.qcow2"
    await side.attach()
    qemu.emit("SHUTDOWN", {"guest": True, "reason": "guest-shutdown"})
    await asyncio.sleep(2 * HUNG_END_S)
    qemu.main_loop.clear()
    seen = await side.observe()
    assert (seen.alive, seen.run_state) == (True, None)
    assert "/images/web1.qcow2" in seen.problem
    assert world.alive is True
    world.held = ""
    assert await side.observe() == Observation(alive=False)


async def test_but_not_one_that_stays_and_answers(qemu: FakeQemu, side: Side, world: World) -> None:
    """As with -no-shutdown."""
    await side.attach()
    qemu.emit("SHUTDOWN", {"guest": True, "reason": "guest-shutdown"})
    qemu.on("query-status", {"status": "shutdown", "running": False})
    await asyncio.sleep(2 * HUNG_END_S)
    assert (await side.observe()).run_state == "shutdown"
    assert world.alive is True


async def test_silence_is_neither_life_nor_death_without_proof(qemu: FakeQemu, side: Side, world: World) -> None:
    await side.attach()
    qemu.main_loop.clear()
    for alive, known in [(True, True), (False, False), (HostUnreachable("x"), None), (ConnectionLost("x"), None)]:
        world.alive = alive
        seen = await side.observe()
        assert (seen.alive, seen.run_state, seen.status) == (known, None, None)
        assert "no answer" in seen.problem
    world.alive = CommandFailed("the script failed", returncode=1)
    assert (await side.observe()).alive is None


async def test_an_event_before_the_greeting_is_forgiven_once(qemu: FakeQemu, side: Side) -> None:
    """QEMU that is just starting does so now and then."""
    right, wrong = qemu.greeting, b'{"event": "RESUME", "timestamp": {"seconds": 1, "microseconds": 0}}\r\n'
    host, opened = host_of(side), 0
    connect = host.open_unix

    async def open_unix(path: str, *, timeout: float = 5.0) -> socket.socket:
        nonlocal opened
        opened += 1
        qemu.greeting = wrong if opened <= failures else right
        return await connect(path, timeout=timeout)

    host.open_unix = open_unix  # type: ignore[method-assign]
    failures = 1
    assert (await side.attach()).label == "web1@a"
    await side.detach()
    opened, failures = 0, 2
    with pytest.raises(MonitorLost, match="Greeting"):
        await side.attach()


async def test_after_silence_the_same_monitor_is_used(qemu: FakeQemu, side: Side) -> None:
    """A hung QEMU would not greet a second time, and a `yank` needs the connection that there is."""
    await side.attach()
    qemu.main_loop.clear()
    assert (await side.observe()).run_state is None
    qemu.main_loop.set()
    assert (await side.observe()).run_state == "running"
    assert len(host_of(side).opened) == 1


async def test_a_monitor_that_was_lost_is_opened_again(qemu: FakeQemu, side: Side) -> None:
    qemu.on("query-status", HangUp(), {"status": "running", "running": True})
    assert (await side.observe()).run_state == "running"
    assert len(host_of(side).opened) == 2


async def test_a_qemu_whose_process_is_proven_gone_is_dead(qemu: FakeQemu, side: Side, world: World) -> None:
    qemu.on("query-status", HangUp())
    world.alive = False
    seen = await side.observe()
    assert (seen.alive, str(seen)) == (False, "proven gone")


async def test_a_host_that_is_cut_off_makes_unknown_what_is_on_it(side: Side, world: World) -> None:
    world.alive = host_of(side).unreachable = HostUnreachable("no route", host="a")
    seen = await side.observe()
    assert (seen.alive, seen.run_state) == (None, None)
    assert str(seen) == "unknown (a: no route)"


async def test_a_monitor_that_somebody_else_holds(qemu: FakeQemu, side: Side) -> None:
    qemu.greeting = None
    seen = await side.observe()
    assert (seen.alive, seen.run_state) == (True, None)
    with pytest.raises(MonitorBusy):
        await side.attach()


@pytest.mark.parametrize("reply", [None, {"status": 5}, Fails("no")])
async def test_nonsense_is_unknown(qemu: FakeQemu, side: Side, reply: Any) -> None:
    qemu.on("query-migrate", reply)
    seen = await side.observe()
    assert (seen.alive, seen.run_state) == (True, None)
    assert seen.problem


async def test_a_look_that_straddles_the_switchover_sees_no_source_that_runs_on(qemu: FakeQemu, side: Side) -> None:
    answered = 0

    def running(*, before: dict[str, Any], after: dict[str, Any]) -> Any:
        def answer(_arguments: dict[str, Any]) -> dict[str, Any]:
            nonlocal answered
            answered += 1
            return before if answered == 1 else after

        return answer

    qemu.on(
        "query-status",
        running(before={"status": "running", "running": True}, after={"status": "postmigrate", "running": False}),
    )
    qemu.on("query-migrate", running(before={"status": "active"}, after={"status": "completed"}))
    seen = await side.observe()
    source = decision.classify_source(alive=seen.alive, run_state=seen.run_state, status=seen.status)
    assert source is not Source.RUNS


async def test_to_kill_one_that_was_never_started_is_easy(side: Side) -> None:
    side.process = None
    assert await side.kill() is True


async def test_a_kill_without_proof_is_none(side: Side) -> None:
    host_of(side).unreachable = HostUnreachable("no route", host="a")
    assert await side.kill() is False


async def test_nothing_is_asked_twice_at_once(qemu: FakeQemu, side: Side) -> None:
    monitors = await asyncio.gather(*(side.attach() for _ in range(5)))
    assert len(set(map(id, monitors))) == 1
    assert len(host_of(side).opened) == 1


async def test_an_address_in_brackets_is_one_without(qemu: FakeQemu) -> None:
    side = side_of("a", qemu)
    side.settings = side.settings.model_copy(update={"migration_address": "[fd00::1]"})
    assert side.migration_address == "fd00::1"
