"""The shell scripts behind :mod:`qmp_migrate.hosts.lock`: what runs on the host.

A lock file holds two lines: who holds it (for people), and ``PID START_TIME`` of the holder (``/proc/PID/stat``, fields
1 and 22), by which :data:`END_HOLDER` finds it.
"""

from __future__ import annotations

from typing import Final

from qmp_migrate.hosts.scripts import script

HOLDER: Final = script("locks/hold")
END_HOLDER: Final = script("locks/end_holder")
