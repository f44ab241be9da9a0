"""The kinds of notices: a closed list of words, which ``[[notify]]`` in the settings names."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Mapping, Sequence
from typing import Final

KINDS: Final[Mapping[str, str]] = {
    "migration.completed": "a guest runs at its destination",
    "migration.rolled_back": "a migration has failed, the guest runs on at its source",
    "migration.cancelled": "a migration was cancelled, the guest runs on at its source",
    "migration.failed": "a migration has failed, and the guest does not run",
    "migration.unknown": "nobody can prove who owns the guest: a person is needed",
    "host.ready": "an agent is there (again)",
    "host.lost": "the connection to a host's agent is dead",
    "host.stopped": "an agent was stopped",
    "host.silent": "an agent has not reported for three intervals",
    "host.conflict": "two agents use one host's name",
    "guest.conflict": "a guest's name is used on two hosts",
    "guest.crashed": "a QEMU has ended without a word",
    "guest.panicked": "the guest's kernel has panicked",
    "guest.io-error": "a disk of the guest has reported an error",
    "guest.stopped": "the guest has powered off",
    "guest.taken-back": "the guardian has taken a guest back whose controller was gone",
    "guest.handed-over": "two agents have handed a guest over whose controller was gone",
}
"""What ``on`` may name, and when it is told."""


def check_kinds(patterns: Sequence[str]) -> None:
    """Check what ``on`` names. Raises `ValueError` with the nearest word there is."""
    if not patterns:
        raise ValueError(f"names nothing; there are: {', '.join(KINDS)}")
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(kind, pattern) for kind in KINDS):
            near = difflib.get_close_matches(pattern, KINDS, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]}?" if near else f"; there are: {', '.join(KINDS)}"
            raise ValueError(f"{pattern!r} is nothing that is told{hint}")
