"""From `migrate` to `completed`, against two fake QEMUs that tell it in the order of 7.2 and of 10.0, or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from qmp_migrate.errors import JournalError, MigrationFailed, MonitorLost, NotConverging, QmpCommandFailed
from qmp_migrate.migration.precopy.runner import CancelRequested
from tests.support.data.recorded_replies import ACTIVE_7_2, COMPLETED_10_0
from tests.support.fakes.fake_qemu import Fails, FakeQemu, Silence
from tests.support.fakes.precopy_harness import Rig

MIB = 1 << 20


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with FakeQemu() as source, FakeQemu() as destination:
        source.on("migrate", {})
        source.on("migrate-continue", {})
        destination.on("query-status", {"status": "inmigrate", "running": False})
        async with AsyncExitStack() as stack:
            there = Rig(source, destination, stack=stack)
            yield there
            there.task.cancel()
            await asyncio.gather(there.task, return_exceptions=True)
        await there.copying.source.detach()
        await there.copying.destination.detach()


def active(*, passes: int = 1, remaining: int = 0, transferred: int = MIB, mbps: float = 800.0) -> dict[str, Any]:
    ram = ACTIVE_7_2["ram"] | {"dirty-sync-count": passes, "remaining": remaining, "transferred": transferred}
    return ACTIVE_7_2 | {"ram": ram | {"mbps": mbps}}


# -- how it goes ------------------------------------------------------------------------------------------------------

ORDERS = {
    "7.2": (["setup", "PASS 1", "active", "PASS 2", "STOP", "PASS 3"], ["setup", "active"]),
    "7.2, with a stop": (["setup", "active", "PASS 2", "STOP", "pre-switchover", "device"], ["active"]),
    "10.0": (["setup", "PASS 1", "active", "STOP", "device", "PASS 2"], ["setup", "active"]),
    "of a later one": (["setup", "wait-unplug", "teleporting", "STOP", "beaming"], ["setup", "beaming"]),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("first", ["source", "destination"])
async def test_it_ends_when_both_have_completed(rig: Rig, order: str, first: str) -> None:
    copying = await rig.start()
    assert rig.source.asked("migrate") == [{"uri": "tcp:10.0.0.2:49152"}]
    of_source, of_destination = ORDERS[order]
    rig.says(rig.destination, *of_destination)
    rig.says(rig.source, *of_source)
    ends = [rig.source, rig.destination] if first == "source" else [rig.destination, rig.source]
    rig.says(ends[0], "completed")
    await rig.read()
    assert not rig.ended
    rig.says(ends[1], "completed")
    await rig.end()
    line = copying.timeline
    assert line.stopped is not None
    assert line.completed is not None
    assert line.loaded is not None
    assert line.started < line.stopped <= line.completed
    assert rig.told == (["stopped", "held"] if "pre-switchover" in of_source else ["stopped"])
    assert len(rig.source.asked("migrate-continue")) == of_source.count("pre-switchover")


async def test_the_blackout_is_from_stop_there_to_resume_here(rig: Rig) -> None:
    line = (await rig.start()).timeline
    assert line.blackout_ms == 0
    rig.says(rig.source, "STOP", "completed")
    rig.says(rig.destination, "completed")
    await rig.end()
    assert line.blackout_ms == 0  # it is not over before RESUME
    rig.says(rig.destination, "RESUME")
    await rig.read()
    assert line.resumed is not None
    assert line.stopped is not None
    assert line.blackout_ms == pytest.approx((line.resumed - line.stopped) * 1000, abs=0.1)


async def test_without_any_event_the_poll_sees_the_end(rig: Rig) -> None:
    copying = await rig.start()
    rig.source.on("query-migrate", COMPLETED_10_0)
    rig.destination.on("query-migrate", {"status": "completed"})
    await rig.end()
    assert copying.last.downtime_ms == 50
    assert copying.timeline.blackout_ms == 0


async def test_a_source_that_is_completed_is_not_enough(rig: Rig) -> None:
    await rig.start()
    rig.destination.on("query-migrate", {"status": "active"})
    await rig.numbers(COMPLETED_10_0)
    await rig.destination.until_asked("query-migrate")
    await rig.read()
    assert not rig.ended
    rig.says(rig.destination, "completed")
    await rig.end()


async def test_a_paused_guest_has_no_blackout(rig: Rig) -> None:
    copying = await rig.start()
    rig.says(rig.source, "setup", "active", "completed")
    rig.says(rig.destination, "completed")
    await rig.end()
    assert (copying.timeline.stopped, copying.timeline.blackout_ms) == (None, 0)


async def test_nothing_here_waits_for_a_main_loop_that_is_busy_switching(rig: Rig) -> None:
    await rig.start()
    await rig.numbers(active(remaining=600 * MIB))
    polls = len(rig.source.asked("query-migrate"))
    rig.source.main_loop.clear()
    rig.says(rig.source, "PASS 2", "STOP")
    await rig.source.until_asked("query-migrate", polls + 1)  # and it gets no answer
    rig.says(rig.source, "completed")
    rig.says(rig.destination, "completed")
    await rig.end()


async def test_not_even_for_a_parameter(rig: Rig) -> None:
    def freeze(_arguments: dict[str, Any]) -> Silence:
        rig.source.main_loop.clear()
        return Silence()

    await rig.start()
    rig.source.on("migrate-set-parameters", freeze)
    await rig.numbers(active(passes=2, remaining=5 * MIB))
    rig.source.on("query-migrate", active(passes=3, remaining=5 * MIB))
    rig.says(rig.source, "PASS 3")
    await rig.source.until_asked("migrate-set-parameters")
    rig.says(rig.source, "STOP", "completed")
    rig.says(rig.destination, "completed")
    await rig.end(1)


# -- numbers ----------------------------------------------------------------------------------------------------------


async def test_numbers_are_passed_on_and_say_when_the_end_is_near(rig: Rig) -> None:
    copying = await rig.start()
    await rig.numbers({"status": "setup"})
    await rig.numbers(active(remaining=600 * MIB, transferred=0))
    assert rig.progress
    assert "near end" not in rig.told
    assert not copying.connected.is_set()
    await rig.numbers(active(remaining=590 * MIB))
    assert copying.connected.is_set()  # bytes have travelled: the handshake is over
    await rig.numbers(active(remaining=20 * MIB))
    assert "near end" in rig.told
    assert [report.seq for report in rig.progress] == list(range(1, len(rig.progress) + 1))
    assert rig.progress[-1].remaining_bytes == 20 * MIB
    assert rig.progress[-1].id == copying.request.id
    assert copying.last.ram is not None
    assert copying.last.ram.remaining == 20 * MIB


async def test_a_status_of_a_later_qemu_means_that_it_goes_on(rig: Rig) -> None:
    await rig.start()
    await rig.numbers(active() | {"status": "teleporting"})
    assert rig.progress[-1].status == "teleporting"
    rig.says(rig.source, "completed")
    rig.says(rig.destination, "completed")
    await rig.end()


async def test_once_the_guest_is_stopped_nothing_is_reported_any_more(rig: Rig) -> None:
    await rig.start()
    await rig.numbers(active(remaining=600 * MIB))
    rig.says(rig.source, "STOP")
    await rig.read()
    before = len(rig.progress)
    await rig.numbers(active(remaining=1))
    assert len(rig.progress) == before


async def test_a_guest_that_was_stopped_and_runs_again_goes_on_as_before(rig: Rig) -> None:
    copying = await rig.start()
    rig.says(rig.source, "STOP", "RESUME")
    await rig.numbers(active(remaining=600 * MIB))
    assert copying.timeline.stopped is None
    assert rig.progress


async def test_resets_are_counted(rig: Rig) -> None:
    copying = await rig.start()
    rig.says(rig.source, "RESET", "RESET", "completed")
    rig.says(rig.destination, "completed")
    await rig.end()
    assert copying.timeline.resets == 2


# -- convergence ------------------------------------------------------------------------------------------------------


async def test_the_limit_is_raised_when_a_pass_has_shown_the_need_and_it_is_told(rig: Rig) -> None:
    copying = await rig.start(downtime_limit_ms=300)
    for number in (2, 3):
        await rig.numbers(active(passes=number, remaining=5 * MIB))
    assert rig.source.asked("migrate-set-parameters") == [{"downtime-limit": 66}]
    (step,) = copying.steps
    assert step in rig.told
    assert "pass 3 begins with 5.0 MiB" in step


async def test_a_guest_that_does_not_converge_is_given_up_with_the_reason(rig: Rig) -> None:
    copying = await rig.start(downtime_limit_ms=30)
    for number in range(2, 7):
        await rig.numbers(active(passes=number, remaining=64 * MIB))
    with pytest.raises(NotConverging) as caught:
        await rig.end()
    assert caught.value.exit_code == 6
    assert caught.value.host == "a"
    assert "begins with 64.0 MiB" in caught.value.message
    assert "--downtime-limit" in (caught.value.hint or "")
    assert copying.steps
    assert not rig.source.asked("migrate-set-parameters")  # it had all that is allowed from the start


async def test_where_there_must_be_no_second_pass_a_second_one_ends_it(rig: Rig) -> None:
    await rig.start(one_pass=True)
    rig.says(rig.source, "setup", "PASS 1", "active", "PASS 2", "PASS 3")
    with pytest.raises(NotConverging, match="would lose what it writes"):
        await rig.end()


async def test_and_the_two_syncs_of_one_pass_do_not(rig: Rig) -> None:
    await rig.start(one_pass=True)
    rig.says(rig.source, "setup", "PASS 1", "active", "PASS 2", "STOP", "PASS 3", "completed")
    rig.says(rig.destination, "completed")
    await rig.end()
    assert not rig.source.asked("migrate-set-parameters")


# -- a guest that is stopped by us ---------------------------------------------------------------------------------------


async def test_a_guest_is_stopped_only_after_that_is_written_down(rig: Rig) -> None:
    copying = await rig.start()
    rig.source.on("stop", lambda _: rig.told.append("stop") or {})
    await copying.stop_guest("too busy")
    assert rig.told == ["will stop: too busy", "stop", "too busy"]
    assert copying.steps == ["too busy"]
    await copying.stop_guest("still too busy")
    assert len(rig.source.asked("stop")) == 1


async def test_a_stopped_guest_stands_still_until_all_is_there(rig: Rig) -> None:
    copying = await rig.start()
    rig.source.on("stop", {})
    await rig.numbers(active(remaining=600 * MIB) | {"expected-downtime": 20})
    assert rig.progress[-1].expected_blackout_ms == 20
    await copying.stop_guest("too busy")
    rig.says(rig.source, "STOP")
    await rig.read()
    await rig.numbers(active(remaining=500 * MIB) | {"expected-downtime": 20})
    last = rig.progress[-1]
    assert last.eta_ms is not None
    assert last.eta_ms > 1000
    assert last.expected_blackout_ms is not None
    assert (
        last.expected_blackout_ms >= last.eta_ms
    )  # and what it has stood still already, not what QEMU says of its limit


async def test_it_is_watched_and_reported_as_before_until_qemu_switches(rig: Rig) -> None:
    copying = await rig.start()
    rig.source.on("stop", {})
    await copying.stop_guest("too busy")
    rig.says(rig.source, "STOP")
    await rig.read()
    assert copying.timeline.stopped is not None
    assert copying.timeline.switching is None
    before = len(rig.progress)
    for number in range(2, 8):  # a guest that dirtied so much would be given up
        await rig.numbers(active(passes=number, remaining=64 * MIB))
    assert len(rig.progress) >= before + 6
    assert not rig.source.asked("migrate-set-parameters")
    rig.says(rig.source, "device")
    await rig.read()
    assert copying.timeline.switching is not None
    assert rig.told[-1] == "stopped"
    rig.says(rig.source, "completed")
    rig.says(rig.destination, "completed", "RESUME")
    await rig.end()
    await rig.read()
    assert copying.timeline.blackout_ms > 0


async def test_one_that_qemu_has_stopped_is_left_alone(rig: Rig) -> None:
    copying = await rig.start()
    rig.says(rig.source, "STOP")
    await rig.read()
    await copying.stop_guest("too late")
    assert not rig.source.asked("stop")
    assert "too late" not in rig.told


async def test_where_it_cannot_be_written_down_it_is_not_stopped(rig: Rig) -> None:
    copying = await rig.start()

    async def full(_reason: str) -> None:
        raise JournalError("disk is full")

    copying.on_stop = full
    with pytest.raises(JournalError):
        await copying.stop_guest("too busy")
    assert not rig.source.asked("stop")
    assert not copying.suspended


async def test_in_a_second_pass_that_loses_writes_it_is_too_late_for_it(rig: Rig) -> None:
    copying = await rig.start(one_pass=True)
    rig.says(rig.source, "PASS 1", "PASS 2")
    await rig.read()
    with pytest.raises(NotConverging):
        await copying.stop_guest("too busy")


async def test_somebody_lets_it_run_again(rig: Rig) -> None:
    copying = await rig.start()
    rig.source.on("stop", {})
    await copying.stop_guest("too busy")
    rig.says(rig.source, "STOP", "RESUME")
    await rig.read()
    assert copying.timeline.stopped is None
    assert not copying.suspended


# -- what goes wrong --------------------------------------------------------------------------------------------------


async def test_a_migrate_that_is_refused(rig: Rig) -> None:
    rig.source.on("migrate", Fails("State blocked by non-migratable device"))
    await rig.start()
    with pytest.raises(QmpCommandFailed, match="non-migratable"):
        await rig.end()


@pytest.mark.parametrize("who", ["source", "destination"])
async def test_a_monitor_that_is_lost_leaves_the_outcome_unknown(rig: Rig, who: str) -> None:
    await rig.start()
    qemu, host = (rig.source, "a") if who == "source" else (rig.destination, "b")
    qemu.hang_up()
    with pytest.raises(MonitorLost, match=f"the {who}'s monitor") as caught:
        await rig.end()
    assert caught.value.host == host


async def test_also_when_the_other_side_has_completed(rig: Rig) -> None:
    await rig.start()
    rig.says(rig.destination, "completed")
    await rig.read()
    rig.source.hang_up()
    with pytest.raises(MonitorLost):
        await rig.end()


@pytest.mark.parametrize("status", ["failed", "cancelled"])
async def test_qemu_gives_up_and_says_so_by_event(rig: Rig, status: str) -> None:
    await rig.start()
    rig.says(rig.source, "setup", status)
    with pytest.raises(MigrationFailed, match=status) as caught:
        await rig.end()
    assert caught.value.safe_at_source
    assert caught.value.host == "a"


async def test_or_only_when_asked_and_then_with_its_reason(rig: Rig) -> None:
    await rig.start()
    rig.source.on("query-migrate", {"status": "failed", "error-desc": "Failed to connect to '10.0.0.2:49152'"})
    with pytest.raises(MigrationFailed, match="Failed to connect to"):
        await rig.end()


async def test_and_by_event_with_its_reason_as_well(rig: Rig) -> None:
    await rig.start()
    await rig.numbers(active(remaining=600 * MIB))
    rig.source.on("query-migrate", active() | {"status": "failed", "error-desc": "Sibling indicated error 1"})
    rig.says(rig.source, "failed")
    with pytest.raises(MigrationFailed, match="Sibling indicated error 1"):
        await rig.end()


async def test_a_qemu_that_cannot_be_asked_any_more(rig: Rig) -> None:
    await rig.start()
    rig.source.on("query-migrate", Fails("no"))
    with pytest.raises(QmpCommandFailed):
        await rig.end()


@pytest.mark.parametrize("before", [True, False])
async def test_a_cancel_is_obeyed_at_once(rig: Rig, before: bool) -> None:
    if before:
        rig.cancel.set()
    await rig.start()
    rig.cancel.set()
    with pytest.raises(CancelRequested):
        await rig.end()


@pytest.mark.parametrize(
    ("data", "code", "words"),
    [
        ({"guest": True, "reason": "guest-shutdown"}, "guest_shutdown", "powered itself off"),
        ({"guest": False, "reason": "host-signal"}, "source_ended", "host-signal"),
    ],
)
async def test_a_guest_that_ends_ends_its_migration(rig: Rig, data: dict[str, Any], code: str, words: str) -> None:
    await rig.start()
    rig.source.emit("SHUTDOWN", data)
    with pytest.raises(MigrationFailed, match=words) as caught:
        await rig.end()
    assert (caught.value.code, caught.value.safe_at_source, caught.value.exit_code) == (code, False, 1)


async def test_a_source_that_ends_once_it_is_completed_harms_nobody(rig: Rig) -> None:
    await rig.start()
    rig.says(rig.source, "STOP", "completed")
    rig.source.emit("SHUTDOWN", {"guest": False, "reason": "host-qmp-quit"})
    rig.says(rig.destination, "completed")
    await rig.end()


async def test_a_guest_that_panics_is_left_as_it_is(rig: Rig) -> None:
    await rig.start()
    rig.source.emit("GUEST_PANICKED", {"action": "pause"})
    with pytest.raises(MigrationFailed, match="panicked") as caught:
        await rig.end()
    assert caught.value.code == "guest_panicked"


@pytest.mark.parametrize("event", ["RESUME", "SHUTDOWN"])
async def test_a_destination_that_does_something_by_itself_is_refused(rig: Rig, event: str) -> None:
    """It was started with -S: nothing but our `cont` may make it run, and that has not been sent."""
    await rig.start()
    rig.says(rig.destination, "completed", event)
    with pytest.raises(MigrationFailed, match=f"the destination reports {event}") as caught:
        await rig.end()
    assert not caught.value.safe_at_source
    assert (caught.value.code, caught.value.host) == ("unexpected_event", "b")


async def test_nothing_goes_on_afterwards(rig: Rig) -> None:
    await rig.start()
    rig.source.hang_up()
    with pytest.raises(MonitorLost):
        await rig.end()
    await rig.stack.aclose()
    names = {task.get_coro().__qualname__ for task in asyncio.all_tasks()}
    assert not {name for name in names if name.startswith("Copying")}
