"""A command line that means the same from any working directory."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import replace

from qmp_migrate.vm.commandline.command_line import CommandLine
from qmp_migrate.vm.commandline.paths import PathKind, rewrite_paths


def relative_paths(command: CommandLine) -> list[str]:
    """Return the relative paths of a command line.

    Raises:
        UsageError: An option's JSON cannot be read.
    """
    found: list[str] = []

    def note(path: str, _kind: PathKind) -> str:
        if path and not path.startswith("/"):
            found.append(path)
        return path

    for option in command.options:
        rewrite_paths(option, note)
    return found


def starting_directory(command: CommandLine, *, now: str, pwd: str, opened: Sequence[str]) -> str:
    """Return the directory that a QEMU's relative paths count from.

    That is where it was started, and where it still is, unless ``-daemonize`` has sent it to ``/``. Then the files that it
    has open tell: ``disk.img`` is open as ``/home/me/vms/disk.img``; where none does, the environment of its start.

    Args:
        command: Its command line.
        now: Its working directory now; ``""``: not shown.
        pwd: ``PWD`` in its environment; ``""``: none.
        opened: Paths of the files that it has open.

    Returns:
        The directory; ``""``: nobody can tell.
    """
    if not command.has("daemonize"):
        return now
    relative = relative_paths(command)
    if not relative:
        return now
    tails = [f"/{posixpath.normpath(path)}" for path in relative if not path.startswith("..")]
    places = {path[: -len(tail)] or "/" for path in opened for tail in tails if path.endswith(tail)}
    if len(places) == 1:
        return places.pop()
    return pwd if pwd.startswith("/") else ""


def with_absolute_paths(command: CommandLine, cwd: str) -> CommandLine:
    """Return `command` with each relative path put in terms of a working directory; all else keeps its spelling.

    Args:
        command: Any command line, as of a guest that somebody started by hand: ``-hda disk.img``.
        cwd: The process's working directory, absolute; ``""``: unknown, nothing is changed.

    Raises:
        UsageError: An option's JSON cannot be read.
    """
    if not cwd.startswith("/"):
        return command

    def change(path: str, _kind: PathKind) -> str:
        return path if not path or path.startswith("/") else posixpath.normpath(posixpath.join(cwd, path))

    return replace(command, options=tuple(rewrite_paths(option, change) for option in command.options))
