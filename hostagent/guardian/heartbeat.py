"""The beat of a guest's lock: when the controller that holds it last gave a sign of life.

While a controller holds a guest's lock on a host, ``RUN_DIR/.locks/VM.beat`` holds the host's uptime in seconds (first word
of ``/proc/uptime``) at the controller's last sign of life. It is rewritten once a second by an atomic rename, and removed
when the lock is released. If the controller dies, freezes or is cut off, it grows old.

Uptime is read from ``/proc/uptime`` on both sides, never from a wall clock (which may step) and not from
``clock_gettime`` either: in a container the two may differ, and then whoever writes reads the same file as we do.
"""

from __future__ import annotations

import os
import re
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

UPTIME: Final = Path("/proc/uptime")
FILE_LIMIT: Final = 100
"""Bytes of a beat file that are read; more than that is no beat."""
LOOK_S: Final = 0.25
"""Seconds between two looks at a beat."""
MOST_WATCHED_S: Final = 2 * LOOK_S
"""What one look counts for at most: time in which we did not look is not time in which there was nothing to see."""
ROUNDING_S: Final = 0.1
"""How far a beat may lie ahead: both clocks are the same one, but it is written in hundredths."""

_BEAT: Final = re.compile(rb"([0-9]{1,12}(?:\.[0-9]{1,9})?)\n?")


@dataclass(frozen=True, slots=True)
class Beat:
    """What is known of a controller's life.

    Attributes:
        age_s: Seconds since its last sign; ``None``: there is none.
        watched_s: Seconds for which this very sign was watched, and no newer one came.
        fault: Why it cannot be believed, ``""`` where it can.
    """

    age_s: float | None = None
    watched_s: float = 0.0
    fault: str = ""


class BeatWatch:
    """Looks at a beat, and keeps count of how long it has been the same one.

    Args:
        path: The beat file.

    Attributes:
        beat: What the last look showed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen_s: float | None = None
        self._at = time.monotonic()
        self.beat = Beat()

    def look(self) -> Beat:
        """Look again."""
        at = time.monotonic()
        passed_s, self._at = min(at - self._at, MOST_WATCHED_S), at
        before_s, self._seen_s = self._seen_s, None
        try:
            seen_s = read_beat(self._path)
            age = None if seen_s is None else age_s(seen_s)
        except (OSError, ValueError) as error:
            self.beat = Beat(fault=str(error))
            return self.beat
        self._seen_s = seen_s
        same = seen_s is not None and seen_s == before_s
        self.beat = Beat(age, self.beat.watched_s + passed_s if same else 0.0)
        return self.beat


def beat_path(run_dir: Path, vm: str) -> Path:
    """Return where the holder of a guest's lock writes its beat."""
    return run_dir / ".locks" / f"{vm}.beat"


def read_beat(path: Path) -> float | None:
    """Return the uptime, in seconds, that a beat file holds; ``None`` where there is no file.

    Raises:
        ValueError: It holds something else.
        OSError: It cannot be read.
    """
    try:
        # A pipe, a device or a link that somebody put there must neither block us nor lead us elsewhere.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("not a file")
        text = os.read(descriptor, FILE_LIMIT)
    finally:
        os.close(descriptor)
    found = _BEAT.fullmatch(text)
    if found is None:
        raise ValueError(f"not one line with a number of seconds: {text[:40]!r}")
    return float(found[1])


def age_s(beat_s: float) -> float:
    """Return how many seconds ago a beat was written.

    Raises:
        ValueError: It lies ahead of now: it is from before a reboot, or of another machine.
        OSError: The uptime cannot be read.
    """
    uptime_s = float(UPTIME.read_bytes().split()[0])
    if beat_s > uptime_s + ROUNDING_S:
        raise ValueError(f"{beat_s - uptime_s:.1f} s ahead of this host's uptime")
    return max(0.0, uptime_s - beat_s)
