"""A restore that somebody wants, and the document that tells how it ended."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from qmp_migrate.migration.model.request import new_id
from qmp_migrate.migration.savefile.save_request import check_path


@dataclass(frozen=True, slots=True)
class RestoreRequest:
    """A restore that somebody wants.

    Attributes:
        path: The file, absolute, on `host`.
        host: Where the guest is to be.
        paused: It does not go on by itself, also if it ran when it was saved.
        force: Restore although its disks have changed since.
        keep: Keep the file, under its used name.
        id: Made here.
    """

    path: str
    host: str
    paused: bool = False
    force: bool = False
    keep: bool = False
    id: str = field(default_factory=lambda: "r" + new_id()[1:])

    def __post_init__(self) -> None:
        check_path(self.path)

    @property
    def used(self) -> str:
        """The name of a file that was used."""
        return f"{self.path}.used-{self.id}"


@dataclass(slots=True)
class RestoreResult:
    """``restore.result/1``: how a restore ended. Milliseconds and bytes as the names say.

    Attributes:
        owner: ``destination``: the guest is on the host; ``file``: the file has it, as before; ``none``, ``unknown``.
        state: The guest's run state in the end.
        verify_ms, load_ms: For the checksum; for QEMU to read the state.
        kept: The name that the used file has now; None: it is removed.
    """

    id: str
    vm: str
    host: str
    file: str
    outcome: str = "failed"
    owner: str = "file"
    state: str = ""
    bytes: int = 0
    verify_ms: int = 0
    load_ms: int = 0
    total_ms: int = 0
    kept: str | None = None
    warnings: list[str] = field(default_factory=list)
    error: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the document."""
        return {"schema": "restore.result/1", **asdict(self)}
