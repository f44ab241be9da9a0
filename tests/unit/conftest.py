"""What unit tests share: a virtual clock, and a journal that stands on it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from qmp_migrate.migration.journal.store import Journal
from tests.support.virtual_time import virtual_journal, virtual_time


@pytest.fixture
async def virtual_clock() -> AsyncIterator[None]:
    """Let the test's event loop stand on a virtual clock; see `tests.support.virtual_time`."""
    with virtual_time():
        yield


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    """A journal on a virtual clock."""
    async for opened in virtual_journal(tmp_path):
        yield opened
