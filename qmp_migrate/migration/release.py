"""After the guest runs at the destination: end the source, take what belongs to the guest along, leave nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable
from typing import Final

import structlog

from qmp_migrate.errors import Fenced, QmpMigrateError
from qmp_migrate.hosts.process import wait_gone
from qmp_migrate.migration import rollback, wiring
from qmp_migrate.migration.chronicle import Chronicle
from qmp_migrate.migration.copying import Copying
from qmp_migrate.migration.request import MigrationResult
from qmp_migrate.migration.side import Side
from qmp_migrate.migration.wiring import Wires
from qmp_migrate.qemu import encryption
from qmp_migrate.qemu import migration as qmp

QUIT_S: Final = 20.0
CONSOLE_LOG_BYTES: Final = 1 << 20
"""So much of a guest's serial log moves along with it, as ``serial.log.1``."""

_TAIL: Final = """
for name in serial.log.1 serial.log; do [ ! -f "$1/$name" ] || cat -- "$1/$name"; done | tail -c "$2"
"""

log = structlog.get_logger(__name__)


async def release_source(source: Side, destination: Side, wires: Wires, chronicle: Chronicle) -> bool:
    """End the source and clean both hosts. Never raises for the guest's sake: what fails becomes a warning.

    Returns:
        Whether all of it is done; what is not, `recover` does later. The source's files stay until the guest's serial log
        has arrived.

    Raises:
        JournalError: The intent could not be written.
    """
    await chronicle.intent("release-source", host=source.name)
    unwired = asyncio.create_task(
        _done(chronicle, "the migration settings stay in force at the destination", _unwire(destination, wires))
    )
    done = False
    try:
        gone = source.fenced or await _end(source)
        if source.fenced:
            done = True
            chronicle.warn(
                f"{source.directory} on {source.name} stays, and what is in it: "
                f"qmp-migrate doctor {source.name} --leftovers"
            )
        elif gone:
            done = await _clean_source(source, destination, wires, chronicle)
        else:
            pid = source.process.pid if source.process else "?"
            chronicle.warn(
                f"the source QEMU on {source.name} could not be proven gone; it is stopped for good and must not be "
                f"continued: end it (pid {pid})"
            )
        chronicle.did("release-source", gone=gone, done=done)
    finally:
        done = await unwired and done
    return done


async def _clean_source(source: Side, destination: Side, wires: Wires, chronicle: Chronicle) -> bool:
    carried, keys = await asyncio.gather(
        _done(chronicle, "the guest's serial log stayed behind", _carry_console_log(source, destination)),
        wiring.remove_keys(wires),
    )
    chronicle.result.warnings += keys
    what = f"{source.directory} on {source.name} could not be removed"
    return carried and await _done(chronicle, what, rollback.remove_guest_directory(source)) and not keys


async def _done(chronicle: Chronicle, what: str, work: Awaitable[None]) -> bool:
    """Do something that nothing depends on; where it fails, warn that `what`, and return False."""
    try:
        await work
    except Fenced:
        raise
    except QmpMigrateError as error:
        chronicle.warn(f"{what}: {error}")
        return False
    return True


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


async def _carry_console_log(source: Side, destination: Side) -> None:
    """Move the guest's serial output so far along with it, like a rotated log."""
    done = await source.host.script(_TAIL, [source.directory, str(CONSOLE_LOG_BYTES)])
    if done.stdout:
        await destination.host.write_file(f"{destination.directory}/serial.log.1", done.stdout, mode=0o600)


async def _unwire(destination: Side, wires: Wires) -> None:
    """It is the next migration's source: it must not carry this one's key and capabilities."""
    monitor = await destination.attach()
    if wires.credentials is not None:
        await encryption.remove_credentials(monitor, wires.credentials)
    if wires.destination is not None:
        await qmp.set_capabilities(monitor, wires.destination, {})


async def take_numbers(source: Side, copying: Copying | None, result: MigrationResult, *, running: bool) -> None:
    """Put QEMU's own figures into the result; asked until they are there: right after `completed` 7.2 may still say 0.

    Args:
        source: Asked before it is ended.
        copying: Its last numbers stand in where QEMU gives none once completed; None: this controller saw none.
        result: Filled.
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
        result.transferred_bytes = ram.transferred
        result.passes = ram.passes
        result.throughput_bytes_per_s = ram.transferred * 1000 // max(1, info.total_ms - info.setup_ms)
