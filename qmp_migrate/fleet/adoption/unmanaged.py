"""QEMUs that somebody else has started: found in ``/proc`` of a host, and what can be told of each without touching it."""

from __future__ import annotations

import base64
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from qmp_migrate.errors import AdoptionRefused, QmpMigrateError, UsageError
from qmp_migrate.hosts import Host
from qmp_migrate.hosts.process import ProcessId
from qmp_migrate.hosts.scripts import script
from qmp_migrate.vm.commandline.absolute_paths import starting_directory, with_absolute_paths
from qmp_migrate.vm.commandline.chardevs import monitors
from qmp_migrate.vm.commandline.command_line import CommandLine

LIST: Final = script("adoption/list_unmanaged")

LIBVIRT_MARKS: Final = ("/var/lib/libvirt/qemu/", "/run/libvirt/", "master-key.aes")


@dataclass(frozen=True, slots=True)
class Foreign:
    """One QEMU of a host.

    Attributes:
        process: Which one.
        uid: Whose.
        cwd: The directory that its relative paths count from; ``""``: nobody can tell.
        argv: Its command line, as the kernel has it.
        command: The same, read, with paths that mean the same from anywhere.
        unit: The systemd service that it runs in; ``""``: none.
        restart: That service's ``Restart=``; ``""``: unknown.
    """

    process: ProcessId
    uid: int
    cwd: str
    argv: tuple[str, ...]
    command: CommandLine
    unit: str = ""
    restart: str = ""

    @property
    def monitor_paths(self) -> list[str]:
        """UNIX sockets at which it serves QMP, in the order of its command line."""
        return [
            posixpath.normpath(found.chardev.path)
            for found in monitors(self.command)
            if found.mode == "control" and found.chardev.server and found.chardev.path
        ]

    @property
    def other_monitors(self) -> list[str]:
        """Its other monitors, as they stand in the command line: no QMP, or not on a UNIX socket that it serves."""
        return [
            found.chardev.option.brief
            for found in monitors(self.command)
            if not (found.mode == "control" and found.chardev.server and found.chardev.path)
        ]

    @property
    def of_libvirt(self) -> bool:
        """Whether libvirt has started it, and watches over it."""
        return any(mark in word for word in self.argv for mark in LIBVIRT_MARKS)


async def list_qemus(host: Host) -> list[Foreign]:
    """Return every QEMU of a host that can be seen.

    Raises:
        TransportError, CommandFailed: The host cannot be asked.
    """
    await host.connect()
    return parse((await host.script(LIST)).text)


def parse(text: str) -> list[Foreign]:
    """Read what the script printed; lines that cannot be read are left out."""
    boot, found = "", []
    for line in text.splitlines():
        words = line.split()
        if len(words) == 2 and words[0] == "boot":
            boot = words[1]
        elif len(words) == 10 and words[0] == "qemu":
            try:
                found.append(_foreign(words[1:], boot))
            except (ValueError, QmpMigrateError):
                continue
    return found


def _foreign(words: Sequence[str], boot: str) -> Foreign:
    pid, start, uid, cwd, pwd, opened, unit, restart, cmdline = words
    argv = tuple(_text(cmdline).split("\0")[:-1])
    command = CommandLine.parse(argv)
    where = starting_directory(
        command, now=_text(cwd).rstrip("\n"), pwd=_text(pwd).rstrip("\n"), opened=_text(opened).splitlines()
    )
    command = with_absolute_paths(command, where)
    if not command.options:
        raise ValueError("no QEMU that runs a guest")
    unit, restart = ("" if word == "-" else word for word in (unit, restart))
    return Foreign(ProcessId(int(pid), int(start), boot), int(uid), where, argv, command, unit, restart)


def _text(word: str) -> str:
    return "" if word == "-" else base64.b64decode(word).decode("utf-8", "surrogateescape")


def choose(found: Sequence[Foreign], target: str, host: str) -> Foreign:
    """Return the QEMU that a person means.

    Args:
        found: All of the host.
        target: A pid, or the path of a monitor.
        host: The host's name, for messages.

    Raises:
        AdoptionRefused: There is none, or more than one.
        UsageError: It is neither a pid nor an absolute path.
    """
    if target.isascii() and target.isdigit():
        matching = [entry for entry in found if entry.process.pid == int(target)]
    elif target.startswith("/"):
        matching = [entry for entry in found if posixpath.normpath(target) in entry.monitor_paths]
    else:
        raise UsageError(f"{target!r} is neither a pid nor a monitor's absolute path", hint=_there_are(found, host))
    if len(matching) != 1:
        what = f"pid {target}" if target.isdigit() else f"monitor at {target}"
        many = "no QEMU" if not matching else f"{len(matching)} QEMUs"
        raise AdoptionRefused(f"{many} with {what} on {host}", hint=_there_are(found, host), host=host)
    return matching[0]


def _there_are(found: Sequence[Foreign], host: str) -> str:
    if not found:
        return f"no QEMU is to be seen on {host}; does the SSH user see other users' processes (hidepid)?"
    listed = [f"{entry.process.pid} ({entry.command.name or 'no name'})" for entry in found[:12]]
    return f"QEMUs on {host}: {', '.join(listed)}"
