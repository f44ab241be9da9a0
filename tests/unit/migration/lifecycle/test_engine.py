"""The engine, with one thing going wrong at every moment there is: what it says at the end is always the case."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, get_args

import pytest
from blockbuster import BlockBuster

from qmp_migrate.errors import JournalError, OutcomeUnknown
from qmp_migrate.migration.endpoint import launch
from qmp_migrate.migration.journal.store import Journal
from qmp_migrate.migration.model.phases import Phase
from qmp_migrate.migration.model.request import Mode
from qmp_migrate.migration.precopy.runner import Copying
from tests.support.fakes.bounded_gather import by_turns
from tests.support.fakes.engine_run import lies, migrate
from tests.support.fakes.fake_qemu_pair import Fault, QemuPair
from tests.support.virtual_time import VirtualJournal


async def test_where_nothing_goes_wrong_it_runs_at_the_destination(journal: Journal) -> None:
    async with QemuPair() as pair:
        engine = await migrate(pair, journal)
        assert lies(pair, engine) == []
        result = engine.course.chronicle.result
        assert (result.outcome, result.owner, result.encrypted, result.warnings) == (
            "completed",
            "destination",
            True,
            [],
        )
        assert result.blackout_ms > 0
        assert result.qemu == {"total_ms": 99, "downtime_ms": 50, "setup_ms": 16}
        record = await journal.get(engine.course.request.id)
        assert (record.phase, record.outcome, record.may_have_run) == (Phase.DONE, "completed", True)
        assert record.result == result.to_dict()


async def test_memory_travels_only_when_both_sides_are_wired(journal: Journal) -> None:
    seen: dict[str, Any] = {}

    async with QemuPair() as pair:
        reply = pair.source._replies["migrate"][0]

        def at_migrate(arguments: dict[str, Any]) -> Any:
            for name, qemu in [("a", pair.source), ("b", pair.destination)]:
                seen[name] = {capability for capability, on in qemu.capabilities.items() if on}
                seen[f"key at {name}"] = qemu.parameters["tls-creds"]
            return reply(arguments)

        pair.source.on("migrate", at_migrate)
        engine = await migrate(pair, journal)
    for name in ("a", "b"):
        assert seen[name] == {"events", "return-path", "late-block-activate", "validate-uuid"}
        assert seen[f"key at {name}"] == f"tls-{engine.course.request.id}"


async def test_the_commit_is_written_before_it_is_sent(journal: Journal) -> None:
    """Also by a disk that takes longer for it than the switchover does."""
    written_at_cont: list[bool] = []
    arm, written = journal.arm_commit, False

    async def slowly(migration: str) -> None:
        nonlocal written
        await asyncio.sleep(0.1)
        await arm(migration)
        written = True

    journal.arm_commit = slowly  # type: ignore[method-assign]
    async with QemuPair() as pair:
        reply = pair.destination._replies["cont"][0]
        pair.destination.on("cont", lambda arguments: written_at_cont.append(written) or reply(arguments))
        await migrate(pair, journal)
    assert written_at_cont == [True]


async def test_a_destination_that_dies_once_it_may_have_run_is_not_taken_back(journal: Journal) -> None:
    """The source's memory is older than the disks by now: nobody but a person may decide (DESIGN rule 4)."""
    async with QemuPair() as pair:
        reply = pair.destination._replies["cont"][0]
        pair.destination.on("cont", lambda arguments: (reply(arguments) and None) or pair.destination.die())
        engine = await migrate(pair, journal)
        assert isinstance(engine.error, OutcomeUnknown)
        assert engine.course.chronicle.result.owner == "unknown"
        assert (pair.ran, pair.source.running, pair.wrong) == (True, False, [])
        assert pair.source.alive  # kept for whoever looks into it
        assert (await journal.get(engine.course.request.id)).phase is Phase.PARKED


