"""Commands: from words to a shell line (DESIGN rule 10), and from an exit status to an error."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from qmp_migrate.errors import CommandFailed, RelayRefused, UsageError
from qmp_migrate.hosts.base import Completed
from qmp_migrate.hosts.scripts import script


def command_line(host: str, argv: Sequence[str]) -> str:
    """Join words so that a POSIX shell takes them apart into the same words.

    Raises:
        UsageError: A word has a NUL in it, which no command line can carry.
    """
    for word in argv:
        if "\0" in word:
            raise UsageError(f"an argument has a NUL character in it: {word!r}", host=host)
    return shlex.join(argv)


# What a command's output begins with: a mark, because a login shell that greets non-interactive sessions as well (a line
# in ~/.bashrc) would otherwise be read as the command's answer; and who it is (/proc/PID/stat), because it must be ended
# when it is given up: sshd counts a session as long as its command runs, whether its channel is closed or not.
_MARK = b"qmp-migrate: begin "
WRAPPER = 'IFS= read -r stat </proc/self/stat; echo "qmp-migrate: begin $stat"; exec timeout -k 5 "$@"'
#: Room for greeting and mark, in bytes.
GREETING_LIMIT = 1 << 16
#: ``timeout(1)`` on the host is a second line only, for the case that we are gone: this many seconds later than ours.
_LATER_S = 5

END_GROUP: Final = script("processes/end_group")


def behind_login_shell(argv: Sequence[str], timeout: float) -> list[str]:
    """Return the argv that runs ``argv`` in a process group of its own, with an output that tells where it begins.

    Args:
        argv: The command.
        timeout: Seconds after which we give it up.
    """
    return ["sh", "-c", WRAPPER, "sh", str(math.ceil(timeout) + _LATER_S), *argv]


def leader(output: bytes) -> tuple[str, str] | None:
    """Return process group and start time of a command from the mark in its output; ``None`` where it has not begun."""
    _, mark, rest = output.partition(_MARK)
    line, newline, _ = rest.partition(b"\n")
    if not mark or not newline:
        return None
    words = line.decode("ascii", "replace")
    return words.split()[0], words.rpartition(")")[2].split()[19]


def without_greeting(completed: Completed, limit: int) -> Completed:
    """Cut off what was written before the command began, and what is beyond ``limit`` bytes."""
    _, mark, rest = completed.stdout.partition(_MARK)
    stdout = rest.partition(b"\n")[2] if mark else completed.stdout
    cut = len(stdout) > limit or len(completed.stderr) > limit
    return replace(
        completed, stdout=stdout[:limit], stderr=completed.stderr[:limit], truncated=completed.truncated or cut
    )


def script_argv(source: str, args: Sequence[str]) -> list[str]:
    """Return the argv that runs the POSIX shell script ``source`` with ``$1``… set to ``args``."""
    return ["sh", "-c", source, "sh", *args]


RELAY_STATUS = 77
_RELAY_MARK = b"qmp-relay: refused: "


def not_refused(completed: Completed, host: str) -> Completed:
    """Return ``completed``, unless the relay of the host has refused to run it.

    Raises:
        RelayRefused: It has, with what it said.
    """
    if completed.returncode == RELAY_STATUS and _RELAY_MARK in completed.stderr:
        raise relay_refused(completed.stderr.partition(_RELAY_MARK)[2], host)
    return completed


def relay_refused(reason: bytes, host: str) -> RelayRefused:
    """Return the error for what a relay has refused."""
    line = reason.decode("utf-8", "replace").strip().partition("\n")[0]
    return RelayRefused(
        f"the relay does not allow it: {line}",
        hint="what it allows: docs/guide/least-privilege.md; its settings on the host: /etc/qmp-migrate/relay.toml",
        host=host,
    )


def checked(completed: Completed, host: str, what: str) -> Completed:
    """Return ``completed``, or raise what its exit status says.

    Raises:
        CommandFailed: The exit status is not 0.
    """
    if completed.returncode == 0:
        return completed
    ended = f"exit status {completed.returncode}" if completed.returncode > 0 else "a signal"
    detail = completed.error_text.splitlines()
    raise CommandFailed(
        f"{what} ended with {ended}" + (f": {detail[-1]}" if detail else ""),
        returncode=completed.returncode,
        stderr=completed.error_text,
        hint="is it installed on the host, and in the PATH of a non-interactive shell?"
        if completed.returncode == 127
        else None,
        host=host,
    )
