"""A launch that may still be under way, and whether what runs is what was to be launched."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Final

from qmp_migrate.errors import ConnectionLost
from qmp_migrate.hosts.process import LAUNCH_S
from qmp_migrate.hosts.scripts import script
from qmp_migrate.migration.endpoint.endpoint import Side

OF_A_WRAPPER: Final = frozenset({"-L"})
"""What a wrapper of QEMU may add in front: where its firmware is. The dynamic loader's options begin with two dashes."""

_LAUNCHING: Final = script("processes/launching")


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


async def launch_over(side: Side) -> bool:
    """Wait until no launch is under way in a guest's directory; tell whether there is such a directory.

    Raises:
        ConnectionLost: The launch does not end.
        RemoteError, TransportError: The host cannot be asked.
    """
    deadline = time.monotonic() + LAUNCH_S
    while (found := (await side.host.script(_LAUNCHING, [side.directory])).text) == "starting":
        if time.monotonic() > deadline:
            raise ConnectionLost("the launch does not end", host=side.name)
        await asyncio.sleep(0.2)
    return found != "absent"