async def test_nothing_makes_the_event_loop_wait(tmp_path: Path) -> None:
    """Between STOP and RESUME a disk or a name server that hangs would be a blackout. In real time: so does the journal."""
    guard = BlockBuster(scanned_modules=["qmp_migrate"])
    for function in guard.functions.values():
        function.can_block_in("qmp_migrate/migration/journal/store.py", {"this_controller"})  # /proc is memory
    guard.activate()
    try:
        async with await Journal.open(f"sqlite:///{tmp_path}/journal.sqlite") as journal, QemuPair() as pair:
            assert (await migrate(pair, journal)).error is None
    finally:
        guard.deactivate()


async def test_a_paused_guest_arrives_paused(journal: Journal) -> None:
    async with QemuPair(running=False) as pair:
        engine = await migrate(pair, journal)
        assert lies(pair, engine) == []
        assert not pair.ran
        assert ("b", "cont") not in pair.commands
        assert engine.course.chronicle.result.blackout_ms == 0


async def test_offline_stops_the_guest_before_its_memory_travels_and_writes_that_down_first(journal: Journal) -> None:
    async with QemuPair() as pair:
        stop = pair.source._replies["stop"][0]
        written: list[bool] = []

        def at_stop(arguments: dict[str, Any]) -> Any:
            [migration] = journal._epochs
            with journal._engine.connect() as connection:
                acts = connection.exec_driver_sql("select act from entries where migration = ?", (migration,)).scalars()
                written.append("stop-guest" in list(acts))
            return stop(arguments)

        pair.source.on("stop", at_stop)
        engine = await migrate(pair, journal, mode="offline")
        assert lies(pair, engine) == []
        assert written == [True]
        assert pair.commands.index(("a", "stop")) < pair.commands.index(("a", "migrate"))
        result = engine.course.chronicle.result
        assert (result.outcome, result.mode) == ("completed", "offline")
        assert result.blackout_ms > 0
        assert len(result.steps) == 1


async def test_offline_does_not_touch_a_guest_that_is_paused(journal: Journal) -> None:
    async with QemuPair(running=False) as pair:
        engine = await migrate(pair, journal, mode="offline")
        assert lies(pair, engine) == []
        assert ("a", "stop") not in pair.commands
        assert ("b", "cont") not in pair.commands


async def commands_of_one(journal: Journal, mode: Mode = "live") -> list[str]:
    """Return the commands of a migration in which nothing goes wrong, in order."""
    async with QemuPair() as pair:
        await migrate(pair, journal, mode=mode)
        return [command for _, command in pair.commands]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("mode", ["live", "offline"])
@pytest.mark.parametrize("fault", get_args(Fault))
async def test_whichever_command_fails_it_says_what_is_the_case(journal: Journal, fault: Fault, mode: Mode) -> None:
    """One migration for each command, many at the same time."""

    async def one(number: int) -> list[str]:
        async with QemuPair(fault, number) as pair:
            engine = await migrate(pair, journal, mode=mode)
            found = lies(pair, engine)
            return [f"{found} after {pair.commands[number - 1 : number]}: {engine.error}"] if found else []

    commands = await commands_of_one(journal, mode)
    assert {"migrate", "migrate-incoming", "cont", "quit"} < set(commands)
    numbers = [
        number
        for number, command in enumerate(commands, start=1)
        # A question that is not done and one whose answer is lost are the same, and no question is refused.
        if not (command.startswith("query-") and fault in {"refused", "unanswered", "cut off"})
    ]
    assert [found for found in await by_turns(one, numbers) if found] == []


class FailingJournal(VirtualJournal):
    """A journal that fails at a write: at the one of that number, counted from 1, or from it on.

    Attributes:
        failing: Which.
        lasting: Those that follow fail, too.
        writes: How many there were.
    """

    def __init__(self, journal: Journal, failing: int, *, lasting: bool) -> None:
        super().__init__(journal._engine, journal._executor, journal._url)
        self.failing, self.lasting, self.writes = failing, lasting, 0

    async def _run(self, *work: Any) -> Any:
        self.writes += 1
        if self.writes == self.failing or (self.lasting and self.writes > self.failing):
            raise JournalError("the journal failed: disk is full")
        return await super()._run(*work)


