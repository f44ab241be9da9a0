"""The controller dies at every effect that it has on the world, and another one settles what it left.

Real engine, real recovery, real journal; the QEMUs and hosts are `mortal`'s, and go on as real ones do. After each death
there is one owner, the result document says which, and nothing is left behind.
"""

from __future__ import annotations

import asyncio
import os
import random
from dataclasses import dataclass
from typing import Literal

import pytest

from qmp_migrate.errors import QmpMigrateError
from qmp_migrate.migration.journal.store import Journal
from qmp_migrate.migration.lifecycle.context import Course
from qmp_migrate.migration.lifecycle.engine import Engine
from qmp_migrate.migration.lifecycle.recorder import Chronicle
from qmp_migrate.migration.lifecycle.recovery import BEFORE_LAUNCH, Wish, recover
from qmp_migrate.migration.model.phases import ENDS, Phase
from qmp_migrate.migration.model.reporter import Reporters
from qmp_migrate.migration.model.request import MigrationRequest, MigrationResult, Mode
from tests.support.data.recorded_replies import V7_2
from tests.support.fakes.crashing_controller import Died, Life, MortalJournal, MortalPair
from tests.support.fakes.fake_qemu_pair import ARGV, SOURCE
from tests.support.fakes.fake_qemu_pair_with_disks import COPIES
from tests.support.fakes.transport_profiles import agreed

DEEP = os.environ.get("HYPOTHESIS_PROFILE") == "deep"
AT_ONCE = 32
"""So many migrations at the same time."""


@dataclass(frozen=True)
class Kind:
    """A kind of migration.

    Attributes:
        guarded: With a stop at pre-switchover.
        mode: As of a request.
        cuts: So often the connection is lost in post-copy.
        running: The guest runs; else its user had paused it.
        cancelled: The source's migration status at which it is cancelled.
        back: Whoever recovers is told to go back.
        later: The QEMUs have gone as far as they go by themselves before anybody recovers.
        then: The QEMU that dies as well before anybody recovers.
        disks: Its disks are carried along.
    """

    guarded: bool = False
    mode: Mode = "live"
    cuts: int = 0
    running: bool = True
    cancelled: Literal["", "active", "pre-switchover", "completed"] = ""
    back: bool = False
    later: bool = False
    then: Literal["", "source", "destination"] = ""
    disks: bool = False


