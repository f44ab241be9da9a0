"""A guest's devices and its command line as they are now: asked from its QEMU, and compared with what it was started with."""

from __future__ import annotations

from qmp_migrate.errors import UsageError
from qmp_migrate.migration.devices import diff
from qmp_migrate.migration.devices.diff import Present
from qmp_migrate.migration.endpoint.endpoint import Side
from qmp_migrate.qemu import devices
from qmp_migrate.qemu.devices import Devices
from qmp_migrate.vm.commandline.command_line import CommandLine


async def devices_now(side: Side, command: CommandLine) -> tuple[Devices, Present]:
    """Return a guest's devices, and its command line as it is with them.

    Args:
        side: Where it runs.
        command: What it was started with.

    Raises:
        MonitorError, TransportError: It cannot be asked.
    """
    try:
        given = diff.given_devices(command)
    except UsageError:  # the derivation says which option cannot be read
        return Devices(), Present(command)
    found = await devices.look(await side.attach(), named=frozenset(given.named), anonymous=len(given.anonymous))
    return found, diff.as_it_is(command, found)
