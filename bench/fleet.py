"""The rig that ``command`` and ``library`` share, and the program that keeps the library open."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.contenders.base import MoveFailed
from bench.guest import Guest
from bench.measure.stages import stages
from qmp_migrate.migration.journal.store import Journal
from qmp_migrate.rig import RigState, down, up
from qmp_migrate.settings import load

ROOT: Final = Path(__file__).resolve().parent.parent
READY_S: Final = 30.0
END_S: Final = 30.0


@dataclass(slots=True)
class Fleet:
    """A rig of two hosts that is up, and a library that is open.

    Attributes:
        state: The rig.
        worker: The process of `bench.contenders.library_worker`.
        journal: The journal that all of them write.
    """

    state: RigState
    worker: Process
    journal: Journal
    _asked: int = 0

    @classmethod
    @contextlib.asynccontextmanager
    async def up(cls, directory: Path) -> AsyncIterator[Fleet]:
        """Bring it up, and take everything down at the end, whatever is left of it."""
        async with contextlib.AsyncExitStack() as stack:
            state = await up(directory, 2)
            stack.push_async_callback(_down, directory)
            worker = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "bench.contenders.library_worker",
                str(state.settings_file),
                cwd=ROOT,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=1 << 22,
                start_new_session=True,  # so that Ctrl-C reaches us alone, and we end it
            )
            stack.push_async_callback(_end, worker)
            journal = await stack.enter_async_context(await Journal.open(load(state.settings_file).controller.state))
            fleet = cls(state, worker, journal)
            async with asyncio.timeout(READY_S):
                await fleet.ask({"do": "nothing"})
            yield fleet

    async def ask(self, wish: dict[str, Any]) -> dict[str, Any]:
        """Ask the open library for something.

        Raises:
            MoveFailed: It failed, or is gone.
        """
        assert self.worker.stdin is not None
        assert self.worker.stdout is not None
        self._asked += 1
        self.worker.stdin.write(json.dumps({**wish, "number": self._asked}).encode() + b"\n")
        while line := await self.worker.stdout.readline():
            answer: dict[str, Any] = json.loads(line)
            if answer["number"] != self._asked:
                continue  # of a question whose asker was interrupted
            if "error" in answer:
                raise MoveFailed(str(answer["error"]))
            return answer
        raise MoveFailed("the library's process has ended")

    def directories(self, guest: Guest) -> tuple[Path, Path]:
        """Return a guest's directory on both hosts."""
        source, destination = self.state.hosts[:2]
        return source.run_dir / guest.name, destination.run_dir / guest.name

    async def start(self, guest: Guest) -> None:
        """Start a guest on the first host."""
        source = self.directories(guest)[0]
        spec = guest.spec(source)
        await self.ask({"do": "start", "spec": spec, "base_dir": str(source), "on": self.state.hosts[0].name})

    async def discard(self, guest: Guest) -> None:
        """End it on whatever host it is."""
        for host, directory in zip(self.state.hosts, self.directories(guest), strict=False):
            if directory.exists():
                await self.ask({"do": "stop", "vm": guest.name, "on": host.name})

    async def stages(self, migration: str, began_at: float, ended_at: float) -> dict[str, float]:
        """Return where a migration's time went, from the journal."""
        entries = await self.journal.entries(migration)
        return stages(began_at, [(entry.act, entry.at) for entry in entries if entry.kind == "phase"], ended_at)


async def _down(directory: Path) -> None:
    await down(directory)
    await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)


async def _end(worker: Process) -> None:
    """Close its standard input, upon which it ends; insist where it does not."""
    assert worker.stdin is not None
    worker.stdin.close()
    try:
        async with asyncio.timeout(END_S):
            await worker.wait()
    except TimeoutError:
        worker.kill()
        await worker.wait()
