"""A clock that goes forward when nobody has anything to do: what waits for a time limit takes no time, and a busy machine
makes no limit pass.

For what happens in one process and its event loop alone: fake QEMUs and hosts, and a journal that the loop itself writes.
Another process, or a thread, would be given no time at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any, Final, TypeVar

import looptime
import pytest

from qmp_migrate.migration.journal.schema import open_engine
from qmp_migrate.migration.journal.store import Journal

WRITE_S: Final = 0.002
"""How long a write to the journal takes, on the virtual clock: the fake QEMUs go on meanwhile, as real ones do."""

_T = TypeVar("_T")


@contextlib.contextmanager
def virtual_time() -> Iterator[None]:
    """Put the running event loop, and `time.monotonic` with it, on a virtual clock that begins now."""
    running = asyncio.get_running_loop()
    assert isinstance(running, asyncio.BaseEventLoop)
    begins = running.time()
    loop = looptime.patch_event_loop(running, start=begins, noop_cycles=0, _enabled=False)
    with pytest.MonkeyPatch.context() as patch, loop.looptime_enabled():
        patch.setattr(time, "monotonic", loop.time)
        yield


class InLoop(Executor):
    """Runs everything at once, in the thread that asks for it."""

    def submit(self, work: Callable[..., _T], /, *args: Any, **named: Any) -> Future[_T]:
        done: Future[_T] = Future()
        try:
            done.set_result(work(*args, **named))
        except Exception as error:
            done.set_exception(error)
        return done


class VirtualJournal(Journal):
    """A journal on disk that can stand on a virtual clock: written in the event loop's thread, in `WRITE_S` of that clock."""

    @classmethod
    async def open(cls, url: str) -> VirtualJournal:
        return cls(open_engine(url), InLoop(), url)

    async def _run(self, work: Callable[..., _T], *args: Any) -> _T:
        try:
            return await super()._run(work, *args)
        finally:
            await asyncio.sleep(WRITE_S)


async def virtual_journal(directory: Path) -> AsyncIterator[VirtualJournal]:
    """Open a journal on a virtual clock; both last as long as the iteration."""
    with virtual_time():
        async with await VirtualJournal.open(f"sqlite:///{directory}/journal.sqlite") as opened:
            # Controllers die in these tests, hundreds of them, and machines do not.
            await opened.transact(lambda connection: connection.exec_driver_sql("PRAGMA synchronous = OFF"))
            yield opened
