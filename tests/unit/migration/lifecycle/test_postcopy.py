"""Post-copy between two fake QEMUs: how it goes, how it is recovered, and what is said where the guest is lost."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from qmp_migrate.errors import MigrationFailed, OutcomeUnknown
from qmp_migrate.migration.journal.store import Journal
from qmp_migrate.migration.model.phases import Phase
from tests.support.fakes.engine_run import lies, migrate
from tests.support.fakes.fake_qemu import Fails, Silence
from tests.support.fakes.fake_qemu_pair import QemuPair


async def test_after_one_pass_the_guest_runs_there_and_its_memory_follows(journal: Journal) -> None:
    async with QemuPair(busy=True) as pair:
        engine = await migrate(pair, journal, mode="postcopy")
        assert lies(pair, engine) == []
        result = engine.course.chronicle.result
        assert (result.outcome, result.owner, result.mode, result.warnings) == (
            "completed",
            "destination",
            "postcopy",
            [],
        )
        assert result.blackout_ms > 0
        assert "one pass is over" in result.steps[0]
        assert ("b", "announce-self") in pair.commands
        entries = await journal.entries(engine.course.request.id)
        acts = [entry.act for entry in entries if entry.kind in {"intent", "phase"}]
        order = [
            "start-postcopy",
            "postcopy",
            "commit",
            "continued",
            "running-at-destination",
            "release-source",
            "done",
        ]
        assert [act for act in acts if act in order] == order


async def test_a_quiet_guest_needs_no_post_copy(journal: Journal) -> None:
    async with QemuPair() as pair:
        engine = await migrate(pair, journal, mode="postcopy")
        assert lies(pair, engine) == []
        assert ("a", "migrate-start-postcopy") not in pair.commands
        assert engine.course.chronicle.result.outcome == "completed"


async def test_the_point_of_no_return_is_on_disk_before_it(journal: Journal) -> None:
    written: list[str] = []
    async with QemuPair(busy=True) as pair:
        ask = pair.source._replies["migrate-start-postcopy"][0]

        def at_start(arguments: dict[str, Any]) -> Any:
            [migration] = journal._epochs
            with journal._engine.connect() as connection:
                query = "select phase from migrations where id = ?"
                written.append(str(connection.exec_driver_sql(query, (migration,)).scalar()))
            return ask(arguments)

        pair.source.on("migrate-start-postcopy", at_start)
        await migrate(pair, journal, mode="postcopy")
    assert written == ["postcopy"]


async def test_a_paused_guest_arrives_paused(journal: Journal) -> None:
    async with QemuPair(running=False, busy=True) as pair:
        engine = await migrate(pair, journal, mode="postcopy")
        assert lies(pair, engine) == []
        assert ("b", "cont") not in pair.commands


async def test_a_cancel_that_comes_too_late_is_refused_and_said_so(journal: Journal) -> None:
    cancel = asyncio.Event()
    async with QemuPair(busy=True) as pair:
        pair.on_becoming = lambda qemu, status: cancel.set() if status == "postcopy-active" else None
        engine = await migrate(pair, journal, cancel=cancel, mode="postcopy")
        assert lies(pair, engine) == []
        result = engine.course.chronicle.result
        assert result.outcome == "completed"
        assert any("the cancel is refused" in warning for warning in result.warnings)
        assert ("a", "migrate_cancel") not in pair.commands


async def test_before_that_it_is_obeyed(journal: Journal) -> None:
    cancel = asyncio.Event()
    async with QemuPair(busy=True) as pair:
        pair.on_becoming = lambda qemu, status: cancel.set() if status == "active" else None
        pair.source.on("migrate-start-postcopy", Silence())
        engine = await migrate(pair, journal, cancel=cancel, mode="live")
        assert lies(pair, engine) == []
        assert engine.course.chronicle.result.outcome == "cancelled"


async def test_where_qemu_refuses_it_there_is_a_way_back(journal: Journal) -> None:
    async with QemuPair(busy=True) as pair:
        pair.source.on("migrate-start-postcopy", Fails("not today"))
        engine = await migrate(pair, journal, mode="postcopy")
        assert lies(pair, engine) == []
        result = engine.course.chronicle.result
        assert (result.outcome, result.owner) == ("rolled_back", "source")
        assert isinstance(engine.error, MigrationFailed)
        assert "not today" in engine.error.message


@pytest.mark.parametrize("cuts", [1, 3])
async def test_a_connection_that_is_lost_is_replaced(journal: Journal, cuts: int) -> None:
    async with QemuPair(busy=True, cuts=cuts) as pair:
        engine = await migrate(pair, journal, mode="postcopy")
        assert lies(pair, engine) == []
        result = engine.course.chronicle.result
        assert (result.outcome, result.owner) == ("completed", "destination")
        asked = [asked for asked in pair.destination.log if asked.name == "migrate-recover"]
        assert len(asked) == cuts
        assert all(each.oob for each in asked), "the destination's main loop may hang"
        assert [c.arguments.get("resume") for c in pair.source.log if c.name == "migrate"] == [None, *[True] * cuts]


async def test_where_the_main_loop_of_the_destination_hangs_it_is_recovered_all_the_same(journal: Journal) -> None:
    async with QemuPair(busy=True, cuts=1) as pair:

        def on_becoming(qemu: object, status: str) -> None:
            if qemu is pair.destination and status == "postcopy-paused":
                pair.destination.main_loop.clear()
            if qemu is pair.destination and status == "postcopy-active":
                pair.destination.main_loop.set()

        pair.on_becoming = on_becoming
        engine = await migrate(pair, journal, mode="postcopy")
        assert lies(pair, engine) == []
        assert engine.course.chronicle.result.outcome == "completed"


async def test_where_no_new_connection_can_be_made_a_person_is_told(journal: Journal) -> None:
    async with QemuPair(busy=True, cuts=1) as pair:
        pair.destination.on("migrate-recover", Fails("Address already in use"))
        engine = await migrate(pair, journal, mode="postcopy")
        assert pair.wrong == []
        assert isinstance(engine.error, OutcomeUnknown)
        assert "recover" in str(engine.error.hint)
        assert pair.source.alive
        assert pair.destination.alive
        assert (await journal.get(engine.course.request.id)).phase is Phase.PARKED


@pytest.mark.parametrize("who", ["source", "destination"])
async def test_where_one_of_them_dies_the_guest_is_lost_and_that_is_said(journal: Journal, who: str) -> None:
    async with QemuPair(busy=True, cuts=1) as pair:
        victim = pair.source if who == "source" else pair.destination
        pair.on_becoming = lambda qemu, status: victim.die() and None if status == "postcopy-paused" else None
        engine = await migrate(pair, journal, mode="postcopy")
        assert pair.wrong == []
        result = engine.course.chronicle.result
        assert (result.outcome, result.owner) == ("failed", "none")
        assert isinstance(engine.error, MigrationFailed)
        assert engine.error.code == "guest_lost"
        assert "memory" in engine.error.message
        assert not pair.source.alive
        assert not pair.destination.alive
