"""The library with open connections: `Controller.migrate` in a process that has run for a while."""

from __future__ import annotations

from bench.contenders.base import Moved
from bench.fleet import Fleet
from bench.guest import Guest
from bench.measure.samples import Numbers
from bench.scenarios import DOWNTIME_LIMIT_MS


class Library:
    """`bench.contenders.library_worker` does it; see there."""

    name = "library"

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.controller_pid: int | None = fleet.worker.pid
        self.directories = fleet.directories
        self.start = fleet.start
        self.discard = fleet.discard

    async def move(self, guest: Guest) -> Moved:
        """See `Contender`."""
        request = {
            "vm": guest.name,
            "destination": self._fleet.state.hosts[1].name,
            "downtime_limit_ms": DOWNTIME_LIMIT_MS,
            "bandwidth_bytes_per_s": guest.scenario.bandwidth_bytes_per_s,
            "encrypt": guest.scenario.encrypted,
        }
        answer = await self._fleet.ask({"do": "migrate", "request": request})
        result = answer["result"]
        stages = await self._fleet.stages(result["id"], answer["began_at"], answer["ended_at"])
        return Moved(answer["wall_ms"], result, Numbers.told(result), stages)
