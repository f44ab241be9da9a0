"""The guardian: the one case in which it acts, all the others in which it does not, and what it does when it does."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from hostagent.discovery.guests import Guest
from hostagent.guardian import heartbeat
from hostagent.guardian.guardian import FIRST_RETRY_S, Guardian, Look, decide
from hostagent.guardian.heartbeat import Beat
from tests.support.fakes.fake_qemu import Fails, FakeQemu, Silence
from tests.support.fakes.monitors import connected
from tests.support.real.brokers import until

LIMIT_S = 3.0
GONE = Beat(age_s=3.5, watched_s=3.25)

RUN_STATES = [
    *("debug", "inmigrate", "internal-error", "io-error", "paused", "postmigrate", "prelaunch", "finish-migrate"),
    *("restore-vm", "running", "save-vm", "shutdown", "suspended", "watchdog", "guest-panicked", "colo", "unknown"),
    "run-state-of-qemu-12",
]
STATUSES = [
    *(None, "none", "setup", "cancelling", "cancelled", "active", "postcopy-active", "postcopy-paused"),
    *("postcopy-recover-setup", "postcopy-recover", "postcopy-device", "completed", "failed", "failing", "colo"),
    *("pre-switchover", "device", "wait-unplug", "status-of-qemu-12"),
]
BEATS = {
    "no controller of ours is at work": Beat(),
    "the controller's beat cannot be believed": Beat(age_s=None, fault="damaged"),
    "the controller lives": Beat(age_s=LIMIT_S, watched_s=LIMIT_S),
    "the beat is old, but was not watched for long enough": Beat(age_s=600.0, watched_s=LIMIT_S - 0.01),
    "the controller is gone": GONE,
}


def test_there_is_one_case_in_which_it_acts() -> None:
    looks = [Look(*words) for words in itertools.product(RUN_STATES, STATUSES, [False, True, None], BEATS.values())]
    acts = [look for look in looks if decide(look, LIMIT_S).act]
    assert len(looks) > 5_000
    assert acts == [Look("finish-migrate", "pre-switchover", False, GONE)]


@pytest.mark.parametrize(("reason", "beat"), BEATS.items())
def test_the_beat_decides_in_that_case(reason: str, beat: Beat) -> None:
    verdict = decide(Look("finish-migrate", "pre-switchover", False, beat), LIMIT_S)
    assert (verdict.act, verdict.reason) == (beat is GONE, reason)


def test_a_fault_outweighs_an_age() -> None:
    beat = Beat(age_s=600, watched_s=600, fault="damaged")
    assert not decide(Look("finish-migrate", "pre-switchover", False, beat), LIMIT_S).act


# -- the part that acts ---------------------------------------------------------------------------------------------

PAUSED = {"status": "finish-migrate", "running": False}
RUNNING = {"status": "running", "running": True}
HELD = {"status": "pre-switchover"}


class Told:
    """Stands for the publisher."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Mapping[str, Any]]] = []

    def own_event(self, kind: str, vm: str, data: Mapping[str, Any]) -> None:
        assert vm == "web1"
        self.events.append((kind, data))

    @property
    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.events]


class Stage:
    """A guest in ``pre-switchover``, guarded, on a virtual clock."""

    def __init__(self, directory: Path) -> None:
        self.qemu = FakeQemu()
        self.qemu.on("query-status", PAUSED)
        self.qemu.on("query-migrate", HELD)
        self.qemu.on("migrate_cancel", lambda _: self.cancels())
        self.told = Told()
        self.beat = directory / ".locks" / "web1.beat"
        self.beat.parent.mkdir()
        guest = Guest("web1", directory / "web1", 4711, 100, ("qemu", "-incoming", "defer"))
        self.guardian = Guardian(guest, self.told, LIMIT_S)  # type: ignore[arg-type]

    def cancels(self) -> Any:
        self.qemu.on("query-migrate", {"status": "cancelling"}, {"status": "cancelled"})
        self.qemu.on("query-status", RUNNING)
        return {}

    def beats(self) -> None:
        self.beat.write_text(f"{time.monotonic():.2f}\n")

    @contextlib.asynccontextmanager
    async def guarded(self) -> AsyncIterator[None]:
        async with self.qemu, connected(self.qemu) as monitor:
            task = asyncio.create_task(self.guardian.run(monitor))
            self.guardian.notice("pre-switchover")
            try:
                yield
            finally:
                ended = task.done()
                task.cancel()
                (error,) = await asyncio.gather(task, return_exceptions=True)
                assert not ended, error

    @property
    def cancelled(self) -> int:
        return len(self.qemu.asked("migrate_cancel"))

    @property
    def changed(self) -> list[str]:
        """What was sent that is no question."""
        return [asked.name for asked in self.qemu.log if not asked.name.startswith("query-")]


