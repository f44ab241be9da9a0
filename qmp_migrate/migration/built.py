"""Was the destination built as it was to be?

QEMU takes a guest into a machine with another CPU model or one device more without a word.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Final

from qmp_migrate.errors import CommandFailed, LaunchFailed, MonitorLost
from qmp_migrate.hosts.process import command_line
from qmp_migrate.migration.side import Side

OF_A_WRAPPER: Final = frozenset({"-L"})
"""What a wrapper of QEMU may add in front: where its firmware is. The dynamic loader's options begin with two dashes."""


def built_as(found: Sequence[str], wanted: Sequence[str]) -> bool:
    """Tell whether a process was started with a command line: as it is, or through a wrapper that passes it on.

    Args:
        found: The process's command line.
        wanted: What was to be started; its first word is the program, which a wrapper replaces.
    """
    options = list(wanted[1:])
    before = len(found) - len(options)
    if before < 1 or list(found[before:]) != options:
        return False
    added = [word for word in found[1:before] if word.startswith("-") and not word.startswith("--")]
    return set(added) <= OF_A_WRAPPER


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
