"""After the guest runs at the destination: end the source, take what belongs to the guest along, leave nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable
from typing import Final

import structlog

from qmp_migrate.errors import Fenced, QmpMigrateError
from qmp_migrate.hosts.process import wait_gone
from qmp_migrate.migration.endpoint import cleanup, console
from qmp_migrate.migration.endpoint.endpoint import Side
from qmp_migrate.migration.lifecycle.recorder import Chronicle
from qmp_migrate.migration.model.request import MigrationResult
from qmp_migrate.migration.precopy.runner import Copying
from qmp_migrate.migration.transport import setup
from qmp_migrate.migration.transport.negotiation import Profile
from qmp_migrate.migration.transport.setup import Wires
from qmp_migrate.qemu import migration as qmp

QUIT_S: Final = 20.0


log = structlog.get_logger(__name__)


async def release_source(source: Side, destination: Side, wires: Wires, chronicle: Chronicle) -> list[str]:
    """End the source and clean both hosts. Never raises for the guest's sake; may be called again until all is done.

    Returns:
        What is not done, one line each; the source's files stay until the guest's serial log has arrived.

    Raises:
        JournalError: The intent could not be written.
        Fenced: Another controller has the guest.
    """
    await chronicle.intent("release-source", host=source.name)
    unwired = asyncio.create_task(
        _problem(
            "the migration settings stay in force at the destination", setup.unwire_destination(destination, wires)
        )
    )
    problems: list[str] = []
    try:
        if source.fenced:
            chronicle.warn(
                f"{source.directory} on {source.name} stays, and what is in it: "
                f"qmp-migrate doctor {source.name} --leftovers"
            )
        elif await _end(source):
            problems += await _clean_source(source, destination, wires)
        else:
            pid = source.process.pid if source.process else "?"
            problems.append(
                f"the source QEMU on {source.name} could not be proven gone; it is stopped for good and must not be "
                f"continued: end it (pid {pid})"
            )
        chronicle.did("release-source", left=problems)
    finally:
        problems += await unwired
    return problems


async def _clean_source(source: Side, destination: Side, wires: Wires) -> list[str]:
    not_carried, keys = await asyncio.gather(
        _problem("the guest's serial log stayed behind", console.carry_console_log(source, destination)),
        setup.remove_keys(wires),
    )
    problems = not_carried + keys
    if not problems:
        what = f"{source.directory} on {source.name} could not be removed"
        problems = await _problem(what, cleanup.remove_guest_directory(source))
    return problems


async def _problem(what: str, work: Awaitable[None]) -> list[str]:
    """Do something that nothing depends on; where it fails, return a line that says `what`.

    Raises:
        Fenced: Another controller has the guest.
    """
    try:
        await work
    except Fenced:
        raise
    except QmpMigrateError as error:
        return [f"{what}: {error}"]
    return []


async def _end(source: Side) -> bool:
    assert source.process is not None
    try:
        with contextlib.suppress(QmpMigrateError):
            await (await source.attach()).execute("quit")
        await source.detach()
        await source.host.connect()
        if await wait_gone(source.host, source.process, QUIT_S):
            return True
    except QmpMigrateError as error:
        log.warning("source-release", error=str(error))
    return await source.kill()


async def take_numbers(
    source: Side, copying: Copying | None, result: MigrationResult, profile: Profile, *, running: bool
) -> None:
    """Put QEMU's own figures into the result; asked until they are there: right after `completed` 7.2 may still say 0.

    Args:
        source: Asked before it is ended.
        copying: Its last numbers stand in where QEMU gives none once completed; None: this controller saw none.
        result: Filled.
        profile: How memory was to travel; that it did is seen from QEMU's figures.
        running: The guest ran; a paused one has no downtime to wait for.

    Raises:
        MonitorError: The source does not answer any more.
    """
    monitor = await source.attach()
    for _ in range(20):
        info = await qmp.query(monitor)
        if info.total_ms and (info.downtime_ms or not running):
            break
        await asyncio.sleep(0.01)
    ram = info.ram or (copying.last.ram if copying else None)
    result.qemu = {"total_ms": info.total_ms, "downtime_ms": info.downtime_ms, "setup_ms": info.setup_ms}
    if ram is not None:
        result.ram_bytes = ram.total
        result.channels = profile.channels if ram.multifd_bytes else 1
        result.transferred_bytes = ram.transferred
        counted = copying is not None and copying.counter is not None and copying.counter.number
        result.passes = counted or ram.passes
        result.throughput_bytes_per_s = ram.transferred * 1000 // max(1, info.total_ms - info.setup_ms)
