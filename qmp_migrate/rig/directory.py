"""The directory of a rig: ours alone, and one command at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from qmp_migrate.errors import RigError


def take(directory: Path) -> tuple[Path, bool]:
    """Make the rig's directory, or check that it is ours alone.

    Returns:
        The absolute path, and whether it was made.

    Raises:
        RigError: It cannot be made, or others may look into it.
    """
    directory = directory.absolute()
    try:
        directory.mkdir(mode=0o700)
        return directory, True
    except FileExistsError:
        pass
    except OSError as error:
        raise RigError(f"cannot make {directory}: {error.strerror}", hint="choose another --dir") from error
    there = directory.lstat()
    if not stat.S_ISDIR(there.st_mode) or there.st_uid != os.geteuid() or stat.S_IMODE(there.st_mode) & 0o077:
        raise RigError(
            f"{directory} is not a directory that belongs to you alone",
            hint="the rig's keys go there: chmod 700 it, or choose another --dir",
        )
    return directory, False


def give_back(directory: Path) -> None:
    """Remove the directory if it is empty: what is left in it was not made by the rig."""
    with contextlib.suppress(OSError):
        directory.rmdir()


def check_empty(directory: Path) -> None:
    """Refuse a directory with something in it: ``down`` must not remove what it did not make.

    Raises:
        RigError: It is not empty.
    """
    if any(directory.iterdir()):
        raise RigError(f"{directory} is not empty, and not a rig", hint="choose another --dir")


@contextlib.contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Keep two commands from working on one rig at the same time.

    Raises:
        RigError: Another one is at work.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RigError(
            f"another command is at work on the rig in {directory}", hint="wait until it has ended"
        ) from None
    else:
        yield
    finally:
        os.close(descriptor)
