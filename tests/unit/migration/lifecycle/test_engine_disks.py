"""The engine with disks that are carried along: in order, and with one thing going wrong at every moment there is."""

from __future__ import annotations

import asyncio
from typing import Any, get_args

import pytest

from qmp_migrate.errors import JournalError
from qmp_migrate.migration.journal.store import Journal
from qmp_migrate.migration.lifecycle import disk_phase
from qmp_migrate.migration.lifecycle.context import Course
from qmp_migrate.migration.lifecycle.engine import Engine
from qmp_migrate.migration.lifecycle.recorder import Chronicle
from qmp_migrate.migration.model.phases import Phase
from qmp_migrate.migration.model.reporter import Progress, Reporters
from qmp_migrate.migration.model.request import MigrationRequest, MigrationResult, Mode
from tests.support.fakes.bounded_gather import by_turns
from tests.support.fakes.engine_run import lies
from tests.support.fakes.fake_qemu_pair import ARGV, Fault
from tests.support.fakes.fake_qemu_pair_with_disks import COPIES, DiskPair
from tests.support.fakes.transport_profiles import agreed


class Listener:
    """Keeps what is told."""

    def __init__(self) -> None:
        self.progresses: list[Progress] = []

    def phase(self, view: Any) -> None: ...

    def progress(self, progress: Progress) -> None:
        self.progresses.append(progress)

    def event(self, kind: str, data: Any) -> None: ...


async def migrate(
    pair: DiskPair,
    journal: Journal,
    *,
    cancel: asyncio.Event | None = None,
    mode: Mode = "live",
    listener: Listener | None = None,
) -> Engine:
    request = MigrationRequest("web1", "b", "a", mode=mode, copy_storage="full", source_images="rename")
    await journal.begin(id=request.id, vm="web1", source="a", destination="b", mode=mode, request={})
    await journal.enter(request.id, Phase.PREFLIGHT)
    reporters = Reporters([listener] if listener else [])
    chronicle = Chronicle(request, journal, reporters, MigrationResult(request.id, "web1", "a", "b", mode))
    profile = agreed(request)
    course = Course(
        request, pair.side("a"), pair.side("b"), chronicle, running=pair.running, profile=profile, copies=COPIES
    )
    engine = Engine(course, ARGV, cancel or asyncio.Event())
    try:
        async with asyncio.timeout(600):
            await engine.run()
    finally:
        await course.source.detach()
        await course.destination.detach()
    return engine


def untruths(pair: DiskPair, engine: Engine) -> list[str]:
    """Return what is not as it should be at the end, disks included."""
    return lies(pair, engine) + pair.disks.untruths(engine.course.chronicle.result.owner)


@pytest.mark.parametrize("later", [False, True], ids=["7.2", "8.2"])
@pytest.mark.parametrize("mode", ["live", "offline"])
async def test_disks_are_in_step_before_memory_and_whole_before_the_hand_over(
    journal: Journal, later: bool, mode: Mode
) -> None:
    listener = Listener()
    async with DiskPair(later=later) as pair:
        engine = await migrate(pair, journal, mode=mode, listener=listener)
        assert untruths(pair, engine) == []
        order = [command for _, command in pair.commands]
        steps = [
            "nbd-server-start",
            "block-export-add",
            "blockdev-mirror",
            "query-block-jobs",
            "migrate",
        ]
        assert [order.index(step) for step in steps] == sorted(order.index(step) for step in steps)
        assert order.index("nbd-server-stop") < order.index("migrate-continue")
        last_end = len(order) - order[::-1].index("block-job-cancel")
        assert order.index("migrate") < last_end < order.index("migrate-continue")
        assert ("block-job-change" in order) is later
        assert engine.course.chronicle.result.disk_bytes == 16
        phases = [entry.act for entry in await journal.entries(engine.course.request.id) if entry.kind == "phase"]
        assert phases.index("disks-mirroring") < phases.index("copying")
    disks = [p for p in listener.progresses if p.status == "mirroring"]
    assert disks
    assert disks[-1].disk_transferred_bytes == 16
    percents = [p.percent for p in listener.progresses]
    assert percents == sorted(percents), "percent never goes back"
    seqs = [p.seq for p in listener.progresses]
    assert seqs == sorted(set(seqs))


async def test_a_paused_guest_and_its_disks_arrive_paused(journal: Journal) -> None:
    async with DiskPair(running=False) as pair:
        engine = await migrate(pair, journal)
        assert untruths(pair, engine) == []
        assert not pair.ran


