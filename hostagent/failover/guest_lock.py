"""The guest's lock and epoch on this host, as the agent takes them: the same files as a controller's (ADR 0011).

A controller's lock is held by a process on this host that ends with its connection. So who gets the lock here knows more than
that the controller is quiet: every channel that it had to this host is closed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Final

from hostagent.discovery.guests import start_ticks
from hostagent.failover.grant import write_durably

EPOCH_LIMIT: Final = 1000
"""Bytes of an epoch file that are read."""


class AgentLock:
    """The guest's lock, while we hold it. Made by `take`.

    Args:
        descriptor: The open file with its flock.
        path: The lock file.
    """

    def __init__(self, descriptor: int, path: Path) -> None:
        self._descriptor = descriptor
        self._path = path

    def release(self) -> None:
        """Give it back. The controller's last sign of life beside it stays: it is still what it was. May be called again."""
        if self._descriptor < 0:
            return
        with contextlib.suppress(OSError):
            if _same(self._descriptor, self._path):
                self._path.unlink()
        os.close(self._descriptor)
        self._descriptor = -1


def take(run_dir: Path, vm: str, owner: str) -> AgentLock | None:
    """Take a guest's lock; ``None`` where somebody holds it.

    Args:
        run_dir: Where the guests' directories are.
        vm: The guest.
        owner: For those who find it locked: one line.

    Raises:
        OSError: The lock file cannot be used.
    """
    path = run_dir / ".locks" / f"{vm}.lock"
    for _attempt in range(5):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        if _same(descriptor, path):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{owner}\n{os.getpid()} {start_ticks(os.getpid())}\n".encode())
            return AgentLock(descriptor, path)
        os.close(descriptor)  # who had it has just removed it: the path leads to another file by now
    return None


def read_epoch(run_dir: Path, vm: str) -> tuple[int, str, str]:
    """Return a guest's epoch, the line that says since when and for what, and the mark of the agent that raised it.

    Raises:
        OSError: It cannot be read.
        ValueError: It holds no number.
    """
    path = run_dir / ".locks" / f"{vm}.epoch"
    with path.open("rb") as file:
        lines = file.read(EPOCH_LIMIT).decode("utf-8", "replace").splitlines()
    if not lines or not lines[0].isascii() or not lines[0].isdigit():
        raise ValueError(f"{path} holds no number")
    return int(lines[0]), lines[1] if len(lines) > 1 else "", lines[2] if len(lines) > 2 else ""


def raise_epoch(run_dir: Path, vm: str, mark: str) -> None:
    """Raise a guest's epoch, under its lock: what a controller that comes back still asks for is refused from here on.

    The purpose on the second line stays: it is still the same migration, and no other has had the guest.

    Args:
        run_dir: Where the guests' directories are.
        vm: The guest.
        mark: By which we know later that it was us.

    Raises:
        OSError, ValueError: It could not be.
    """
    number, since, _ = read_epoch(run_dir, vm)
    write_durably(run_dir / ".locks" / f"{vm}.epoch", f"{number + 1}\n{since}\n{mark}\n")


def _same(descriptor: int, path: Path) -> bool:
    try:
        ours, there = os.fstat(descriptor), os.stat(path, follow_symlinks=False)
    except OSError:
        return False
    return (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)