class Case:
    """One guest, from the beginning of its migration to one owner."""

    def __init__(self, kind: Kind, journal: Journal) -> None:
        self.kind = kind
        self.journal = journal
        self.request = MigrationRequest(
            "web1",
            "b",
            "a",
            guarded=kind.guarded,
            mode=kind.mode,
            copy_storage="full" if kind.disks else None,
            source_images="rename",
        )
        self.cancel = asyncio.Event()
        self.pair = MortalPair(
            running=kind.running,
            busy=kind.mode == "postcopy",
            cuts=kind.cuts,
            on_becoming=self._on_becoming,
            carries=kind.disks,
        )
        self.story: list[str] = []
        self.and_a_qemu = False
        self.turned_back: int | None = None

    def _on_becoming(self, qemu: object, status: str) -> None:
        if qemu is self.pair.source and status == self.kind.cancelled:
            self.cancel.set()

    async def migrate(self, life: Life) -> None:
        request = self.request
        await self.journal.begin(
            id=request.id,
            vm="web1",
            source="a",
            destination="b",
            mode=request.mode,
            request={
                "downtime_limit_ms": 300,
                "bandwidth_bytes_per_s": 0,
                "encrypt": True,
                "guarded": request.guarded,
                "copy_storage": request.copy_storage,
                "source_images": request.source_images,
                "running": self.kind.running,
                "source_process": SOURCE.words,
            },
        )
        await self.journal.enter(request.id, Phase.PREFLIGHT)
        result = MigrationResult(request.id, "web1", "a", "b", request.mode)
        chronicle = Chronicle(request, MortalJournal(self.journal, life), Reporters(), result)
        source, destination = self.pair.side_of("a", life, known=True), self.pair.side_of("b", life, known=False)
        course = Course(request, source, destination, chronicle, running=self.kind.running, profile=agreed(request))
        course.copies = COPIES if self.kind.disks else ()
        try:
            await Engine(course, ARGV, self.cancel).run()
        except Died as death:
            self.story.append(f"died {death or life.passed[-1]}")
        finally:
            await source.detach()
            await destination.detach()

    async def recover(self, life: Life) -> None:
        record = await self.journal.get(self.request.id)
        if record.phase in ENDS:
            self.story.append(f"it had ended: {record.phase}")
            return
        if record.phase is Phase.ROLLING_BACK and self.turned_back is None:
            self.turned_back = len(self.pair.commands)
        source, destination = self.pair.side_of("a", life, known=False), self.pair.side_of("b", life, known=False)
        try:
            result, error = await recover(
                record,
                source,
                destination,
                journal=MortalJournal(self.journal, life),
                reporter=Reporters(),
                wish=Wish(back=self.kind.back),
                cancel=asyncio.Event(),
            )
            self.story.append(f"recovered from {record.phase}: {result.outcome} {result.owner} {error}")
        except Died as death:
            self.story.append(f"its recovery died {death or life.passed[-1]}")
        except QmpMigrateError as error:
            self.story.append(f"its recovery failed: {type(error).__name__} {error}")
        finally:
            await source.detach()
            await destination.detach()

    async def pause(self) -> None:
        """Wait until the QEMUs do nothing more by themselves, where that is wanted."""
        if self.kind.later and self.pair._play is not None:
            await asyncio.wait([self.pair._play], timeout=0.1)  # held at pre-switchover it waits for ever
        record = await self.journal.get(self.request.id)
        # What becomes of a guest before or after its migration is not the migration's business.
        if self.kind.then and record.phase not in ENDS | BEFORE_LAUNCH:
            self.and_a_qemu = True
            self.story.append(f"then the {self.kind.then} died")
            qemu = self.pair.source if self.kind.then == "source" else self.pair.destination
            qemu.die()

    def _nobody_can_know(self) -> bool:
        """Whether there is a reason to ask a person: one is dead, and what the other one holds may be old."""
        if self.kind.then == "source":
            return self.pair.destination.status == "completed"
        return self.pair.source.status == "completed"

    async def lies(self) -> list[str]:
        """Return what is said and not so, and what must not be; with the story of how it came to it."""
        pair, kind = self.pair, self.kind
        record = await self.journal.get(self.request.id)
        result = record.result or {}
        here, there = pair.source, pair.destination
        found = list(pair.wrong)

        def claim(what: str, holds: bool) -> None:
            if not holds:
                found.append(what)

        owner = result.get("owner")
        since = pair.commands[self.turned_back :] if self.turned_back is not None else []
        claim("it had turned back, and goes on", ("a", "migrate-continue") not in since)
        if (
            len(self.story) > 1
            and self.story[1].startswith("then")
            and (owner == "none" or record.phase is Phase.PARKED)
        ):
            claim("it says none, and one lives", owner != "none" or not (here.alive or there.alive))
            claim("a person is asked without need", owner == "none" or self._nobody_can_know())
            return [f"{found} {self.story} {result.get('warnings')}"] if found else []
        claim(f"not settled: {record.phase}", record.phase in ENDS)
        claim(f"nobody knows the owner: {owner}", owner in {"source", "destination"})
        claim(
            "the document and the record differ",
            (result.get("owner"), result.get("outcome")) == (record.owner, record.outcome),
        )
        claim("the error and the outcome differ", (result.get("error") is None) == (owner == "destination"))
        claim("its user had paused it, and it runs", kind.running or not (here.running or there.running))
        owning, other, name = (there, here, "a") if owner == "destination" else (here, there, "b")
        claim("the guest does not run", owning.running or not kind.running)
        claim("the other QEMU is left", not other.alive)
        claim(f"files are left on {name}: {pair.files[name]}", not pair.files[name])
        claim("a key is left", not any("keys" in files for files in pair.files.values()))
        claim("the directory of the guest is gone", "directory" in pair.files["b" if name == "a" else "a"])
        claim("parameters are left", owning.parameters == V7_2.parameters and not owning.objects)
        claim("capabilities are left", not any(owning.capabilities.values()))
        if pair.disks is not None:
            found += pair.disks.untruths(str(owner))
        return [f"{found} {self.story} {result.get('warnings')}"] if found else []


async def one(kind: Kind, journal: Journal, *deaths: int) -> tuple[list[str], list[Life]]:
    """Let a controller die at a moment, the next one at another, and the last one not at all.

    Returns:
        What is wrong at the end, and the lives.
    """
    case = Case(kind, journal)
    lives = [Life(death) for death in (*deaths, 0)]
    async with case.pair, asyncio.timeout(600):
        await case.migrate(lives[0])
        for life in lives[1:]:
            await case.pause()
            await case.recover(life)
        return await case.lies(), lives


