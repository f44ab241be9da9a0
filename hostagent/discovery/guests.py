"""Which guests are on this host: what lies under RUN_DIR, believed only where the process proves it.

A guest is a directory ``RUN_DIR/NAME`` whose ``pid`` file names a live process of the same start time and boot (a pid
alone is given to somebody else sooner or later) whose command line is the guest's.
"""

from __future__ import annotations

import json
import os
import stat
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from qmp_migrate.bus.messages.session import boot_id
from qmp_migrate.errors import InvalidName
from qmp_migrate.vm.names import validate_name

FILE_LIMIT: Final = 1 << 20
"""Bytes of a pid or argv file that are looked at: they are another user's to fill where RUN_DIR is shared."""


@dataclass(frozen=True, slots=True)
class Guest:
    """A guest that is proven to run here.

    Attributes:
        name: Its name.
        directory: Its ``RUN_DIR/NAME``.
        pid: Its QEMU process.
        start_ticks: When that started, in clock ticks since boot.
        argv: Its command line.
        monitors: QMP sockets of a foreign guest, which are its user's; empty: it has none, or it is one of ours.
        foreign: Something else has started it.
    """

    name: str
    directory: Path
    pid: int
    start_ticks: int
    argv: tuple[str, ...]
    monitors: tuple[str, ...] = ()
    foreign: bool = False

    @property
    def monitor_path(self) -> Path:
        """The monitor that is the agent's own; the controller has another one."""
        return self.directory / "agent.sock"

    @property
    def started_at(self) -> datetime:
        """When its process started, UTC."""
        return datetime.fromtimestamp(_boot_time() + self.start_ticks / os.sysconf("SC_CLK_TCK"), UTC)

    @property
    def alive(self) -> bool:
        """Whether its process is still there; what cannot be told counts as alive (DESIGN rule 5)."""
        try:
            return start_ticks(self.pid) == self.start_ticks
        except OSError:
            return True


def discover(run_dir: Path, known: frozenset[str] = frozenset()) -> list[Guest]:
    """Return the guests under a RUN_DIR that are not known yet. A RUN_DIR that is not there holds none.

    Args:
        run_dir: Where the guests' directories are.
        known: Names not to look at again.

    Raises:
        OSError: The directory is there but cannot be read.
    """
    try:
        with os.scandir(run_dir) as entries:
            fresh = (entry for entry in entries if entry.name not in known and _is_name(entry.name))
            names = [entry.name for entry in fresh if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
    guests = (identify(run_dir / name) for name in sorted(names))
    return [guest for guest in guests if guest is not None]


def identify(directory: Path) -> Guest | None:
    """Return the guest that runs in a directory, or ``None`` where no process proves to be it."""
    words = _read(directory / "pid").split()
    if not words or not words[0].isdecimal() or len(words[0]) > 10:
        return None
    pid = int(words[0])
    if len(words) > 2 and words[2] != boot_id():
        return None
    try:
        ticks = start_ticks(pid)
    except OSError:  # /proc mounted with hidepid, or out of file descriptors: no proof, no guest
        return None
    if ticks is None or (len(words) > 1 and words[1] != str(ticks)):
        return None
    argv = command_line(pid)
    if not argv or not _belongs(argv, directory):
        return None
    return Guest(directory.name, directory, pid, ticks, argv)


def _belongs(argv: tuple[str, ...], directory: Path) -> bool:
    """Tell whether a command line is the guest's: the one that was written down, or one that makes our monitor."""
    try:
        recorded = json.loads(_read(directory / "argv.json") or "null")
    except (ValueError, RecursionError):
        recorded = None
    if isinstance(recorded, list) and tuple(recorded) == argv:
        return True
    return any(str(directory / "agent.sock") in word for word in argv)


def _is_name(name: str) -> bool:
    try:
        return bool(validate_name(name, "guest name"))
    except InvalidName:
        return False


def _read(path: Path) -> str:
    """Return a small file's text, ``""`` where there is none; never waits on a pipe that somebody put there."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return ""
        return os.read(descriptor, FILE_LIMIT).decode("utf-8", "surrogateescape")
    except OSError:
        return ""
    finally:
        os.close(descriptor)


def command_line(pid: int) -> tuple[str, ...]:
    """Return a process's command line; empty where it is gone, hidden or none."""
    try:
        data = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ()
    return tuple(word.decode("utf-8", "surrogateescape") for word in data.split(b"\0")[:-1])


def start_ticks(pid: int) -> int | None:
    """Return a process's start time in clock ticks since boot; ``None``: it is gone.

    Args:
        pid: Which one.

    Raises:
        OSError: It cannot be told.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # "PID (NAME) STATE PPID …": NAME may hold spaces and parentheses, so cut behind the last one. A zombie is gone,
    # unless other threads of it still end.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZXx" and int(fields[17]) <= 1 else int(fields[19])


def _boot_time() -> float:
    """Return when this machine booted, seconds since the epoch, by the clock as it stands now."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
