"""What is done to a state file on its host: short shell scripts of ours. The path that a person gave is always a word of its
own (``"$1"``), never a part of a script, and never a part of anything that QEMU is told: QEMU is given `link_path`.
"""

from __future__ import annotations

import re
from typing import Final

from qmp_migrate.errors import UsageError
from qmp_migrate.hosts.scripts import script

LINK: Final = "saved-state"
"""Name in ``RUN_DIR/NAME`` of the symbolic link under which QEMU opens the file, and of its marks ``.whole``, ``.torn``."""

_PLAIN: Final = re.compile(r"/[A-Za-z0-9/._+@-]*")


def link_path(directory: str, host: str) -> str:
    """Return the path that QEMU is told to write to or to read from.

    It stands in a QMP URI, and with QEMU 7.2 in a shell line: so it is made of ``RUN_DIR``, the guest's validated name and a
    word of ours, and even these are checked for characters that mean something to either.

    Args:
        directory: ``RUN_DIR/NAME``.
        host: For the error.

    Raises:
        UsageError: ``RUN_DIR`` has such a character.
    """
    path = f"{directory}/{LINK}"
    if not _PLAIN.fullmatch(path):
        raise UsageError(
            f"{directory} has characters that cannot be named to QEMU as a file",
            hint="set a run_dir of letters, digits and / . _ + @ - for that host",
            host=host,
        )
    return path


def write_uri(link: str, *, file_uri: bool) -> str:
    """Return the URI with which QEMU writes to `link_path`.

    QEMU before 8.2 has no ``file:``. It ends the process behind ``exec:`` with SIGTERM and, 10 ms later, with SIGKILL as soon
    as it has written the last byte into the pipe, whether that process has written it to the disk or not. So the process
    that it knows ignores the first and may lose its life to the second, while the one that writes is another one; whether
    that one has got everything onto the disk is told by a mark, and nothing counts as written without it.

    Args:
        link: `link_path`, checked there.
        file_uri: This QEMU knows ``file:``.
    """
    if file_uri:
        return f"file:{link}"
    return f'exec:trap "" TERM; (if cat >{link}; then : >{link}.whole; else : >{link}.torn; fi); :'


def read_uri(link: str, *, file_uri: bool, state_bytes: int) -> str:
    """Return the URI with which QEMU reads from `link_path`, the state only."""
    return f"file:{link}" if file_uri else f"exec:head -c {state_bytes:d} {link}"


PLACE: Final = script("savefile/place")
BEGIN: Final = script("savefile/begin")
WHOLE: Final = script("savefile/whole")
SUM: Final = script("savefile/checksum")
PROVE: Final = script("savefile/prove")
CONSOLE: Final = script("savefile/console")
SEAL: Final = script("savefile/seal")
RENAME: Final = script("savefile/rename")
LOOK: Final = script("savefile/look")
CLEAN: Final = script("savefile/clean")
FOOTER: Final = script("savefile/footer")
DOCUMENT: Final = script("savefile/document")
TAKE_CONSOLE: Final = script("savefile/take_console")
LINK_TO: Final = script("savefile/link_to")
