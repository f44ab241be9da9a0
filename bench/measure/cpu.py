"""CPU time of a process, all its threads together, those that have ended too."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


def parse_stat(stat: str, ticks_per_s: int = _TICKS_PER_S) -> float:
    """Return user and system time in seconds, from the text of ``/proc/PID/stat``.

    The program's name in parentheses may hold anything, so fields are counted from the last one.
    """
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / ticks_per_s


def cpu_seconds(pid: int) -> float | None:
    """Return what a process has used so far, seconds (exact to a tick, 10 ms); None when it is gone."""
    try:
        return parse_stat(Path(f"/proc/{pid}/stat").read_text())
    except (OSError, IndexError, ValueError):
        return None