async def wherever_the_journal_fails(journal: Journal, *, lasting: bool, running: bool) -> dict[int, list[str]]:
    """Let the journal fail at each of its writes, once or from then on; return what was wrong at which."""
    wrong: dict[int, list[str]] = {}
    for failing in range(3, 50):
        failed = FailingJournal(journal, failing, lasting=lasting)
        async with QemuPair(running=running) as pair:
            engine = await migrate(pair, failed)
            if found := lies(pair, engine):
                wrong[failing] = found
        if failed.writes < failing:
            return wrong
    raise AssertionError("it never ends")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])
async def test_whenever_the_journal_fails_it_says_what_is_the_case(journal: Journal, lasting: bool) -> None:
    """A disk that is full stops what was not begun; it must not make a lie of where the guest is."""
    assert await wherever_the_journal_fails(journal, lasting=lasting, running=True) == {}


async def test_a_paused_guest_is_still_paused_whenever_the_journal_fails(journal: Journal) -> None:
    wrong = await wherever_the_journal_fails(journal, lasting=False, running=False)
    assert [found for found in wrong.values() if "its user had paused it, and it runs" in found] == []


@pytest.mark.timeout(900)
@pytest.mark.parametrize("mode", ["live", "offline"])
async def test_whenever_it_is_cancelled_it_says_what_is_the_case(journal: Journal, mode: Mode) -> None:
    count = len(await commands_of_one(journal, mode))

    async def one(number: int) -> tuple[list[str], str]:
        cancel = asyncio.Event()

        def on_command(before: int) -> None:
            if before >= number:
                cancel.set()

        async with QemuPair(on_command=on_command) as pair:
            engine = await migrate(pair, journal, cancel=cancel, mode=mode)
            return lies(pair, engine), engine.course.chronicle.result.outcome

    ends = await by_turns(one, range(count))
    assert [found for found, _ in ends if found] == []
    assert ends[0][1] == "cancelled"
    assert {outcome for _, outcome in ends} == {"cancelled", "completed"}  # once it is committed it is too late


async def cancelled_in_the_last_moment(
    pair: QemuPair, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[str], str]:
    """Cancel when both QEMUs have completed and only `cont` is missing; return lies and outcome."""
    cancel, run = asyncio.Event(), Copying.run

    async def run_and_cancel(self: Copying, address: str, port: int, *, adopt: bool) -> None:
        await run(self, address, port, adopt=adopt)
        cancel.set()

    monkeypatch.setattr(Copying, "run", run_and_cancel)
    async with pair:
        engine = await migrate(pair, journal, cancel=cancel)
        return lies(pair, engine), engine.course.chronicle.result.outcome


async def test_until_cont_is_sent_a_cancel_brings_the_guest_back(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await cancelled_in_the_last_moment(QemuPair(), journal, monkeypatch) == ([], "cancelled")


async def test_and_a_paused_one_back_as_it_was(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await cancelled_in_the_last_moment(QemuPair(running=False), journal, monkeypatch) == ([], "cancelled")


@pytest.mark.parametrize(
    ("found", "right"),
    [
        (["/usr/bin/qemu", "-S", "-cpu", "max"], True),
        (["/lib/ld.so", "--library-path", "/x", "/x/qemu", "-L", "/x/share", "-S", "-cpu", "max"], True),
        (["/usr/bin/qemu", "-S", "-cpu", "qemu64"], False),
        (["/usr/bin/qemu", "-S", "-cpu", "max", "-device", "virtio-rng-pci"], False),
        (["/usr/bin/qemu", "-device", "virtio-rng-pci", "-S", "-cpu", "max"], False),
        (["-S", "-cpu", "max"], False),
        ([], False),
    ],
)
def test_a_destination_that_was_built_otherwise_is_noticed(found: list[str], right: bool) -> None:
    assert launch.built_as(found, ["/usr/bin/qemu", "-S", "-cpu", "max"]) is right
