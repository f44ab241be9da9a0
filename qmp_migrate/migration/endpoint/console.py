"""A guest's serial log moves along with it."""

from __future__ import annotations

from typing import Final

from qmp_migrate.hosts.scripts import script
from qmp_migrate.migration.endpoint.endpoint import Side

CONSOLE_LOG_BYTES: Final = 1 << 20
"""So much of a guest's serial log moves along with it, as ``serial.log.1``."""

_TAIL: Final = script("files/tail_of_serial_log")


async def carry_console_log(source: Side, destination: Side) -> None:
    """Move the guest's serial output so far along with it, like a rotated log."""
    done = await source.host.script(_TAIL, [source.directory, str(CONSOLE_LOG_BYTES)])
    if done.stdout:
        await destination.host.write_file(f"{destination.directory}/serial.log.1", done.stdout, mode=0o600)
