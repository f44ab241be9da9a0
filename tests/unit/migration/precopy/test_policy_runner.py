"""A policy at work on a QEMU, and a wish of another process on the way: what QEMU is told, and what people are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qmp_migrate.errors import InvalidQuantity, MigrationUnknown, MonitorError, NotConverging, UsageError
from qmp_migrate.migration.convergence.policies import ARMED_THROTTLE, QEMU_THROTTLE
from qmp_migrate.migration.journal.store import Journal
from qmp_migrate.migration.lifecycle import tuning
from qmp_migrate.migration.lifecycle.tuning import Tune, Tuner, in_words
from qmp_migrate.migration.model.phases import Phase
from qmp_migrate.migration.model.policy_terms import parameters
from qmp_migrate.migration.model.request import MigrationRequest
from qmp_migrate.migration.precopy import policy_runner
from qmp_migrate.migration.precopy.runner import Copying
from qmp_migrate.qemu import dirty_rate
from tests.support.data.recorded_replies import ACTIVE_7_2
from tests.support.fakes.fake_qemu import Fails, FakeQemu
from tests.support.fakes.monitors import connected
from tests.support.fakes.precopy_harness import Rig

MIB = 1 << 20


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with FakeQemu() as source, FakeQemu() as destination:
        source.on("migrate", {})
        source.on("stop", {})
        source.on("migrate-set-parameters", {})
        destination.on("query-status", {"status": "inmigrate", "running": False})
        async with AsyncExitStack() as stack:
            there = Rig(source, destination, stack=stack)
            yield there
            there.task.cancel()
            await asyncio.gather(there.task, return_exceptions=True)
        await there.copying.source.detach()
        await there.copying.destination.detach()


def active(passes: int, remaining: int, **more: Any) -> dict[str, Any]:
    ram = ACTIVE_7_2["ram"] | {"dirty-sync-count": passes, "remaining": remaining, "transferred": MIB, "mbps": 800.0}
    return ACTIVE_7_2 | {"ram": ram} | more


# -- what the source is wired with ------------------------------------------------------------------------------------


def wired(**wanted: Any) -> dict[str, int]:
    return parameters(MigrationRequest("web1", "b", **wanted))


def test_ours_start_low_and_hold_the_throttle_ready() -> None:
    assert wired() == {"max-bandwidth": 0, "downtime-limit": 20, **ARMED_THROTTLE}
    assert wired(policy="gentle", bandwidth_bytes_per_s=MIB) == {"max-bandwidth": MIB, "downtime-limit": 20}
    assert wired(policy="gentle", max_throttle_percent=30) == {
        "max-bandwidth": 0,
        "downtime-limit": 20,
        **ARMED_THROTTLE,
    }
    assert wired(max_throttle_percent=0) == {"max-bandwidth": 0, "downtime-limit": 20}
    assert wired(downtime_limit_ms=1)["downtime-limit"] == 1


def test_others_start_as_they_do_whatever_the_user_allows() -> None:
    assert wired(policy="proxmox", downtime_limit_ms=10) == {"max-bandwidth": 0, "downtime-limit": 100, **QEMU_THROTTLE}
    assert wired(policy="ganeti") == {"max-bandwidth": 32 * MIB, "downtime-limit": 30}
    assert wired(policy="ganeti", bandwidth_bytes_per_s=MIB)["max-bandwidth"] == MIB


def test_a_policy_that_is_not_there_is_named_with_the_nearest_one() -> None:
    with pytest.raises(UsageError, match="policy gentel does not exist") as caught:
        MigrationRequest("web1", "b", policy="gentel")
    assert "did you mean gentle?" in (caught.value.hint or "")


@pytest.mark.parametrize("percent", [-1, 100])
def test_a_throttle_that_qemu_does_not_know(percent: int) -> None:
    with pytest.raises(InvalidQuantity, match="throttle"):
        MigrationRequest("web1", "b", max_throttle_percent=percent)


# -- steps ------------------------------------------------------------------------------------------------------------


async def test_a_guest_is_slowed_down_and_that_is_told(rig: Rig) -> None:
    copying = await rig.start()
    copying.steering.can_throttle = True
    await rig.numbers(active(1, 500 * MIB))
    copying.timeline.started -= 2.0  # so long the first pass took
    await rig.numbers(active(2, 200 * MIB))
    await rig.source.until_asked("migrate-set-parameters")
    await rig.read()
    assert rig.source.asked("migrate-set-parameters") == [
        {
            "cpu-throttle-initial": 50,
            "cpu-throttle-increment": 99,
            "max-cpu-throttle": 50,
            "throttle-trigger-threshold": 1,
        }
    ]
    assert "slowed down by 50 %" in copying.steps[0]
    assert copying.steps[0] in rig.told


async def test_finish_stops_a_guest_that_cannot_be_slowed_down_enough(rig: Rig) -> None:
    copying = await rig.start(policy="finish")
    for number in (1, 2, 3, 4):
        await rig.numbers(active(number, 200 * MIB))
    assert rig.source.asked("stop")
    assert copying.suspended
    assert any(word.startswith("will stop:") for word in rig.told)  # written down before
    assert "the guest is stopped" in copying.steps[0]
    assert len(copying.steps) == 1


async def test_a_step_that_qemu_refuses_is_told_and_the_copying_goes_on(rig: Rig) -> None:
    copying = await rig.start()
    rig.source.on("migrate-set-parameters", Fails("no"))
    for number in (1, 2, 3):
        await rig.numbers(active(number, 5 * MIB))
    assert "not done" in copying.steps[0]
    assert copying.steering.limit_ms == 20
    rig.says(rig.source, "completed")
    rig.says(rig.destination, "completed")
    await rig.end()


async def test_who_gives_up_says_what_would_have_worked(rig: Rig) -> None:
    await rig.start(policy="gentle")
    for number in (1, 2, 3, 4):
        await rig.numbers(active(number, 200 * MIB))
    with pytest.raises(NotConverging) as caught:
        await rig.end()
    assert "--downtime-limit 2622ms" in (caught.value.hint or "")
    assert "--policy finish" in (caught.value.hint or "")


async def test_nothing_is_decided_of_a_guest_that_stands_still(rig: Rig) -> None:
    copying = await rig.start(policy="gentle")
    await copying.stop_guest("a test")
    for number in (1, 2, 3, 4):
        await rig.numbers(active(number, 200 * MIB))
    assert not rig.ended


async def test_a_rival_sees_a_sample_at_each_of_its_own_looks(rig: Rig) -> None:
    copying = await rig.start(policy="nova")
    for number in (1, 2, 3):
        await rig.numbers(active(number, 200 * MIB))
    assert len(copying.steering._samples) == 1  # half a second has not passed
    assert copying.steering.poll_s == 0.5


# -- tune -------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    async with await Journal.open(f"sqlite:///{tmp_path}/journal.sqlite") as opened:
        await opened.begin(id="m1", vm="web1", source="a", destination="b", mode="live", request={"policy": "default"})
        yield opened


async def driven(rig: Rig, journal: Journal, *, phase: Phase = Phase.COPYING, **wanted: Any) -> Any:
    """A migration that is being copied by this process."""
    copying = await rig.start(**wanted)
    copying.steering.can_throttle = True
    now = {"downtime-limit": 20, "max-bandwidth": 0, "max-cpu-throttle": 1}
    rig.source.on("migrate-set-parameters", lambda arguments: now.update(arguments) or {})
    rig.source.on("query-migrate-parameters", lambda _: now)
    await journal.enter("m1", phase)
    return SimpleNamespace(
        copying=copying,
        source=copying.source,
        request=MigrationRequest("web1", "b", "a", id="m1", **wanted),
        chronicle=SimpleNamespace(journal=journal, phase=phase),
        wires=SimpleNamespace(throttle=True),
    )


async def retuned(course: Any, journal: Journal, **changes: Any) -> dict[str, Any]:
    watching = asyncio.create_task(Tuner(course).watch())
    try:
        return await tuning.retune(journal, "m1", Tune(**changes))
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def test_another_process_retunes_it_and_is_told_what_is_in_force(rig: Rig, journal: Journal) -> None:
    course = await driven(rig, journal)
    in_force = await retuned(
        course, journal, bandwidth_bytes_per_s=50 * MIB, downtime_limit_ms=900, max_throttle_percent=40, policy="finish"
    )
    assert in_force == {
        "downtime-limit": 20,  # more only when a pass shows the need
        "max-bandwidth": 50 * MIB,
        "max-cpu-throttle": 40,
        "allowed-downtime-limit": 900,
        "policy": "finish",
    }
    allowed = course.copying.steering.allowed
    assert (allowed.downtime_ms, allowed.throttle_percent, allowed.stop) == (900, 40, True)
    assert course.copying.steering.throttle_percent == 40
    assert course.copying.steps[0] == (
        "retuned: bandwidth 50.0 MiB/s, downtime limit 900 ms, throttle at most 40 %, policy finish"
    )
    assert in_words(in_force).startswith(
        "downtime-limit 20 ms, max-bandwidth 50.0 MiB/s, max-cpu-throttle 40 %, allowed-"
    )
    # Whoever drives it on goes by that, too.
    assert (await journal.get("m1")).request["downtime_limit_ms"] == 900


async def test_a_limit_that_is_less_is_in_force_at_once(rig: Rig, journal: Journal) -> None:
    course = await driven(rig, journal)
    course.copying.steering.limit_ms = 200
    assert (await retuned(course, journal, downtime_limit_ms=100))["downtime-limit"] == 100


@pytest.mark.parametrize("phase", [Phase.WIRED, Phase.POSTCOPY, Phase.ROLLING_BACK])
async def test_only_while_memory_is_copied(rig: Rig, journal: Journal, phase: Phase) -> None:
    course = await driven(rig, journal, phase=phase)
    with pytest.raises(UsageError, match=f"not retuned: nothing can be retuned in phase {phase}"):
        await retuned(course, journal, downtime_limit_ms=100)
    assert not rig.source.asked("migrate-set-parameters")


async def test_not_once_the_guest_is_handed_over(rig: Rig, journal: Journal) -> None:
    course = await driven(rig, journal)
    course.copying.timeline.switching = 1.0
    await tuning.ask(journal, "m1", Tune(downtime_limit_ms=100))
    with pytest.raises(UsageError, match="being handed over"):
        await tuning.apply(course, Tune(downtime_limit_ms=100))
    await journal.enter("m1", Phase.COMMITTED)
    with pytest.raises(UsageError, match="is over: committed"):
        await tuning.retune(journal, "m1", Tune(downtime_limit_ms=100))


async def test_a_guest_that_cannot_be_slowed_down_is_not(rig: Rig, journal: Journal) -> None:
    course = await driven(rig, journal, policy="gentle")
    course.copying.steering.can_throttle = False
    with pytest.raises(UsageError, match="begun with the policy gentle"):
        await retuned(course, journal, max_throttle_percent=40)


async def test_what_qemu_does_not_take_is_not_said_to_be_in_force(rig: Rig, journal: Journal) -> None:
    course = await driven(rig, journal)
    rig.source.on("migrate-set-parameters", {})
    with pytest.raises(UsageError, match="did not take it: max-bandwidth is 0, not 1048576"):
        await retuned(course, journal, bandwidth_bytes_per_s=MIB)
    assert course.copying.steering.request.bandwidth_bytes_per_s == 0


async def test_what_no_request_could_ask_for_never_gets_there(rig: Rig, journal: Journal) -> None:
    await driven(rig, journal)
    for changes, error in (
        ({"downtime_limit_ms": 0}, InvalidQuantity),
        ({"policy": "x"}, UsageError),
        ({}, UsageError),
    ):
        with pytest.raises(error):
            await tuning.retune(journal, "m1", Tune(**changes))
    with pytest.raises(MigrationUnknown):
        await tuning.retune(journal, "m7", Tune(policy="finish"))
    assert [entry.kind for entry in await journal.entries("m1")] == ["phase"]


async def test_a_wish_is_obeyed_once_also_by_the_next_controller(rig: Rig, journal: Journal) -> None:
    course = await driven(rig, journal)
    await retuned(course, journal, bandwidth_bytes_per_s=MIB)
    token = await tuning.ask(journal, "m1", Tune(bandwidth_bytes_per_s=2 * MIB))
    await Tuner(course).look()
    assert [arguments["max-bandwidth"] for arguments in rig.source.asked("migrate-set-parameters")] == [MIB, 2 * MIB]
    assert (await tuning.answer(journal, "m1", token) or {})["in_force"]["max-bandwidth"] == 2 * MIB


async def test_a_wish_of_a_newer_program_is_refused_as_such(rig: Rig, journal: Journal) -> None:
    course = await driven(rig, journal)
    await tuning._write(journal, "m1", tuning.WISH, {"token": "t", "colour": "red"})
    await Tuner(course).look()
    assert "does not know colour" in (await tuning.answer(journal, "m1", "t") or {})["refused"]


# -- only the vCPUs that write ----------------------------------------------------------------------------------------


def two_vcpus(qemu: FakeQemu, *, first: int, second: int = 0) -> None:
    rates = [{"id": 1, "dirty-rate": second}, {"id": 0, "dirty-rate": first}]
    qemu.on("calc-dirty-rate", {})
    qemu.on("query-dirty-rate", {"status": "measured", "mode": "dirty-ring", "vcpu-dirty-rate": rates, "dirty-rate": 0})
    qemu.on("set-vcpu-dirty-limit", {})
    qemu.on("cancel-vcpu-dirty-limit", {})


async def ringed(rig: Rig, **wanted: Any) -> Copying:
    """A guest with dirty rings that dirties more than is carried, when its vCPUs have been measured."""
    copying = await rig.start(**wanted)
    copying.steering.can_throttle, copying.steering.dirty_ring = True, 4096
    await rig.numbers(active(1, 500 * MIB))
    await rig.source.until_asked("query-dirty-rate")
    await rig.read()
    copying.timeline.started -= 2.0  # so long the first pass took
    return copying


async def test_a_guest_with_a_dirty_ring_has_only_its_writing_vcpu_limited(rig: Rig) -> None:
    two_vcpus(rig.source, first=150, second=3)
    copying = await ringed(rig, max_throttle_percent=80)
    assert copying.steering.vcpu_dirty_bytes_per_s == (150 * MIB, 3 * MIB)
    assert rig.source.asked("calc-dirty-rate") == [{"calc-time": 1, "mode": "dirty-ring"}]
    await rig.numbers(active(2, 200 * MIB))
    await rig.source.until_asked("set-vcpu-dirty-limit")
    await rig.read()
    (limit,) = rig.source.asked("set-vcpu-dirty-limit")
    assert 40 <= limit["dirty-rate"] <= 60
    assert "cpu-index" not in limit
    assert "no vCPU may dirty more than" in copying.steps[0]
    assert not rig.source.asked("migrate-set-parameters")


async def test_where_qemu_refuses_a_dirty_limit_all_vcpus_are_slowed_down(rig: Rig) -> None:
    two_vcpus(rig.source, first=150)
    rig.source.on("set-vcpu-dirty-limit", Fails("dirty page limit feature requires KVM"))
    copying = await ringed(rig)
    await rig.numbers(active(2, 200 * MIB))
    await rig.source.until_asked("set-vcpu-dirty-limit")
    await rig.numbers(active(3, 200 * MIB))
    await rig.source.until_asked("migrate-set-parameters")
    await rig.read()
    assert "not done" in copying.steps[0]
    assert "slowed down by" in copying.steps[1]


async def test_where_the_vcpus_cannot_be_measured_all_are_slowed_down(rig: Rig) -> None:
    rig.source.on("calc-dirty-rate", Fails("mode dirty-ring is not enabled, use other method instead."))
    copying = await rig.start()
    copying.steering.can_throttle, copying.steering.dirty_ring = True, 4096
    await rig.numbers(active(1, 500 * MIB))
    await rig.source.until_asked("calc-dirty-rate", policy_runner.MEASURE_ATTEMPTS)
    await rig.read()
    assert "cannot be measured, so none is limited: " in copying.steps[0]
    copying.timeline.started -= 2.0
    await rig.numbers(active(2, 200 * MIB))
    await rig.source.until_asked("migrate-set-parameters")
    assert not rig.source.asked("set-vcpu-dirty-limit")


async def test_what_was_measured_for_somebody_else_is_not_taken_for_ours() -> None:
    async with FakeQemu() as qemu, connected(qemu) as monitor:
        qemu.on("calc-dirty-rate", {})
        qemu.on("query-dirty-rate", {"status": "measured", "mode": "page-sampling", "dirty-rate": 7})
        with pytest.raises(MonitorError, match="for somebody else"):
            await dirty_rate.measure_vcpus(monitor, seconds=0)


async def test_a_throttle_of_nothing_lifts_the_limit(rig: Rig, journal: Journal) -> None:
    course = await driven(rig, journal)
    two_vcpus(rig.source, first=150)
    course.copying.steering.dirty_limit_bytes_per_s = 50 * MIB
    await retuned(course, journal, max_throttle_percent=0)
    assert rig.source.asked("cancel-vcpu-dirty-limit") == [{}]
    assert course.copying.steering.dirty_limit_bytes_per_s == 0


async def test_a_limit_that_another_controller_has_set_is_known(rig: Rig) -> None:
    copying = await rig.start()
    copying.steering.dirty_ring = 4096
    rig.source.on("query-vcpu-dirty-limit", [{"cpu-index": n, "limit-rate": 40, "current-rate": 1} for n in (0, 1)])
    await copying.steering.read_back()
    assert copying.steering.dirty_limit_bytes_per_s == 40 * MIB
