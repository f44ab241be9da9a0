"""Recovery's own manners; what it makes of a dead controller's work is in `test_crash_everywhere`."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from qmp_migrate.errors import JournalError
from qmp_migrate.migration.endpoint.endpoint import Side
from qmp_migrate.migration.journal.store import Journal
from qmp_migrate.migration.lifecycle.recovery import Wish, recover
from qmp_migrate.migration.model.phases import Phase
from qmp_migrate.migration.model.reporter import Reporters
from tests.support.fakes.fake_qemu_pair import Held, QemuPair


async def test_a_journal_that_fails_under_the_locks_gives_them_back(journal: Journal) -> None:
    """Else nobody, not even the same person's next try, could take the guest before the process has ended."""
    held: list[str] = []

    class Noted(Held):
        def __init__(self, host: str) -> None:
            super().__init__()
            self._host = host
            held.append(host)

        async def release(self) -> None:
            held.remove(self._host)

    async def fail(*_: Any) -> None:
        assert held == ["a", "b"]
        raise JournalError("the journal failed: disk is full")

    def lockable(side: Side) -> Side:
        async def hold_lock(_path: str, *, owner: str) -> Held:
            return Noted(side.name)

        side.host.hold_lock = hold_lock  # type: ignore[method-assign]
        return side

    async with QemuPair() as pair:
        await journal.begin(id="m1", vm="web1", source="a", destination="b", mode="live", request={})
        await journal.enter("m1", Phase.LOCKED, epoch=1)
        record = await journal.get("m1")
        journal.entries = fail  # type: ignore[method-assign]
        with pytest.raises(JournalError):
            await recover(
                record,
                lockable(pair.side("a")),
                lockable(pair.side("b")),
                journal=journal,
                reporter=Reporters(),
                wish=Wish(),
                cancel=asyncio.Event(),
            )
    assert held == []