class Uptime:
    """``/proc/uptime`` on the virtual clock."""

    def read_bytes(self) -> bytes:
        return f"{time.monotonic():.2f} 17.00\n".encode()


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, virtual_clock: None) -> Stage:
    monkeypatch.setattr(heartbeat, "UPTIME", Uptime())
    return Stage(tmp_path)


async def looks(stage: Stage, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Wait until the guardian has looked at the beat so many times."""
    seen = 0
    read = heartbeat.read_beat

    def counted(path: Path) -> float | None:
        nonlocal seen
        seen += 1
        return read(path)

    monkeypatch.setattr(heartbeat, "read_beat", counted)
    await until(lambda: seen >= number, "it looks at the beat")


async def test_a_guest_whose_controller_is_gone_is_taken_back(stage: Stage) -> None:
    stage.beats()
    async with stage.guarded():
        await until(lambda: bool(stage.told.events), "it has acted")
        ((kind, data),) = stage.told.events
        assert kind == "guardian-cancelled"
        assert (data["runstate"], data["status"], data["limit_ms"]) == ("running", "cancelled", 3000)
        assert data["reason"] == "the controller is gone"
        assert 3000 < data["beat_age_ms"] <= data["paused_ms"] + 100 < 5_000
        names = [asked.name for asked in stage.qemu.log]
        assert names[: names.index("migrate_cancel")][-1] == "query-migrate", "asked again right before it acts"
        assert stage.changed == ["migrate_cancel"], "and it sends nothing else"


async def test_it_guards_the_next_migration_as_well(stage: Stage) -> None:
    stage.beats()
    async with stage.guarded():
        await until(lambda: bool(stage.told.events), "it has acted")
        stage.qemu.on("query-status", PAUSED)
        stage.qemu.on("query-migrate", HELD)
        stage.guardian.notice("pre-switchover")
        await until(lambda: stage.told.kinds == ["guardian-cancelled"] * 2, "it acts again")


async def test_a_living_controller_costs_the_monitor_nothing(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    async def live() -> None:
        while True:
            stage.beats()
            await asyncio.sleep(1.0)

    living = asyncio.create_task(live())
    async with stage.guarded():
        await looks(stage, monkeypatch, 25)  # more than twice the limit
        assert (stage.qemu.log, stage.told.events) == ([], [])
        living.cancel()
        await until(lambda: stage.cancelled == 1, "and now it is gone")
    await asyncio.gather(living, return_exceptions=True)


@pytest.mark.parametrize(
    "text", [None, "", "yesterday\n", "99999999999.0\n"], ids=["absent", "empty", "damaged", "ahead"]
)
async def test_without_a_beat_that_can_be_believed_nothing_is_done(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, text: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        stage.beat.write_text(text)
    async with stage.guarded():
        await looks(stage, monkeypatch, 25)
        assert (stage.qemu.log, stage.told.events) == ([], [])
    assert capsys.readouterr().out.count("guardian-stands-by") == 1, "said, and said once"


@pytest.mark.parametrize(
    "status", ["device", "completed", "postcopy-active", "active", "cancelled", "status-of-qemu-12"]
)
async def test_what_qemu_says_now_outweighs_what_was_heard(stage: Stage, status: str) -> None:
    stage.qemu.on("query-migrate", {"status": status})
    stage.beats()
    async with stage.guarded():
        await stage.qemu.until_asked("query-migrate")
        await until(lambda: not stage.guardian._held.is_set(), "it has understood")
        assert (stage.changed, stage.told.events) == ([], [])


async def test_a_status_that_changes_ends_the_watching(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.beats()
    async with stage.guarded():
        await looks(stage, monkeypatch, 2)
        stage.guardian.notice("device")
        await asyncio.sleep(2 * LIMIT_S)  # twice the limit: nothing is to happen, so there is nothing to wait for
        assert stage.qemu.log == []


async def test_a_controller_that_comes_back_while_qemu_answers_keeps_its_guest(stage: Stage) -> None:
    def comes_back(_: Any) -> Any:
        stage.beats()
        return HELD

    stage.qemu.on("query-migrate", comes_back, HELD)
    stage.beats()
    async with stage.guarded():
        await stage.qemu.until_asked("query-migrate")
        await asyncio.sleep(LIMIT_S / 2)  # half the limit: a cancel would follow the answer at once
        assert stage.changed == []
        await until(lambda: stage.cancelled == 1, "but when it is gone again, it is gone")


@pytest.mark.parametrize("answer", [[{"capability": "postcopy-ram", "state": True}], {}, Fails("no")], ids=str)
async def test_a_migration_that_may_turn_into_postcopy_is_left_alone(
    stage: Stage, answer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.qemu.on("query-migrate-capabilities", answer)
    stage.beats()
    async with stage.guarded():
        await stage.qemu.until_asked("query-migrate-capabilities", 3)
        assert stage.changed == []
    assert "guardian-" in capsys.readouterr().out


async def test_a_refusal_is_told_and_tried_again(stage: Stage) -> None:
    tried: list[float] = []

    def refuses_twice(_: Any) -> Any:
        tried.append(time.monotonic())
        return stage.cancels() if len(tried) == 3 else Fails("not now")

    stage.qemu.on("migrate_cancel", refuses_twice)
    stage.beats()
    async with stage.guarded():
        await until(lambda: "guardian-cancelled" in stage.told.kinds, "it succeeds in the end", timeout=60)
        assert stage.told.kinds == ["guardian-failed", "guardian-failed", "guardian-cancelled"]
        assert "not now" in stage.told.events[0][1]["reason"]
        names = [asked.name for asked in stage.qemu.log]
        assert names.count("migrate_cancel") == len(tried) == 3
        first_s = FIRST_RETRY_S
        assert tried[1] - tried[0] >= first_s * 0.9
        assert tried[2] - tried[1] >= first_s * 1.8, "and after a longer time"
        assert all(names[at - 1] == "query-migrate" for at, name in enumerate(names) if name == "migrate_cancel")


async def test_a_cancel_without_an_answer_is_unknown_and_asked_about(stage: Stage) -> None:
    def silently(_: Any) -> Any:
        stage.cancels()
        return Silence()

    stage.qemu.on("migrate_cancel", silently)
    stage.beats()
    async with stage.guarded():
        await until(lambda: not stage.guardian._held.is_set(), "it has found out", timeout=60)
        assert (stage.cancelled, stage.told.kinds) == (1, ["guardian-failed"])


async def test_a_cancel_that_does_not_take_is_told_and_tried_again(stage: Stage) -> None:
    stage.qemu.on("migrate_cancel", {}, lambda _: stage.cancels())
    stage.beats()
    async with stage.guarded():
        await until(lambda: "guardian-cancelled" in stage.told.kinds, "it succeeds in the end", timeout=60)
        assert stage.told.events[0][1]["reason"] == "the migration is still pre-switchover"
        assert stage.cancelled == 2


async def test_a_guest_that_does_not_run_afterwards_is_told_so_and_not_started(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    def cancels(_: Any) -> Any:
        stage.cancels()
        stage.qemu.on("query-status", {"status": "paused", "running": False})
        return {}

    stage.qemu.on("migrate_cancel", cancels)
    stage.beats()
    async with stage.guarded():
        await until(lambda: bool(stage.told.events), "it tells")
        assert stage.told.events[0][1]["runstate"] == "paused"
        assert stage.changed == ["migrate_cancel"]
    assert "guardian-guest-not-running" in capsys.readouterr().out


async def test_a_cancel_that_comes_too_late_is_told_as_that(stage: Stage) -> None:
    def completed(_: Any) -> Any:
        stage.qemu.on("query-migrate", {"status": "completed"})
        stage.qemu.on("query-status", {"status": "postmigrate", "running": False})
        return {}

    stage.qemu.on("migrate_cancel", completed)
    stage.beats()
    async with stage.guarded():
        await until(lambda: bool(stage.told.events), "it tells")
        kind, data = stage.told.events[0]
        assert (kind, data["status"]) == ("guardian-failed", "completed")
        await until(lambda: not stage.guardian._held.is_set(), "and lets go")
        assert stage.changed == ["migrate_cancel"]
