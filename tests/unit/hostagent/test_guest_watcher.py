"""Watching a guest: only questions are asked, events are passed on, and a QEMU that hangs hangs nobody else."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from hostagent.discovery.guests import Guest
from hostagent.guardian.guardian import Guardian
from hostagent.watch import guest_watcher as watch_module
from hostagent.watch.guest_watcher import GuestWatch
from hostagent.watch.holdoff import QUIET_S
from qmp_migrate.bus.messages.registry import HostVm
from tests.support.real.brokers import until

GREETING = {"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "capabilities": ["oob"]}}


class ScriptedQemu:
    """A QMP server that answers what it is told to, and remembers what it was asked."""

    def __init__(self, path: Path) -> None:
        self.asked: list[str] = []
        self.asked_at: list[float] = []
        self.before_answer: Callable[[str], None] = lambda _: None
        self.connections = 0
        self.mute = False
        self.answers: dict[str, Any] = {
            "qmp_capabilities": {},
            "query-version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""},
            "query-uuid": {"UUID": "5c6c6a0e-0b0e-4f0e-9d5b-1f6f0b1f7a10"},
            "query-cpus-fast": [{"cpu-index": 0}, {"cpu-index": 1}],
            "query-memory-size-summary": {"base-memory": 1 << 29, "plugged-memory": 1 << 20},
            "query-status": {"status": "running", "running": True},
            "query-migrate": {},
        }
        self._path = path
        self._writer: asyncio.StreamWriter | None = None

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        server = await asyncio.start_unix_server(self._serve, self._path)
        try:
            yield
        finally:
            server.close()
            self.hang_up()

    def hang_up(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def say(self, message: Mapping[str, Any]) -> None:
        assert self._writer is not None
        self._writer.write(json.dumps(message).encode() + b"\r\n")

    def event(self, name: str, **data: Any) -> None:
        self.say({"event": name, "data": data, "timestamp": {"seconds": 1_795_000_000, "microseconds": 5000}})

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self.connections += 1
        if not self.mute:
            self.say(GREETING)
        decoder, text = json.JSONDecoder(), ""
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                text = (text + data.decode()).lstrip()
                while text:  # the client's messages have no newline
                    request, end = decoder.raw_decode(text)
                    text = text[end:].lstrip()
                    self._answer(request)
        writer.close()

    def _answer(self, request: dict[str, Any]) -> None:
        command = request["execute"]
        self.asked.append(command)
        self.asked_at.append(time.monotonic())
        if self.mute:
            return
        self.before_answer(command)
        reply: dict[str, Any] = {"error": {"class": "CommandNotFound", "desc": "no such thing"}}
        if command in self.answers:
            reply = {"return": self.answers[command]}
        if "id" in request:  # the library's qmp_capabilities has none
            reply["id"] = request["id"]
        self.say(reply)


class Heard:
    """Stands for the publisher."""

    def __init__(self) -> None:
        self.states: list[HostVm] = []
        self.events: list[tuple[str, dict[str, Any], float, bool]] = []
        self.heard_at: list[float] = []

    def guest(self, state: HostVm) -> None:
        self.states.append(state)
        self.heard_at.append(time.monotonic())

    def qmp_event(self, vm: str, name: str, data: Mapping[str, Any], *, seconds: float, publish: bool) -> None:
        assert vm == "web1"
        self.events.append((name, dict(data), seconds, publish))
        self.heard_at.append(time.monotonic())

    def own_event(self, kind: str, vm: str, data: Mapping[str, Any]) -> None:
        assert vm == "web1"

    def so(self, **expected: Any) -> Callable[[], bool]:
        """Tell whether the newest state is as expected."""

        def is_so() -> bool:
            return bool(self.states) and all(getattr(self.states[-1], key) == value for key, value in expected.items())

        return is_so


@pytest.fixture
def qemu(tmp_path: Path, virtual_clock: None) -> ScriptedQemu:
    return ScriptedQemu(tmp_path / "agent.sock")


def guest_in(directory: Path, *argv: str) -> Guest:
    return Guest("web1", directory, 4711, 100, ("qemu", *argv))


@contextlib.asynccontextmanager
async def watching(
    directory: Path, *argv: str, guardian: Guardian | None = None
) -> AsyncIterator[tuple[GuestWatch, Heard]]:
    heard = Heard()
    watch = GuestWatch("a", guest_in(directory, *argv), heard, guardian)  # type: ignore[arg-type]
    task = asyncio.create_task(watch.run())
    try:
        yield watch, heard
        assert not task.done(), "it watches for ever"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_the_state_is_asked_for_and_nothing_else_is_ever_sent(qemu: ScriptedQemu, tmp_path: Path) -> None:
    async with qemu.listening(), watching(tmp_path) as (_, heard):
        await until(heard.so(monitor="connected"), "the state is known")
        assert len(heard.states) == 1, "nothing half known is published"
        state = heard.states[0]
        assert (state.runstate, state.role, state.vcpus) == ("running", "idle", 2)
        assert state.memory_bytes == (1 << 29) + (1 << 20)
        assert (state.qemu_version, state.uuid) == ("7.2.22", "5c6c6a0e-0b0e-4f0e-9d5b-1f6f0b1f7a10")
        for name in ("STOP", "RESUME", "SHUTDOWN", "MIGRATION", "DEVICE_DELETED"):
            qemu.event(name)
        await until(lambda: len(heard.events) == 5, "the events come")
        await until(lambda: qemu.asked.count("query-status") >= 2, "it asks again")
        assert {word for word in qemu.asked if not word.startswith("query-")} == {"qmp_capabilities"}


async def test_an_event_is_passed_on_and_the_state_asked_for_again(qemu: ScriptedQemu, tmp_path: Path) -> None:
    async with qemu.listening(), watching(tmp_path) as (watch, heard):
        await until(heard.so(runstate="running"), "the state is known")
        qemu.answers["query-status"] = {"status": "paused"}
        qemu.event("STOP")
        await until(heard.so(runstate="paused"), "the new state is known", timeout=2)
        qemu.event("RTC_CHANGE", offset=1)
        qemu.event("SHUTDOWN", guest=True, reason="guest-shutdown")
        await until(lambda: watch.shutdown_reason == "guest-shutdown", "the reason is kept")
        assert heard.events == [
            ("STOP", {}, 1_795_000_000.005, True),
            ("SHUTDOWN", {"guest": True, "reason": "guest-shutdown"}, 1_795_000_000.005, True),
        ]


async def test_an_incoming_guest_stays_incoming_until_it_runs(qemu: ScriptedQemu, tmp_path: Path) -> None:
    qemu.answers |= {"query-status": {"status": "inmigrate"}}
    async with qemu.listening(), watching(tmp_path, "-incoming", "defer") as (_, heard):
        await until(heard.so(role="incoming", runstate="inmigrate"), "it waits")
        qemu.answers |= {"query-status": {"status": "paused"}, "query-migrate": {"status": "completed"}}
        qemu.event("MIGRATION", status="completed")
        await until(heard.so(role="incoming", runstate="paused"), "it has come and waits for `cont`")
        qemu.event("RESUME")
        qemu.event("STOP")
        await until(heard.so(role="idle", runstate="paused"), "it has run, if only for a moment: a pause is a pause")


async def test_a_hung_qemu_is_waited_for_and_found_again(qemu: ScriptedQemu, tmp_path: Path) -> None:
    async with qemu.listening(), watching(tmp_path) as (_, heard):
        await until(heard.so(monitor="connected"), "it is known")
        qemu.mute = True
        await until(heard.so(monitor="waiting", runstate="running"), "unknown, not dead", timeout=60, every=1)
        qemu.mute = False
        await until(heard.so(monitor="connected"), "it answers again", timeout=60, every=1)
        assert qemu.connections == 1, "a time limit is no reason to hang up"


async def test_a_lost_monitor_is_taken_again_and_the_state_asked_anew(qemu: ScriptedQemu, tmp_path: Path) -> None:
    async with qemu.listening(), watching(tmp_path) as (_, heard):
        await until(heard.so(monitor="connected"), "it is known")
        qemu.answers["query-status"] = {"status": "paused"}
        qemu.hang_up()
        await until(heard.so(monitor="connected", runstate="paused"), "what was missed is known")


async def test_a_monitor_that_somebody_else_holds_is_waited_for(qemu: ScriptedQemu, tmp_path: Path) -> None:
    qemu.mute = True
    async with qemu.listening(), watching(tmp_path) as (_, heard):
        await until(
            heard.so(monitor="waiting", runstate="unknown"), "it is there, more is not known", timeout=60, every=1
        )
        qemu.mute = False
        await until(heard.so(monitor="connected"), "now it is our turn", timeout=15)


async def test_a_guest_that_shouts_is_heard_in_part(qemu: ScriptedQemu, tmp_path: Path) -> None:
    async with qemu.listening(), watching(tmp_path) as (_, heard):
        await until(heard.so(monitor="connected"), "it is known")
        asked = len(qemu.asked)
        for _ in range(2_000):
            qemu.event("BLOCK_IO_ERROR", device="disk0")
        await until(lambda: len(heard.events) == 2_000, "all are counted")
        published = sum(publish for *_, publish in heard.events)
        assert watch_module.EVENTS_PER_S <= published < 1_000
        assert len(qemu.asked) - asked < 50


@pytest.mark.parametrize(
    "nonsense",
    [
        {"query-status": {"status": "no word at all"}},
        {"query-status": {"status": None}},
        {"query-status": []},
        {"query-migrate": {"status": {"a": 1}}},
        {"query-cpus-fast": 7, "query-uuid": [], "query-memory-size-summary": {"base-memory": "much"}},
        {"query-memory-size-summary": {"base-memory": -5}, "query-version": None},
    ],
    ids=lambda value: next(iter(value)) + str(len(str(value))),
)
async def test_nonsense_does_not_end_the_watch(qemu: ScriptedQemu, tmp_path: Path, nonsense: dict[str, Any]) -> None:
    sane = dict(qemu.answers)
    async with qemu.listening(), watching(tmp_path) as (_, heard):
        await until(heard.so(runstate="running"), "it is known")
        qemu.answers |= nonsense
        qemu.hang_up()
        before = qemu.asked.count("query-migrate")
        await until(lambda: qemu.asked.count("query-migrate") >= before + 2, "it goes on asking", timeout=120, every=1)
        qemu.answers |= sane | {"query-status": {"status": "paused"}}
        await until(heard.so(runstate="paused", monitor="connected"), "sense is understood again", timeout=60, every=1)


# -- around a switchover --------------------------------------------------------------------------------------------


async def test_a_guest_that_switches_over_is_left_alone_for_a_moment(qemu: ScriptedQemu, tmp_path: Path) -> None:
    qemu.answers["query-migrate"] = {"status": "active"}
    async with qemu.listening(), watching(tmp_path) as (_, heard):
        await until(heard.so(role="source"), "it is being sent")
        await asyncio.sleep(watch_module.QUERY_PAUSE_S * 1.5)  # between two questions: none is on its way
        asked, told, began = len(qemu.asked), len(heard.heard_at), time.monotonic()
        qemu.answers |= {"query-migrate": {"status": "completed"}, "query-status": {"status": "postmigrate"}}
        qemu.event("STOP")
        qemu.event("MIGRATION", status="device")
        qemu.event("MIGRATION", status="completed")
        await until(heard.so(runstate="postmigrate", role="source"), "the end is known")
        assert [name for name, *_ in heard.events] == ["STOP", "MIGRATION", "MIGRATION"], "in their order"
        assert min(qemu.asked_at[asked], heard.heard_at[told]) - began >= QUIET_S * 0.99
        assert heard.heard_at[told] - began < QUIET_S * 1.5


async def test_a_question_that_was_on_its_way_at_the_stop_is_the_last_one(qemu: ScriptedQemu, tmp_path: Path) -> None:
    qemu.answers["query-migrate"] = {"status": "active"}
    async with qemu.listening(), watching(tmp_path) as (_, heard):
        await until(heard.so(role="source"), "it is being sent")
        stopped: list[tuple[int, float, int]] = []

        def stop_first(command: str) -> None:
            if command == "query-status" and not stopped:
                stopped.append((len(qemu.asked), time.monotonic(), len(heard.heard_at)))
                qemu.event("STOP")

        qemu.before_answer = stop_first
        await until(lambda: bool(stopped), "it is asked again, and stops")
        ((asked, began, told),) = stopped
        await until(lambda: len(qemu.asked) > asked and len(heard.heard_at) > told, "it is asked and told of later")
        assert min(qemu.asked_at[asked], heard.heard_at[told]) - began >= QUIET_S * 0.99


@pytest.mark.parametrize("status", [{}, {"status": "completed"}, {"status": "cancelled"}], ids=str)
async def test_a_stop_that_is_no_switchover_is_told_at_once(
    qemu: ScriptedQemu, tmp_path: Path, status: dict[str, str]
) -> None:
    qemu.answers["query-migrate"] = status
    async with qemu.listening(), watching(tmp_path) as (_, heard):
        await until(heard.so(monitor="connected"), "it is known")
        told, began = len(heard.heard_at), time.monotonic()
        qemu.answers["query-status"] = {"status": "paused"}
        qemu.event("STOP")
        await until(heard.so(runstate="paused"), "and asked for")
        assert [name for name, *_ in heard.events] == ["STOP"]
        assert heard.heard_at[told] - began < QUIET_S / 2


async def test_what_is_held_back_is_told_when_the_guest_goes(qemu: ScriptedQemu, tmp_path: Path) -> None:
    qemu.answers["query-migrate"] = {"status": "active"}
    async with qemu.listening(), watching(tmp_path) as (watch, heard):
        await until(heard.so(role="source"), "it is being sent")
        qemu.event("STOP")
        qemu.event("SHUTDOWN", guest=False, reason="host-qmp-quit")
        await until(lambda: watch.shutdown_reason == "host-qmp-quit", "it ends, and that is known at once")
        assert heard.events == []
        watch.flush()
        assert [name for name, *_ in heard.events] == ["STOP", "SHUTDOWN"]


async def test_an_answer_that_is_older_than_an_event_is_not_published(qemu: ScriptedQemu, tmp_path: Path) -> None:
    """As when a destination is started between our two questions: it was paused, and runs."""
    qemu.answers |= {"query-status": {"status": "inmigrate"}, "query-migrate": {"status": "active"}}
    async with qemu.listening(), watching(tmp_path, "-incoming", "defer") as (_, heard):
        await until(heard.so(role="incoming", runstate="inmigrate"), "it waits")

        def resume_first(command: str) -> None:
            if command == "query-migrate" and qemu.answers["query-status"]["status"] == "paused":
                qemu.answers["query-status"] = {"status": "running"}
                qemu.event("RESUME")

        qemu.before_answer = resume_first
        qemu.answers |= {"query-status": {"status": "paused"}, "query-migrate": {"status": "completed"}}
        qemu.event("MIGRATION", status="completed")
        await until(heard.so(role="idle", runstate="running"), "it runs")
        assert [state.runstate for state in heard.states] == ["inmigrate", "running"], "`paused` was no longer true"


@pytest.mark.parametrize("learned", ["by event", "by asking"])
async def test_the_guardian_learns_of_pre_switchover(qemu: ScriptedQemu, tmp_path: Path, learned: str) -> None:
    (tmp_path / ".locks").mkdir()
    (tmp_path / ".locks" / "web1.beat").write_text("0.01\n")  # since the host has booted
    guardian = Guardian(guest_in(tmp_path / "web1"), Heard(), 0.2)  # type: ignore[arg-type]
    held = {"query-status": {"status": "finish-migrate"}, "query-migrate": {"status": "pre-switchover"}}
    qemu.answers |= {"query-migrate-capabilities": []}
    if learned == "by asking":
        qemu.answers |= held
    async with qemu.listening(), watching(tmp_path, guardian=guardian) as (watch, heard):
        await until(heard.so(monitor="connected"), "it is known")
        if learned == "by event":
            watch._ask_state = _no_answer  # type: ignore[method-assign]
            qemu.answers |= held
            qemu.event("STOP")
            qemu.event("MIGRATION", status="pre-switchover")
        await until(lambda: "migrate_cancel" in qemu.asked, "it acts")


async def _no_answer(*_: object) -> None:
    return None
