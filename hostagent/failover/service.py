"""Hands guests over when their controller is gone: one task for each mandate that is in RUN_DIR.

While the controller lives, a task costs a look at a small file four times a second, and QEMU nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from hostagent.failover import grant
from hostagent.failover.destination import AtDestination
from hostagent.failover.side import LOOK_S, WatchOf, log
from hostagent.failover.source import AtSource
from hostagent.publisher import Publisher
from qmp_migrate.bus.messages.topics import Topics
from qmp_migrate.errors import BusError


class Handovers:
    """All mandates of this host.

    Args:
        host: Name of this host on the bus.
        run_dir: Where the guests' directories are.
        publisher: Sends events and tokens.
        topics: The topics in use.
        limit_s: Seconds without a sign of life after which a controller counts as gone.
        watch_of: Finds the watch of a guest by its name.
    """

    def __init__(
        self, host: str, run_dir: Path, publisher: Publisher, topics: Topics, limit_s: float, watch_of: WatchOf
    ) -> None:
        self._host = host
        self._run_dir = run_dir
        self._publisher = publisher
        self._topics = topics
        self._limit_s = limit_s
        self._watch_of = watch_of
        self._tasks: dict[tuple[Path, int], asyncio.Task[None]] = {}
        self._failure = ""

    async def run(self) -> None:
        """Serve for ever."""
        try:
            while True:
                self._look()
                await asyncio.sleep(LOOK_S)
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _look(self) -> None:
        found: dict[tuple[Path, int], Path] = {}
        try:
            for path in grant.mandates(self._run_dir):
                with contextlib.suppress(FileNotFoundError):
                    found[path, path.stat(follow_symlinks=False).st_mtime_ns] = path
            self._failure = ""
        except OSError as error:
            if str(error) != self._failure:
                self._failure = str(error)
                log.warning("mandates-unreadable", reason=str(error))
            return
        for key in [key for key in self._tasks if key not in found]:
            self._tasks.pop(key).cancel()
        for key, path in found.items():
            if key not in self._tasks:
                self._tasks[key] = asyncio.create_task(self._serve(path), name=f"mandate {path.name}")

    async def _serve(self, path: Path) -> None:
        try:
            given = grant.read_mandate(path)
        except (OSError, ValueError) as error:
            log.warning("mandate-refused", path=str(path), reason=str(error))
            return
        kind = AtSource if given.role == "source" else AtDestination
        side = kind(given, self._host, self._run_dir, self._publisher, self._topics, self._limit_s, self._watch_of)
        try:
            await side.run()
        except BusError as error:
            log.warning("handover-impossible", vm=given.vm, reason=error.message, hint=error.hint)
        except Exception:
            log.exception("handover-failed", vm=given.vm, migration=given.migration)
