"""Reading and writing small files of a host: the scripts, and what their ends mean.

No SFTP: hosts may have switched it off, and an atomic write needs more than it offers.
"""

from __future__ import annotations

from typing import Final

from qmp_migrate.errors import FileFailed
from qmp_migrate.hosts.base import Completed
from qmp_migrate.hosts.scripts import script

#: Seconds for one file.
TIMEOUT_S = 30.0

READ: Final = script("files/read")

WRITE: Final = script("files/write")


def write_args(path: str, data: bytes, mode: int) -> list[str]:
    """Return the arguments of :data:`WRITE`."""
    return [path, f"{mode:04o}", str(len(data))]


def content(completed: Completed, path: str, host: str) -> bytes:
    """Return what :data:`READ` printed.

    Raises:
        FileFailed: It could not read the file.
    """
    if completed.returncode != 0:
        raise FileFailed(f"cannot read {path}: {_reason(completed)}", host=host)
    return completed.stdout


def written(completed: Completed, path: str, host: str) -> None:
    """Check how :data:`WRITE` ended.

    Raises:
        FileFailed: The file was not written.
    """
    if completed.returncode != 0:
        raise FileFailed(
            f"cannot write {path}: {_reason(completed)}",
            hint="the directory must exist, belong to the user, and have room",
            host=host,
        )


def _reason(completed: Completed) -> str:
    lines = completed.error_text.splitlines()
    return lines[-1] if lines else f"exit status {completed.returncode}"
