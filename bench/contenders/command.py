"""``qmp-migrate migrate`` as a whole process, and how long ``qmp-migrate --help`` takes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sysconfig
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from pathlib import Path
from typing import Any, Final

from bench.contenders.base import Moved, MoveFailed
from bench.fleet import Fleet
from bench.guest import Guest
from bench.measure.samples import Numbers
from bench.scenarios import DOWNTIME_LIMIT_MS, MIB

PROGRAM: Final = Path(sysconfig.get_path("scripts")) / "qmp-migrate"
"""The program as it is installed in this environment."""

CANCEL_S: Final = 30.0


class Command:
    """The command, with a journal, a bus and two sshds, as a user runs it."""

    name = "command"

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._process: Process | None = None
        self.directories = fleet.directories
        self.start = fleet.start
        self.discard = fleet.discard

    @property
    def controller_pid(self) -> int | None:
        """See `Contender`."""
        return self._process.pid if self._process else None

    async def move(self, guest: Guest) -> Moved:
        """See `Contender`."""
        state, scenario = self._fleet.state, guest.scenario
        words = [
            *("--config", str(state.settings_file), "migrate", guest.name, "--to", state.hosts[1].name, "--json"),
            *("--downtime-limit", f"{DOWNTIME_LIMIT_MS}ms"),
            *(["--bandwidth", f"{scenario.bandwidth_bytes_per_s // MIB}MiB"] if scenario.bandwidth_bytes_per_s else []),
            *([] if scenario.encrypted else ["--no-encrypt"]),
        ]
        began, began_at = time.monotonic(), time.time()
        self._process = process = await asyncio.create_subprocess_exec(
            PROGRAM, *words, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, start_new_session=True
        )
        try:
            out, err = await process.communicate()
            wall_ms, ended_at = (time.monotonic() - began) * 1000, time.time()
        except BaseException:
            await _cancel(process)
            raise
        finally:
            self._process = None
        if process.returncode != 0:
            raise MoveFailed(f"exit {process.returncode}: {err.decode(errors='replace')[-1000:]}")
        result: dict[str, Any] = json.loads(out)
        stages = await self._fleet.stages(result["id"], began_at, ended_at)
        return Moved(wall_ms, result, Numbers.told(result), stages)


async def _cancel(process: Process) -> None:
    """Interrupt it, as Ctrl-C does, and give it the time to bring the guest to a proven state."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)
        try:
            async with asyncio.timeout(CANCEL_S):
                await process.communicate()
        except TimeoutError:
            process.kill()
            await process.communicate()


async def time_help(repeats: int) -> list[float]:
    """Return how long ``qmp-migrate --help`` took each time, milliseconds, after one run that warms the caches."""
    took = []
    for _ in range(repeats + 1):
        began = time.monotonic()
        process = await asyncio.create_subprocess_exec(PROGRAM, "--help", stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL)
        code = await process.wait()
        took.append((time.monotonic() - began) * 1000)
        if code != 0:
            raise MoveFailed(f"{PROGRAM} --help: exit {code}")
    return took[1:]
