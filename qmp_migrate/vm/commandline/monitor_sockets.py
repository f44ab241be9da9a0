"""The two monitors that every guest of ours has, in its directory: one for the controller, one for the agent.

A monitor serves one client at a time, so the two never share one (DESIGN §4).
"""

from __future__ import annotations

import posixpath
from dataclasses import replace
from typing import Final

from qmp_migrate.vm.commandline.chardevs import monitors
from qmp_migrate.vm.commandline.command_line import CommandLine, Option
from qmp_migrate.vm.commandline.properties import escape
from qmp_migrate.vm.names import check_socket_path

CONTROLLER_SOCKET: Final = "qmp.sock"
AGENT_SOCKET: Final = "agent.sock"

_IDS: Final = {CONTROLLER_SOCKET: "qmp-migrate-qmp", AGENT_SOCKET: "qmp-migrate-agent"}


def with_monitors(command: CommandLine, directory: str) -> CommandLine:
    """Return `command` with a QMP monitor at ``qmp.sock`` and one at ``agent.sock``, adding those that are missing.

    Args:
        command: Any command line.
        directory: The guest's directory on its host, absolute.

    Raises:
        ConfigError: A socket's path would be longer than the kernel allows.
        UsageError: An option's JSON cannot be read.
    """
    served = {
        posixpath.normpath(found.chardev.path)
        for found in monitors(command)
        if found.mode == "control" and found.chardev.server and found.chardev.path
    }
    added: list[Option] = []
    for socket, identifier in _IDS.items():
        path = check_socket_path(posixpath.normpath(f"{directory}/{socket}"))
        if path not in served:
            chardev = f"socket,id={identifier},path={escape(path)},server=on,wait=off"
            added += [Option("-chardev", chardev), Option("-mon", f"chardev={identifier},mode=control")]
    return replace(command, options=(*command.options, *added))