async def all_of(kind: Kind, journal: Journal, deaths: list[tuple[int, ...]]) -> dict[tuple[int, ...], int]:
    """Let all these happen; return through how many moments the one went that came after each death."""
    places = asyncio.Semaphore(AT_ONCE)

    async def each(these: tuple[int, ...]) -> tuple[list[str], int]:
        async with places:
            found, lives = await one(kind, journal, *these)
            return [f"{these}: {line}" for line in found], len(lives[-1].passed)

    ends = await asyncio.gather(*map(each, deaths))
    wrong = [line for lines, _ in ends for line in lines]
    assert not wrong, "\n".join(wrong)
    return {these: passed for these, (_, passed) in zip(deaths, ends, strict=True)}


async def all_deaths(kind: Kind, journal: Journal) -> list[tuple[int, ...]]:
    """Return every moment that there is to die in."""
    found, lives = await one(kind, journal)
    assert found == []
    return [(number,) for number in range(1, len(lives[0].passed) + 1)]


KINDS = [
    pytest.param(Kind(), id="plain"),
    pytest.param(Kind(later=True), id="recovered later"),
    pytest.param(Kind(back=True), id="recovered backwards"),
    pytest.param(Kind(guarded=True), id="guarded"),
    pytest.param(Kind(guarded=True, later=True, back=True), id="guarded, recovered backwards, later"),
    pytest.param(Kind(running=False), id="paused guest"),
    pytest.param(Kind(mode="offline"), id="offline"),
    pytest.param(Kind(mode="offline", later=True, back=True), id="offline, recovered backwards, later"),
    pytest.param(Kind(mode="offline", cancelled="active"), id="offline, cancelled"),
    pytest.param(Kind(mode="postcopy"), id="post-copy"),
    pytest.param(Kind(mode="postcopy", cuts=2, later=True), id="post-copy, interrupted, recovered later"),
    pytest.param(Kind(mode="postcopy", later=True, back=True), id="post-copy, recovered backwards, later"),
    pytest.param(Kind(disks=True, later=True), id="disks, recovered later"),
    pytest.param(Kind(disks=True, mode="offline", back=True), id="disks, offline, recovered backwards"),
    pytest.param(Kind(cancelled="active"), id="cancelled"),
    pytest.param(Kind(cancelled="pre-switchover", guarded=True), id="guarded, cancelled"),
    pytest.param(Kind(cancelled="completed"), id="cancelled in the last moment"),
]
AND_A_QEMU = [
    pytest.param(Kind(then="destination"), id="the destination"),
    pytest.param(Kind(then="source", later=True), id="the source, later"),
    pytest.param(Kind(then="destination", guarded=True, later=True), id="the destination, guarded"),
    pytest.param(Kind(then="destination", running=False, later=True), id="the destination of a paused guest"),
    pytest.param(Kind(then="destination", mode="offline"), id="the destination, offline"),
    pytest.param(Kind(then="destination", disks=True, later=True), id="the destination, disks"),
]


@pytest.mark.timeout(3600 if DEEP else 900)
@pytest.mark.parametrize("kind", KINDS)
async def test_wherever_the_controller_dies_the_next_one_settles_it(kind: Kind, journal: Journal) -> None:
    every = 1 if DEEP or kind in {Kind(), Kind(guarded=True), Kind(running=False)} else 2
    await all_of(kind, journal, (await all_deaths(kind, journal))[::every])


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", AND_A_QEMU)
async def test_and_where_a_qemu_dies_with_it_nobody_is_told_a_lie(kind: Kind, journal: Journal) -> None:
    deaths = await all_deaths(
        Kind(guarded=kind.guarded, running=kind.running, mode=kind.mode, disks=kind.disks), journal
    )
    await all_of(kind, journal, deaths if DEEP else deaths[::4])


@pytest.mark.timeout(7200 if DEEP else 900)
@pytest.mark.parametrize("kind", KINDS)
async def test_and_wherever_that_one_dies_the_one_after_it(kind: Kind, journal: Journal) -> None:
    """All pairs of moments there are some five thousand of: a handful of them, or all with `HYPOTHESIS_PROFILE=deep`."""
    dice = random.Random(16)
    first = await all_deaths(kind, journal)
    after = await all_of(kind, journal, first if DEEP else dice.sample(first, 8))
    pairs = [(number, second) for (number,), count in after.items() for second in range(1, count + 1)]
    await all_of(kind, journal, pairs if DEEP else dice.sample(pairs, 16))
