"""Reading and writing small files of a host: the scripts, and what their ends mean.

No SFTP: hosts may have switched it off, and an atomic write needs more than it offers.
"""

from __future__ import annotations

from qmp_migrate.errors import FileFailed
from qmp_migrate.hosts.base import Completed

#: Seconds for one file.
TIMEOUT_S = 30.0

#: $1 path, $2 offset, $3 limit.
READ = r"""
[ -d "$1" ] && { echo "is a directory" >&2; exit 1; }
exec <"$1" || exit 1
if [ "$2" -gt 0 ]; then tail -c "+$(($2 + 1))"; else cat; fi | head -c "$3"
"""

#: $1 path, $2 mode, $3 length of the content, which arrives on standard input.
WRITE = r"""
umask 077
[ -d "$1" ] && { echo "is a directory" >&2; exit 1; }
new=$(mktemp -- "$1.XXXXXXXX") || exit 1
trap 'rm -f -- "$new"' EXIT
trap 'exit 1' HUP INT TERM PIPE
chmod -- "$2" "$new" && cat >"$new" || exit 1
# A connection that breaks looks like the end of the content: never put a part in the place of the whole.
[ "$(wc -c <"$new")" -eq "$3" ] || { echo "the content arrived in part only" >&2; exit 1; }
sync -- "$new" && mv -f -- "$new" "$1" || exit 1
trap - EXIT
sync -- "$(dirname -- "$1")"
"""


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
