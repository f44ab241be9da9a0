"""What a guest leaves in its host's ``RUN_DIR/NAME`` is removed, once its QEMU is proven gone."""

from __future__ import annotations

import contextlib

from qmp_migrate.errors import QmpMigrateError
from qmp_migrate.hosts.process_scripts import DISCARD
from qmp_migrate.migration.endpoint.endpoint import Side


async def remove_guest_directory(side: Side) -> None:
    """Remove what a guest left in its host's ``RUN_DIR/NAME``; see `hosts.process_scripts.DISCARD`.

    Raises:
        RemoteError, TransportError: It could not be removed: a process lives there that was started there, for example.
    """
    await side.host.script(DISCARD, [side.directory])


async def discard_destination(side: Side) -> list[str]:
    """Remove a destination's files after its QEMU is proven gone.

    Returns:
        What could not be removed, one line each.
    """
    if side.process is None:
        return []
    if side.fenced:
        return [f"{side.directory} on {side.name} stays, and what is in it: qmp-migrate doctor {side.name} --leftovers"]
    with contextlib.suppress(QmpMigrateError):
        await side.detach()
    try:
        await remove_guest_directory(side)
    except QmpMigrateError as error:
        return [f"{side.directory} on {side.name} could not be removed: {error}"]
    return []