async def commands_of_one(journal: Journal, *, later: bool) -> list[str]:
    async with DiskPair(later=later) as pair:
        await migrate(pair, journal)
        return [command for _, command in pair.commands]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("fault", get_args(Fault))
async def test_whichever_command_fails_nothing_is_left_and_no_disk_is_behind(journal: Journal, fault: Fault) -> None:
    """One migration for each command, many at the same time; of two releases by turns."""
    later = get_args(Fault).index(fault) % 2 == 0

    async def one(number: int) -> list[str]:
        async with DiskPair(fault, number, later=later) as pair:
            engine = await migrate(pair, journal)
            told = engine.course.chronicle.result
            found = untruths(pair, engine)
            if engine.error is not None or told.warnings:  # what could not be tidied up is said, and is not a lie
                found = [
                    text for text in found if not (text.startswith(("left of", "files", "put away")) and told.warnings)
                ]
            return (
                [f"{found} after {pair.commands[number - 1 : number]}: {engine.error} {told.warnings}"] if found else []
            )

    count = len(await commands_of_one(journal, later=later))
    wrong = await by_turns(one, range(1, count + 1))
    assert [text for texts in wrong for text in texts] == []


async def test_whenever_it_is_cancelled_nothing_is_left(journal: Journal) -> None:
    count = len(await commands_of_one(journal, later=True))

    async def one(number: int) -> tuple[list[str], str]:
        cancel = asyncio.Event()

        def on_command(before: int) -> None:
            if before >= number:
                cancel.set()

        async with DiskPair(on_command=on_command, later=True) as pair:
            engine = await migrate(pair, journal, cancel=cancel)
            return untruths(pair, engine), engine.course.chronicle.result.outcome

    ends = await by_turns(one, range(count))
    assert [found for found, _ in ends if found] == []
    assert {outcome for _, outcome in ends} == {"cancelled", "completed"}


@pytest.mark.parametrize("when", ["blockdev-mirror", "migrate"])
async def test_a_full_disk_over_there_ends_it_at_once(journal: Journal, when: str) -> None:
    async with DiskPair() as pair:
        pair.busy = when == "migrate"

        def on_command(_before: int) -> None:
            pair.disks.breaks = pair.disks.breaks or ("a", when) in pair.commands

        pair.on_command = on_command
        engine = await migrate(pair, journal)
        assert untruths(pair, engine) == []
        assert engine.error is not None
        assert engine.error.code == "disk_copy_failed"
        assert "No space left" in engine.error.message
        assert "/b/one.raw" in engine.error.message


@pytest.mark.parametrize("mode", ["live", "offline", "postcopy"])
async def test_a_disk_that_is_not_proven_whole_in_the_pause_takes_everything_back(journal: Journal, mode: Mode) -> None:
    """Also where post-copy was asked for: its point of no return lies behind the pause then."""
    async with DiskPair() as pair:
        pair.busy = mode == "postcopy"

        def on_becoming(_qemu: object, status: str) -> None:
            pair.disks.breaks = pair.disks.breaks or status == "pre-switchover"

        pair.on_becoming = on_becoming
        engine = await migrate(pair, journal, mode=mode)
        assert untruths(pair, engine) == []
        assert engine.error is not None
        assert engine.error.code == "disk_copy_failed"
        assert ("a", "migrate-continue") not in pair.commands
        assert pair.source.running
        assert not pair.ran


async def test_a_destination_that_may_have_run_keeps_its_images(journal: Journal) -> None:
    async with DiskPair() as pair:
        request = MigrationRequest("web1", "b", "a", copy_storage="full")
        chronicle = Chronicle(request, journal, Reporters(), MigrationResult(request.id, "web1", "a", "b", "live"))
        course = Course(request, pair.side("a"), pair.side("b"), chronicle, running=True, copies=COPIES)
        pair.disks.files = {"/b/one.raw"}
        [line] = await disk_phase.take_back(course, never_ran=False)
        assert "may have run" in line
        assert pair.disks.files == {"/b/one.raw"}


async def test_whatever_cannot_be_written_down_is_not_done(journal: Journal) -> None:
    intent = journal.intent

    async def fails(migration: str, act: str, **data: Any) -> None:
        if act == disk_phase.MAKE:
            raise JournalError("full")
        await intent(migration, act, **data)

    journal.intent = fails  # type: ignore[method-assign]
    async with DiskPair() as pair:
        engine = await migrate(pair, journal)
        assert isinstance(engine.error, Exception)
        assert pair.disks.files == set()
        assert engine.course.chronicle.result.owner == "source"
