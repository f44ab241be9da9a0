"""Directories of their own for hosts that share a computer: the same path, another directory for each host.

A host's sshd and agent are started in a mount namespace, in which a directory of the host's own is mounted over each
path; so is everything that they start. The namespace ends with its last process. For root only.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from qmp_migrate.errors import RigError, UsageError

# $1 the host's directory, then paths up to --; then the command line. The pid stays the same all the way.
_MOUNT: Final = """
own=$1
shift
while [ "$1" != -- ]; do
    mkdir -p "$own$1" && mount --bind "$own$1" "$1" || exit 1
    shift
done
shift
exec "$@"
"""


def check(paths: Sequence[Path], rig: Path) -> list[Path]:
    """Return the directories of which each host is to have one of its own.

    Args:
        paths: The directories.
        rig: Where the rig is to be: its hosts must see that.

    Raises:
        UsageError: One is not an absolute path of a directory, or holds what the rig itself needs.
        RigError: Not root, or ``unshare`` is not installed.
    """
    for path in paths:
        if not path.is_absolute() or not path.is_dir() or ".." in path.parts:
            raise UsageError(f"{path} is not the absolute path of a directory", hint="make it first: it stays empty")
        needed = (Path("/proc"), Path("/dev"), Path("/usr/bin"), rig.resolve())
        if any(path.resolve() in (place, *place.parents) for place in needed):
            raise UsageError(f"hosts cannot do without {path}", hint="choose a directory for images or logs")
    if paths and os.geteuid() != 0:
        raise RigError("only root can give hosts directories of their own", hint="qmp-migrate rig up --hosts-as-vms")
    if paths and shutil.which("unshare") is None:
        raise RigError("unshare is not installed", hint="apt-get install -y util-linux")
    return list(paths)


def enter(own: Path, paths: Sequence[Path], argv: Sequence[str]) -> list[str]:
    """Return the command line that starts `argv` with directories of its own.

    Args:
        own: Where the host's directories are.
        paths: Where they are mounted; none: `argv` is started as it is.
        argv: What is to be started.
    """
    if not paths:
        return list(argv)
    return ["unshare", "--mount", "sh", "-c", _MOUNT, "sh", str(own), *map(str, paths), "--", *argv]
