"""Was the destination built as it was to be?

QEMU takes a guest into a machine with another CPU model or one device more without a word.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from qmp_migrate.errors import CommandFailed, LaunchFailed, MonitorLost
from qmp_migrate.hosts.process import command_line
from qmp_migrate.migration.endpoint.endpoint import Side
from qmp_migrate.migration.endpoint.launch import built_as


async def see(side: Side, argv: Sequence[str]) -> None:
    """Compare what runs on a side with what was to be started there.

    Args:
        side: The destination; launched.
        argv: Its command line.

    Raises:
        LaunchFailed: It runs with another one.
        MonitorLost: It has ended.
    """
    assert side.process is not None
    try:
        found = await command_line(side.host, side.process)
    except CommandFailed as error:
        raise MonitorLost("the destination QEMU has ended", host=side.name) from error
    if not built_as(found, argv):
        raise LaunchFailed(
            "the destination QEMU runs with another command line than it was given",
            stderr=" ".join(shlex.quote(word) for word in found),
            hint="does the host's `qemu` setting name a wrapper that changes options? it must pass them on as they are",
            host=side.name,
        )
