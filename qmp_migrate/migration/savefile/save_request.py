"""A save that somebody wants, and the document that tells how it ended."""

from __future__ import annotations

import posixpath
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

from qmp_migrate.errors import UsageError
from qmp_migrate.migration.model.request import new_id
from qmp_migrate.migration.savefile.file_format import Format
from qmp_migrate.vm.names import validate_name

CHANNELS: Final = 2

FormatChoice = Literal["auto", "mapped-ram", "stream"]


def check_path(path: str) -> str:
    """Return an absolute path of a file on a host.

    Raises:
        UsageError: It is none.
    """
    bad = not path.startswith("/") or path.endswith("/") or any(c in path for c in "\0\n")
    if bad or posixpath.basename(path) in {".", ".."}:
        raise UsageError(
            f"{path!r} is not the absolute path of a file",
            hint="the file is on the guest's host: for example /srv/states/web1.state",
        )
    return path


@dataclass(frozen=True, slots=True)
class SaveRequest:
    """A save that somebody wants.

    Attributes:
        vm: The guest.
        path: The file, absolute, on the guest's host. Must not be there.
        format: ``auto``: ``mapped-ram`` where this QEMU has it, else a ``stream``. A stream can be read by every QEMU.
        channels: Threads that write RAM (multifd), with ``mapped-ram``; 0: without multifd.
        id: Made here.

    Raises:
        UsageError, InvalidName: See `qmp_migrate.errors`.
    """

    vm: str
    path: str
    format: FormatChoice = "auto"
    channels: int = CHANNELS
    id: str = field(default_factory=lambda: "s" + new_id()[1:])

    def __post_init__(self) -> None:
        validate_name(self.vm, "guest name")
        check_path(self.path)
        if self.format not in {"auto", "mapped-ram", "stream"}:
            raise UsageError(f"there is no format {self.format!r}", hint="auto, mapped-ram or stream")
        if not 0 <= self.channels <= 255:
            raise UsageError(f"{self.channels} channels are not possible", hint="0 to 255, for example --channels 4")

    @property
    def part(self) -> str:
        """The working name of the file."""
        return f"{self.path}.part-{self.id}"


@dataclass(slots=True)
class SaveResult:
    """``save.result/1``: how a save ended. Milliseconds and bytes as the names say.

    Attributes:
        owner: ``file``: the guest is in it; ``source``: it goes on at its host; ``none``, ``unknown``.
        bytes: The file's length; of ``mapped-ram`` much of it may be holes.
        stored_bytes: What it takes on the disk.
        stop_ms, write_ms, prove_ms: Until the guest stood still; while QEMU wrote; fsync, reading back and checksum.
    """

    id: str
    vm: str
    host: str
    file: str
    outcome: str = "failed"
    owner: str = "source"
    format: str = ""
    channels: int = 0
    direct_io: bool = False
    bytes: int = 0
    stored_bytes: int = 0
    checksum: str = ""
    stop_ms: int = 0
    write_ms: int = 0
    prove_ms: int = 0
    total_ms: int = 0
    warnings: list[str] = field(default_factory=list)
    error: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the document."""
        return {"schema": "save.result/1", **asdict(self)}


def chosen_format(choice: FormatChoice, *, has_mapped_ram: bool) -> Format | None:
    """Return the format to write; None: this QEMU does not have the one that is wanted."""
    if choice == "stream" or (choice == "auto" and not has_mapped_ram):
        return "stream"
    return "mapped-ram" if has_mapped_ram else None
