"""Back to one owner on hosts that need more time than others."""

from __future__ import annotations

import asyncio
from typing import Any

from qmp_migrate.errors import MigrationFailed
from qmp_migrate.migration.endpoint.endpoint import LOOK_S
from qmp_migrate.migration.journal.store import Journal
from tests.support.fakes.engine_run import lies, migrate
from tests.support.fakes.fake_qemu_pair import QemuPair

SLOW = 2.0


async def test_what_the_last_act_brings_about_is_looked_at_also_on_a_slow_host(journal: Journal) -> None:
    """The source hangs in a network that is cut; the yank frees it, and it answers when it has come to that."""
    async with QemuPair(busy=True, time_factor=SLOW) as pair:
        yank = pair.source._replies["yank"][0]

        def on_becoming(qemu: object, status: str) -> None:
            if status == "active" and qemu is pair.destination:
                pair.source.main_loop.clear()
                pair.destination.main_loop.clear()

        def freed_later(arguments: dict[str, Any]) -> Any:
            asyncio.get_running_loop().call_later(LOOK_S, pair.source.main_loop.set)
            return yank(arguments)

        pair.source.on("yank", freed_later)
        pair.on_becoming = on_becoming
        engine = await migrate(pair, journal)
        assert lies(pair, engine) == []
        assert isinstance(engine.error, MigrationFailed)
        assert engine.course.chronicle.result.owner == "source"
