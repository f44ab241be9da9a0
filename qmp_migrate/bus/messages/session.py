"""Sessions: which of two statements about the same thing is the newer one.

A broker sends a last will when it believes a connection dead, which may be long after its owner has made a new one.
So every connection is a *session* with an id that orders it among all sessions of its publisher, also across restarts
of the publisher, without anything being stored: ``BOOT-ID.N``, where N is milliseconds since the boot. Clocks that
step back only matter between two boots, where `started_at` has to do.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from qmp_migrate.bus.messages.field_types import now


@dataclass(frozen=True, slots=True)
class Session:
    """One connection of one publisher.

    Attributes:
        id: ``BOOT-ID.N``.
        started_at: When it was made, UTC.
    """

    id: str
    started_at: datetime

    def newer_than(self, other: Session) -> bool:
        """Tell whether this session was made after another one of the same publisher."""
        boot, _, number = self.id.rpartition(".")
        other_boot, _, other_number = other.id.rpartition(".")
        if boot == other_boot:
            return int(number) > int(other_number)
        return self.started_at > other.started_at


def begin_session(after: Session | None = None) -> Session:
    """Begin a session.

    Args:
        after: The session before it in this process: the new one is newer even within the same millisecond.
    """
    number = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
    if after is not None:
        number = max(number, int(after.id.rpartition(".")[2]) + 1)
    return Session(f"{boot_id()}.{number}", now())


@cache
def boot_id() -> str:
    """Return the id of this boot of this machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


@cache
def package_version() -> str:
    """Return the version of this package, for status messages."""
    try:
        return version("qmp-migrate")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "unknown"
