"""Recovery's own manners; what it makes of a dead controller's work is in `test_crash_everywhere`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from qmp_migrate.errors import JournalError
from qmp_migrate.migration import locks
from qmp_migrate.migration.journal import Journal
from qmp_migrate.migration.locks import GuestLock
from qmp_migrate.migration.phases import Phase
from qmp_migrate.migration.recovery import Wish, recover
from qmp_migrate.migration.reporter import Reporters
from tests.support.fake_qmp import FakeQemu
from tests.support.sides import side_of


async def test_a_journal_that_fails_under_the_locks_gives_them_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else nobody, not even the same person's next try, could take the guest before the process has ended."""
    released: list[str] = []

    class Noted(GuestLock):
        async def release(self) -> None:
            released.append("lock")

    async def take(*_: Any, **__: Any) -> GuestLock:
        return Noted([], 2)

    async def fail(*_: Any) -> None:
        raise JournalError("the journal failed: disk is full")

    monkeypatch.setattr(locks, "take", take)
    async with await Journal.open(f"sqlite:///{tmp_path}/j.sqlite") as journal, FakeQemu() as qemu:
        await journal.begin(id="m1", vm="web1", source="a", destination="b", mode="live", request={})
        await journal.enter("m1", Phase.LOCKED, epoch=1)
        record = await journal.get("m1")
        monkeypatch.setattr(journal, "entries", fail)
        with pytest.raises(JournalError):
            await recover(
                record,
                side_of("a", qemu),
                side_of("b", qemu),
                journal=journal,
                reporter=Reporters(),
                wish=Wish(),
                cancel=asyncio.Event(),
            )
    assert released == ["lock"]
