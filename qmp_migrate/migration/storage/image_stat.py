"""What hosts know of image files: one script looks at any number of paths, another one compares contents. Changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from qmp_migrate.errors import FileFailed, QmpMigrateError
from qmp_migrate.hosts import Host
from qmp_migrate.hosts.scripts import script

LOOK_S: Final = 30.0
DIGEST_S: Final = 120.0
"""How long reading a medium or a backing file may take to compare it; longer ones count as not comparable."""

SHARED_FILE_SYSTEMS: Final = frozenset(
    {"nfs", "smb2", "cifs", "ceph", "gfs/gfs2", "gfs2", "ocfs2", "lustre", "gpfs", "afs", "v9fs", "fuse", "fuseblk"}
)
"""As ``stat -f`` calls them: the same file can be seen by several hosts there, under the same inode number."""

Kind = Literal["absent", "file", "block", "other"]


@dataclass(frozen=True, slots=True)
class FileFacts:
    """One path on one host; bytes.

    Attributes:
        kind: ``absent`` (or in a directory that cannot be looked into), ``file``, ``block`` (a block device), ``other``.
        size: Apparent size.
        identity: Device and inode number, ``DEV:INO``; ``""``: absent.
        mode: Permission bits, octal text.
        readable, writable: For the SSH user.
        link: The path itself is a symbolic link.
        blank: A block device whose first and last MiB are zeros.
        file_system: Type of the file system, as ``stat -f`` calls it.
        file_system_id: Tells file systems of one host apart.
        free: What is left on the file system for this user.
        missing: Directories on the way there that do not exist, outermost first.
        above_writable: Things can be made in the innermost directory that exists.
    """

    kind: Kind = "absent"
    size: int = 0
    identity: str = ""
    mode: str = "600"
    readable: bool = False
    writable: bool = False
    link: bool = False
    blank: bool = False
    file_system: str = ""
    file_system_id: str = ""
    free: int = 0
    missing: tuple[str, ...] = ()
    above_writable: bool = False

    @property
    def inode(self) -> str:
        """The inode number alone: on a shared file system it is the same on every host."""
        return self.identity.partition(":")[2]


_LOOK: Final = script("storage/look")

_DIGEST: Final = script("storage/digest")


async def look_at(host: Host, paths: Sequence[str]) -> dict[str, FileFacts]:
    """Look at paths of a host.

    Args:
        host: The host.
        paths: Absolute ones, without line feeds; others are said to be ``other``.

    Raises:
        CommandFailed, TransportError: It could not be asked.
        FileFailed: It gave no usable answer.
    """
    strange = [path for path in paths if not path.startswith("/") or "\n" in path]
    asked = [path for path in dict.fromkeys(paths) if path not in strange]
    found = {path: FileFacts("other") for path in strange}
    if asked:
        found |= dict(zip(asked, _parse((await host.script(_LOOK, asked, timeout=LOOK_S)).text, host), strict=True))
    return found


def _parse(text: str, host: Host) -> list[FileFacts]:
    found, lines = list[FileFacts](), iter(text.splitlines())
    try:
        for line in lines:
            kind, size, identity, mode, readable, writable, link, blank, fs, fs_id, free, above, count = line.split()
            found.append(
                FileFacts(
                    kind=kind,  # type: ignore[arg-type]
                    size=int(size),
                    identity="" if identity == "-" else identity,
                    mode=mode,
                    readable=readable == "yes",
                    writable=writable == "yes",
                    link=link == "yes",
                    blank=blank == "yes",
                    file_system=fs,
                    file_system_id=fs_id,
                    free=int(free),
                    missing=tuple(next(lines) for _ in range(int(count))),
                    above_writable=above == "yes",
                )
            )
    except (ValueError, StopIteration) as error:
        raise FileFailed(
            f"the host gave no usable answer about files: {error}",
            hint="it needs GNU coreutils; does its login shell print something of its own?",
            host=host.name,
        ) from error
    return found


async def digests(host: Host, paths: Sequence[str]) -> dict[str, str]:
    """Return the SHA-256 of files; those that cannot be read in time are left out."""
    found = {}
    for path in paths:
        try:
            text = (await host.script(_DIGEST, [path], timeout=DIGEST_S)).text
        except QmpMigrateError:
            continue
        found[path] = text.split()[0] if text else ""
    return found
