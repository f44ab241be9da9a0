"""One measurement: a guest is booted, watched while a contender moves it, looked at, and removed."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from typing import Final

from bench.contenders.base import Contender, MoveFailed
from bench.guest import SOCKET, Guest, settled, went_on
from bench.measure.cpu import cpu_seconds
from bench.measure.observer import Observer
from bench.measure.qmp import QmpFailed
from bench.measure.samples import Sample

LIMIT_S: Final = 150.0
DISCARD_S: Final = 60.0


@dataclass(slots=True)
class _Meter:
    """The controller's CPU time between two moments."""

    contender: Contender
    begun: float | None = None
    ended: float | None = None

    def begin(self) -> None:
        self.begun = self._now()

    def end(self) -> None:
        self.ended = self._now()

    def _now(self) -> float | None:
        pid = self.contender.controller_pid
        return cpu_seconds(pid) if pid is not None else None

    @property
    def used_ms(self) -> float | None:
        return None if self.begun is None or self.ended is None else (self.ended - self.begun) * 1000


async def take(contender: Contender, guest: Guest, number: int) -> Sample:
    """Take one sample. What goes wrong on the way is in it; only what cannot be cleaned up is raised.

    Args:
        contender: Who moves.
        guest: What is moved.
        number: The round, from 1.

    Raises:
        MoveFailed, TimeoutError: Something is left that would disturb the next sample.
    """
    sample = Sample(guest.scenario.name, contender.name, number, load1=round(os.getloadavg()[0], 2))
    try:
        async with asyncio.timeout(LIMIT_S):
            await _measure(contender, guest, sample)
    except TimeoutError:
        sample.error = f"not done within {LIMIT_S:g} s"
    except (MoveFailed, QmpFailed, OSError) as error:
        sample.error = str(error)
    finally:
        async with asyncio.timeout(DISCARD_S):
            await contender.discard(guest)
    return sample


async def _measure(contender: Contender, guest: Guest, sample: Sample) -> None:
    source, destination = contender.directories(guest)
    await contender.start(guest)
    await settled(source)
    meter = _Meter(contender)
    async with Observer.watching(
        source / SOCKET, destination / SOCKET, on_active=meter.begin, on_stopped=meter.end
    ) as observer:
        moved = await contender.move(guest)
        await observer.finish()
    sample.wall_ms = round(moved.wall_ms, 1)
    sample.stages = moved.stages
    sample.qemu = observer.numbers or moved.numbers
    sample.blackout_ms = observer.blackout_ms
    sample.handover_ms = observer.handover_ms
    sample.copying_ms = observer.copying_ms
    sample.controller_cpu_ms = meter.used_ms
    if moved.result is not None:
        sample.told_blackout_ms = moved.result["blackout_ms"]
    sample.guest_went_on, sample.guest_rate_mib_s = await went_on(source, destination)
