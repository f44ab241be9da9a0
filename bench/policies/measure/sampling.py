"""One sample: a guest is booted, moved by a contender, listened to, judged by the oracle, and removed.

The parts are apart, because only the move must have the machine for itself: while one guest is still verifying its memory,
the next one boots.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from bench import scenarios
from bench.contenders.base import MoveFailed
from bench.guest import SERIAL_LOGS, SOCKET, Guest, Machine, read_verdict
from bench.measure.qmp import QmpFailed
from bench.measure.samples import Numbers
from bench.policies.measure import event_recorder, guest_log
from bench.policies.measure.environment import DESTINATION, SOURCE, Arena
from bench.policies.measure.event_recorder import Watch
from bench.policies.measure.samples import Sample
from bench.policies.scenarios import BOUND_S, Contender, Scenario
from qmp_migrate import (
    MigrationCancelled,
    MigrationRequest,
    MigrationResult,
    NotConverging,
    PreflightRefused,
    QmpMigrateError,
    UsageError,
)

BOOT_S: Final = 60.0
CANCEL_S: Final = 60.0
JUDGE_S: Final = 45.0
DISCARD_S: Final = 60.0
LOOK_EVERY_S: Final = 0.1
PACE_NS: Final = 1_500_000_000
"""So long, by its own clock, a guest works before it is moved."""


@dataclass(slots=True)
class Take:
    """One sample on its way.

    Attributes:
        arena, scenario, contender: What is measured where.
        guest: The guest of this sample alone.
        sample: What is known so far.
        began, ended: Length of the guest's log when its move began and when it had ended.
    """

    arena: Arena
    scenario: Scenario
    contender: Contender
    guest: Guest
    sample: Sample
    began: int = 0
    ended: int = 0

    @classmethod
    def of(
        cls, arena: Arena, scenario: Scenario, contender: Contender, number: int, machine: Machine, name: str
    ) -> Take:
        """Prepare one; nothing is started.

        Args:
            arena: Where.
            scenario: What is moved.
            contender: How.
            number: The round, from 1.
            machine: What guests are started with.
            name: The guest's.
        """
        moved = scenarios.Scenario(scenario.name, scenario.story, scenario.rate_mib_s, scenario.ws_mib)
        guest = Guest(name, moved, replace(machine, plain_kib=scenario.memory_kib), tick_ms=1, verify=True)
        return cls(arena, scenario, contender, guest, Sample(scenario.name, contender.name, number))

    @property
    def directories(self) -> tuple[Path, Path]:
        """The guest's, at the source and at the destination."""
        return self.arena.directories(self.guest, by_raw=self.contender.by_raw)

    @property
    def request(self) -> MigrationRequest:
        """What the controller is asked for.

        Raises:
            UsageError, TypeError: This version of it does not know that.
        """
        return MigrationRequest(self.guest.name, DESTINATION, SOURCE, **self.contender.asked)

    async def boot(self) -> None:
        """Start the guest and wait until it is at work. Raises `MoveFailed`."""
        await self.arena.start(self.guest, by_raw=self.contender.by_raw)
        await self._worked(0)

    async def pace(self) -> None:
        """Let it work for a while with the machine for itself: its pace before the move is taken then."""
        await self._worked(PACE_NS)

    async def _worked(self, for_ns: int) -> None:
        source = self.directories[0] / SERIAL_LOGS[-1]
        since = None
        try:
            async with asyncio.timeout(BOOT_S):
                while True:
                    ticks, walls = guest_log.read(source.read_bytes() if source.exists() else b"")
                    if ticks and (walls or not for_ns):  # the blackout is told from a look at the wall clock before it
                        since = ticks[-1].mono_ns if since is None else since
                        if ticks[-1].mono_ns - since >= for_ns:
                            return
                    await asyncio.sleep(LOOK_EVERY_S)
        except TimeoutError:
            raise MoveFailed(f"the guest was not at work within {BOOT_S:g} s") from None

    async def forecast(self) -> None:
        """Ask the product what it expects, where that is wanted; the guest is at work already."""
        if not self.contender.forecast or self.sample.round > 1:
            return
        try:
            report, _plan = await self.arena.controller.forecast(self.request)
        except (QmpMigrateError, TypeError):
            return  # the move itself tells what is not available
        if report.forecast.converges:
            self.sample.forecast_ms = float(report.forecast.total_ms)

    async def move(self) -> None:
        """Have it moved; what comes of it is in `sample`. Raises only where nothing can go on."""
        sample, (source, destination) = self.sample, self.directories
        self.arena.recorder.begin()
        sample.load1 = round(os.getloadavg()[0], 2)
        self.began = _length([source])
        try:
            async with Watch.over(source / SOCKET, destination / SOCKET) as seen:
                began = time.monotonic()
                await self._by_raw(seen) if self.contender.by_raw else await self._by_controller(seen)
                sample.wall_ms = round((time.monotonic() - began) * 1000, 1)
                self.ended = _length([source, destination])
                if sample.outcome == "completed":
                    await seen.seen_running()
            self._take_in(seen)
        except (MoveFailed, QmpFailed, OSError, TimeoutError) as error:
            sample.outcome, sample.reason = "failed", str(error) or repr(error)

    async def judge(self) -> None:
        """Listen to what the guest says, wait for the oracle's verdict, and remove the guest."""
        try:
            if self.sample.outcome in {"completed", "gave up", "still going"}:
                await self._ask_guest()
                await self._verdict()
        finally:
            try:
                async with asyncio.timeout(DISCARD_S):
                    await self.arena.discard(self.guest, by_raw=self.contender.by_raw)
            except (MoveFailed, TimeoutError) as error:
                self.sample.warnings.append(f"could not be removed: {error}")

    async def _by_raw(self, seen: Watch) -> None:
        async with asyncio.timeout(BOUND_S):
            moved = await self.arena.raw.move(self.guest)
        seen.numbers = seen.numbers or moved.numbers
        self.sample.outcome = "completed"

    async def _by_controller(self, seen: Watch) -> None:
        controller = self.arena.controller
        moving: asyncio.Task[MigrationResult] | None = None
        result: MigrationResult | None = None
        try:
            moving = asyncio.create_task(controller.migrate(self.request))
            done, _ = await asyncio.wait([moving], timeout=BOUND_S)
            if not done:
                self.sample.outcome = "still going"
                self.sample.reason = f"still going after {BOUND_S:g} s"
                controller.cancel_here()
                async with asyncio.timeout(CANCEL_S):
                    await asyncio.wait([moving])
            result = await moving
            if self.sample.outcome != "still going":
                self.sample.outcome = "completed"
            # One that got ready while it was being cancelled is told as what it was at the bound.
        except (PreflightRefused, UsageError, TypeError) as error:
            failures = getattr(error, "failures", ())
            self.sample.outcome, self.sample.reason = "not available", "; ".join(failures) or str(error)
        except MigrationCancelled as error:
            result = error.result
        except NotConverging as error:
            result, self.sample.outcome, self.sample.reason = error.result, "gave up", str(error)
        except QmpMigrateError as error:
            result, self.sample.outcome, self.sample.reason = error.result, "failed", f"{error} [{error.code}]"
        finally:
            if moving is not None and not moving.done():
                controller.cancel_here()
                with contextlib.suppress(BaseException):
                    await asyncio.wait_for(moving, CANCEL_S)
        if result is not None:
            self.sample.steps, self.sample.warnings = list(result.steps), list(result.warnings)
            self.sample.passes = result.passes or None
            if seen.numbers is None and result.transferred_bytes:
                seen.numbers = Numbers.told(result.to_dict())

    def _take_in(self, seen: Watch) -> None:
        sample, recorder = self.sample, self.arena.recorder
        course = event_recorder.course(seen.events)
        sample.curve, sample.throttle_percent = recorder.curve, recorder.throttle_percent
        sample.blackout_ms, sample.first_pass_ms = course.blackout_ms, course.first_pass_ms
        sample.passes_at_ms = list(course.passes_at_ms)
        sample.total_ms = course.moved_ms if sample.outcome == "completed" else course.ended_ms
        if seen.numbers is not None:
            sample.bytes, sample.passes = seen.numbers.transferred_bytes, seen.numbers.passes
        elif sample.curve:
            sample.bytes = sample.curve[-1].transferred_bytes
            sample.passes = sample.passes or sample.curve[-1].pass_number

    async def _ask_guest(self) -> None:
        """Wait until the guest has looked at its wall clock once more, and take in what it says."""
        source, destination = self.directories
        looked: guest_log.Inside | None = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(JUDGE_S):
                while True:
                    log, handover = _logs(source, destination)
                    if guest_log.walls_after(log, self.ended) >= 1:
                        looked = guest_log.look(log, begin=self.began, end=self.ended, handover=handover)
                        break
                    await asyncio.sleep(LOOK_EVERY_S)
        self.sample.inside = looked

    async def _verdict(self) -> None:
        source, destination = self.directories
        moved = self.sample.outcome == "completed"
        deadline = time.monotonic() + JUDGE_S
        while True:
            verdict = read_verdict([source, destination])
            if verdict.survived or (time.monotonic() > deadline) or verdict.corruption or verdict.kernel:
                break
            # A guest that stayed has one log: ticks that go on are enough to wait for.
            await asyncio.sleep(LOOK_EVERY_S if moved else LOOK_EVERY_S * 3)
        self.sample.survived = verdict.survived
        self.sample.damage = "; ".join(verdict.reasons)[:500]


def _length(directories: list[Path]) -> int:
    paths = (directory / name for directory in directories for name in SERIAL_LOGS)
    return sum(path.stat().st_size for path in paths if path.exists())


def _logs(source: Path, destination: Path) -> tuple[bytes, int | None]:
    """Return all logs in order, and where the destination's own begins (None: it has none)."""
    brought = [d / n for d in (source, destination) for n in SERIAL_LOGS if d != destination or n != SERIAL_LOGS[-1]]
    before = b"".join(path.read_bytes() for path in brought if path.exists())
    own = destination / SERIAL_LOGS[-1]
    return (before + own.read_bytes(), len(before)) if own.exists() else (before, None)
