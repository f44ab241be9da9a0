"""One migration of two fake QEMUs, from its request to its end, and what must be true then."""

from __future__ import annotations

import asyncio

from qmp_migrate.errors import MigrationFailed
from qmp_migrate.migration.journal.store import Journal
from qmp_migrate.migration.lifecycle.context import Course
from qmp_migrate.migration.lifecycle.engine import Engine
from qmp_migrate.migration.lifecycle.recorder import Chronicle
from qmp_migrate.migration.model.phases import Phase
from qmp_migrate.migration.model.reporter import Reporters
from qmp_migrate.migration.model.request import MigrationRequest, MigrationResult, Mode
from tests.support.fakes.fake_qemu_pair import ARGV, QemuPair
from tests.support.fakes.transport_profiles import agreed


async def migrate(
    pair: QemuPair, journal: Journal, *, cancel: asyncio.Event | None = None, mode: Mode = "live"
) -> Engine:
    """Move the pair's guest; return the engine once it has ended."""
    request = MigrationRequest("web1", "b", "a", mode=mode)
    await journal.begin(id=request.id, vm="web1", source="a", destination="b", mode=mode, request={})
    await journal.enter(request.id, Phase.PREFLIGHT)
    chronicle = Chronicle(request, journal, Reporters(), MigrationResult(request.id, "web1", "a", "b", mode))
    profile = agreed(request)
    course = Course(request, pair.side("a"), pair.side("b"), chronicle, running=pair.running, profile=profile)
    engine = Engine(course, ARGV, cancel or asyncio.Event())
    try:
        async with asyncio.timeout(600):
            await engine.run()
    finally:
        await course.source.detach()
        await course.destination.detach()
    return engine


def lies(pair: QemuPair, engine: Engine) -> list[str]:
    """Return where what the engine says is not the case, and what must not have happened."""
    result = engine.course.chronicle.result
    here, there = pair.source, pair.destination
    found = list(pair.wrong)

    def claim(what: str, holds: bool) -> None:
        if not holds:
            found.append(what)

    claim("no copy runs", here.running or there.running or not pair.running)
    claim("its user had paused it, and it runs", pair.running or not (here.running or there.running))
    claim("the error and the outcome differ", (engine.error is None) == (result.outcome == "completed"))
    claim("the document and the error differ", (engine.error is None) == (result.error is None))
    match result.owner:
        case "destination":
            claim("it says destination, and the guest does not run there", there.running or not pair.running)
            claim("the source is left", not here.alive)
        case "source":
            claim("it says source, and the guest does not run there", here.running or not pair.running)
            claim("the destination is left", not there.alive)
            claim("the key is left in force", not here.parameters["tls-creds"])
            claim("capabilities are left", not any(here.capabilities.values()))
            if isinstance(engine.error, MigrationFailed):
                claim("it is safe, and the error says it is not", engine.error.safe_at_source)
        case owner:
            claim(f"it says {owner}", False)
    return found
