"""A guest that is shut down: its definition on a host, which is the command line in ``RUN_DIR/NAME/argv.json``."""

from __future__ import annotations

import json
from typing import Final

from qmp_migrate.errors import FileFailed, GuestUnknown
from qmp_migrate.hosts.scripts import script
from qmp_migrate.migration.endpoint.endpoint import Side
from qmp_migrate.vm.commandline.command_line import CommandLine

_ONLY_FOR_THE_WAY: Final = frozenset({"S", "incoming", "loadvm"})

_DEFINED: Final = script("cold/defined")


async def is_defined(side: Side) -> bool:
    """Tell whether a guest has a definition on a host; one that is on its way to another host does not count.

    Raises:
        CommandFailed, TransportError: The host cannot tell.
    """
    return (await side.host.script(_DEFINED, [side.directory])).text == "defined"


async def read(side: Side) -> CommandLine:
    """Return a guest's definition.

    Raises:
        GuestUnknown: It has none there.
        FileFailed: It cannot be read.
    """
    path = f"{side.directory}/argv.json"
    if not await is_defined(side):
        raise GuestUnknown(
            f"{side.name} has no definition of a guest {side.vm!r}", hint="see: qmp-migrate vm list", host=side.name
        )
    try:
        words = json.loads(await side.host.read_file(path))
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words) or not words:
            raise ValueError("it is no list of words")
    except ValueError as error:
        raise FileFailed(f"{path} is no command line: {error}", host=side.name) from error
    return CommandLine.parse(words)


def bootable(command: CommandLine) -> CommandLine:
    """Return a command line that boots: without what was only for the way of a running guest to this host."""
    return CommandLine(command.binary, tuple(o for o in command.options if o.name not in _ONLY_FOR_THE_WAY))


def written(command: CommandLine) -> bytes:
    """Return the content of ``argv.json``."""
    return json.dumps(command.argv(), indent=1).encode() + b"\n"
