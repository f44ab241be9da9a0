"""How long a host may be silent, and how often it is spoken to, in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Timing:
    """The times that keep a connection and its locks alive; part of a host's address.

    Attributes:
        ping_every_s: Seconds between two signs of life that are asked of the SSH server.
        ping_limit_s: Seconds until one that is not given ends the connection.
        lease_s: Whole seconds of silence after which what holds our locks on the host ends itself.
        beat_s: Seconds between two of our signs of life to it while a lock is held.
        idle_beat_s: The same while none is.
    """

    ping_every_s: float = 5.0
    ping_limit_s: float = 10.0
    lease_s: int = 30
    beat_s: float = 1.0
    idle_beat_s: float = 5.0


USUAL: Final = Timing()
