"""``python -m tests.faults.soak``: one guest with a disk goes to and fro, and its memory is compared each time.

After the source has completed and before ``cont``, the memory of both QEMUs is written to files and hashed: they must be
the same. The controller is this process; its memory, descriptors and threads must not grow.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import logging
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil
import structlog

from qmp_migrate.fleet.controller import Controller
from qmp_migrate.migration.lifecycle.engine import Engine
from qmp_migrate.migration.precopy.runner import Copying
from qmp_migrate.rig.guest.disk_journal import check_journal
from qmp_migrate.rig.guest.oracle import judge
from qmp_migrate.settings import load
from tests.faults.lab.spy import Spy, Watch
from tests.faults.lab.stand import Stand, stand
from tests.support.real.lab import Guest

MEMORY_BYTES: Final = (128 * 1024 + 8) * 1024
WORKLOAD: Final = "qm.rate=8 qm.ws=16 qm.tick=10"
GROWTH: Final = {"rss_bytes": 16 << 20, "descriptors": 4, "threads": 2}
"""How much the median of the last quarter may exceed that of the first one."""

WARM_UP: Final = 5
"""Moves before the first sample: what is loaded and made once is no growth."""


@dataclass
class Soak:
    """A soak under way."""

    place: Stand
    controller: Controller
    guest: Guest
    spies: dict[str, Spy]
    differences: int = 0
    samples: list[dict[str, int]] = field(default_factory=list)
    logs: list[bytes] = field(default_factory=list)

    async def move(self, source: str, destination: str) -> None:
        """Move the guest once, with the comparison."""
        commit = Engine._commit

        async def compared(engine: Engine, copying: Copying) -> None:
            one, other = await asyncio.gather(self._hash(source), self._hash(destination))
            self.differences += one != other
            if one != other:
                print(f"memory differs: {source} {one}, {destination} {other}", flush=True)
            await commit(engine, copying)

        Engine._commit = compared  # type: ignore[method-assign]
        try:
            await self.controller.migrate(self.guest.name, to=destination)
        finally:
            Engine._commit = commit  # type: ignore[method-assign]

    async def _hash(self, host: str) -> str:
        path = self.place.lab.files / f"memory-{host}"
        answer: Any = await asyncio.to_thread(
            self.spies[host].ask, "pmemsave", {"val": 0, "size": MEMORY_BYTES, "filename": str(path)}, timeout=60
        )
        assert "return" in answer, answer
        return await asyncio.to_thread(_sha256, path)

    def sample(self) -> None:
        """Note what this process uses."""
        me = psutil.Process()
        self.samples.append(
            {"rss_bytes": me.memory_info().rss, "descriptors": me.num_fds(), "threads": me.num_threads()}
        )

    def growth(self) -> list[str]:
        """Say what has grown."""
        rest = self.samples[WARM_UP:]
        quarter = max(1, len(rest) // 4)
        found = []
        for name, allowed in GROWTH.items():
            first = statistics.median(sample[name] for sample in rest[:quarter])
            last = statistics.median(sample[name] for sample in rest[-quarter:])
            print(f"{name}: {first:.0f} in the first quarter, {last:.0f} in the last", flush=True)
            if last - first > allowed:
                found.append(f"{name} grew from {first:.0f} to {last:.0f}")
        return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    path.unlink()
    return digest


def main() -> int:
    """Run it; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description="Move one guest to and fro.")
    parser.add_argument("--moves", type=int, default=200, metavar="N", help="how often (default: 200)")
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with stand(6) as place, place.guest(append=WORKLOAD) as guest:
        spies = {host: Spy(host, place.spies(host) / f"{guest.name}.sock") for host in ("a", "b")}
        with Watch(spies["a"], spies["b"]) as watch:
            guest.wait_ready("a")
            return asyncio.run(_soak(place, guest, watch, spies, options.moves))


async def _soak(place: Stand, guest: Guest, watch: Watch, spies: dict[str, Spy], moves: int) -> int:
    problems: list[str] = []
    began = time.monotonic()
    async with Controller.open(load(place.settings())) as controller:
        soak = Soak(place, controller, guest, spies)
        soak.sample()
        for number in range(moves):
            source, destination = ("a", "b") if number % 2 == 0 else ("b", "a")
            await soak.move(source, destination)
            soak.sample()
            verdict = judge(guest.logs(destination))
            if verdict.tick_faults or verdict.corruption or verdict.ended or watch.overlaps():
                problems.append(f"move {number}: {verdict.reasons} {watch.overlaps()}")
                break
            if (number + 1) % 20 == 0:
                print(f"{number + 1} moves, {soak.differences} differences", flush=True)
        last = "b" if moves % 2 else "a"
        # Only the end of its log travels along: that it once began is not in it any more after many moves.
        verdict = await asyncio.to_thread(
            guest.wait, last, lambda v: bool(v.tick_faults or v.corruption) or v.sweeps_ok_after_handover > 0
        )
        if verdict.tick_faults or verdict.corruption or verdict.ended:
            problems.append(f"at the end: {verdict.reasons}")
        await controller.stop(guest.name, on=last, force=True)
    assert guest.disk is not None
    lost = check_journal(guest.disk.read_bytes(), verdict.journal).lost
    problems += [f"acknowledged records are not on the disk: {lost[:5]}"] if lost else []
    problems += [f"the memory differed {soak.differences} times"] if soak.differences else []
    problems += soak.growth()
    each = (time.monotonic() - began) / max(1, moves)
    print(f"{moves} moves, {soak.differences} differences of memory, {each:.1f} s each")
    for problem in problems:
        print(f"FAIL {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
