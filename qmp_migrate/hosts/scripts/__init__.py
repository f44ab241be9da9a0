"""All that runs on a host as a shell script: a file each, by subject.

Lines that begin with ``#:`` say what the script does and what its arguments are. They are not sent. Two of them mean more:

- ``#: include SUBJECT/NAME`` stands for the text of another file.
- ``#: relay: KIND, KIND, …`` lets the relay run the script, with arguments of these kinds (`hostagent.relay.argument_rules`).
  ``*`` after the last one: any number of these. Without such a line a host behind a relay refuses the script.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Final

_NOTE: Final = "#:"
_INCLUDE: Final = "#: include "
_RELAY: Final = "#: relay:"


@cache
def script(name: str) -> str:
    """Return what is sent to the host.

    Args:
        name: ``SUBJECT/NAME``, the file without ``.sh``.

    Raises:
        FileNotFoundError: There is no such script.
    """
    sent = []
    for line in _lines(name):
        if line.startswith(_INCLUDE):
            sent.append(script(line.removeprefix(_INCLUDE).strip()))
        elif not line.startswith(_NOTE):
            sent.append(line)
    return "".join(sent)


def names() -> list[str]:
    """Return the names of all scripts, in order."""
    subjects = [entry for entry in resources.files(__name__).iterdir() if entry.is_dir()]
    return sorted(
        f"{subject.name}/{entry.name.removesuffix('.sh')}"
        for subject in subjects
        for entry in subject.iterdir()
        if entry.name.endswith(".sh")
    )


def relayed() -> dict[str, tuple[str, ...]]:
    """Return the scripts that the relay lets through, and what each of their arguments must be."""
    found = {}
    for name in names():
        for line in _lines(name):
            if line.startswith(_RELAY):
                kinds = line.removeprefix(_RELAY).split(",")
                found[name] = tuple(kind.strip() for kind in kinds if kind.strip())
    return found


def _lines(name: str) -> list[str]:
    subject, _, file = name.partition("/")
    return resources.files(__name__).joinpath(subject, f"{file}.sh").read_text("utf-8").splitlines(keepends=True)
