"""A migration's mandate, and what an agent has written down of it: two small files per guest and host.

``RUN_DIR/.handover/VM.mandate`` is written by the controller before memory travels, mode 0600, and removed by it when the
migration has ended: who the two QEMUs are, the fencing number, and a secret that only the two hosts know.
``RUN_DIR/.handover/VM.record`` is written by the agent, durably, before it does what cannot be undone. `recover` reads it.
Both are JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from qmp_migrate.bus.messages.field_types import Count, Name
from qmp_migrate.bus.messages.handover_token import Process

DIRECTORY: Final = ".handover"
FILE_LIMIT: Final = 4096
"""Bytes of either file that are read."""


class Mandate(BaseModel):
    """What the controller lets the agents do, should it be gone.

    Attributes:
        migration: Which migration.
        vm: Its guest.
        role: Which side this host is.
        process: The guest's QEMU on this host: ``PID START_TICKS BOOT_ID``.
        destination_process: The destination's QEMU.
        epoch: The fencing number under which it was given.
        secret: What both agents sign with, hex.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    schema_: Annotated[str, StringConstraints(pattern=r"^handover\.mandate/1$")]
    migration: Name
    vm: Name
    role: Literal["source", "destination"]
    process: Process
    destination_process: Process
    epoch: Count
    secret: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]

    def __repr__(self) -> str:
        return f"Mandate({self.migration!r}, {self.vm!r}, {self.role!r})"

    __str__ = __repr__


@dataclass(frozen=True, slots=True)
class Record:
    """What an agent has written down.

    Attributes:
        migration: Of which migration.
        state: ``released``, ``ended`` (source); ``continuing``, ``ran`` (destination).
        mark: What we have put into the epoch file, by which we know it again.
    """

    migration: str
    state: str
    mark: str


def read_mandate(path: Path) -> Mandate:
    """Read a mandate.

    Raises:
        ValueError: It is none, or others may read it.
        OSError: It cannot be read.
    """
    text = _read(path, private=True)
    try:
        document = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(document, dict):
        raise ValueError("not an object")
    document["schema_"] = document.pop("schema", None)
    try:
        mandate = Mandate.model_validate(document)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        raise ValueError(f"{problem['loc']}: {problem['msg']}") from None
    if path.name != f"{mandate.vm}.mandate":
        raise ValueError(f"it speaks for {mandate.vm}")
    return mandate


def read_record(run_dir: Path, vm: str) -> Record | None:
    """Return what was written down of a guest; ``None`` where nothing was.

    Raises:
        ValueError, OSError: There is something that cannot be read.
    """
    try:
        document = json.loads(_read(run_dir / DIRECTORY / f"{vm}.record", private=False))
    except FileNotFoundError:
        return None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    try:
        found = Record(document["migration"], document["state"], document["mark"])
    except (KeyError, TypeError):
        raise ValueError("not a record") from None
    if not all(isinstance(word, str) for word in (found.migration, found.state, found.mark)):
        raise ValueError("not a record")
    return found


def write_record(run_dir: Path, vm: str, record: Record) -> None:
    """Write a record down so that it outlives a power cut. Returns when it does.

    Raises:
        OSError: It could not be written: what it announces must not be done.
    """
    words = {"migration": record.migration, "state": record.state, "mark": record.mark}
    text = json.dumps({"schema": "handover.record/1", **words})
    write_durably(run_dir / DIRECTORY / f"{vm}.record", text + "\n")


def write_durably(path: Path, text: str) -> None:
    """Replace a small file as a whole, on the disk.

    Raises:
        OSError: It could not be.
    """
    fresh = path.with_name(f"{path.name}.new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, text.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    fresh.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def remove_mandate(run_dir: Path, vm: str) -> None:
    """Remove a mandate, and its secret with it; the record stays for `recover`."""
    with contextlib.suppress(OSError):
        (run_dir / DIRECTORY / f"{vm}.mandate").unlink()


def mandates(run_dir: Path) -> list[Path]:
    """Return the mandates on this host; none where there is no such directory.

    Raises:
        OSError: It cannot be read.
    """
    try:
        with os.scandir(run_dir / DIRECTORY) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.name.endswith(".mandate"))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _read(path: Path, *, private: bool) -> str:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a file")
        if private and status.st_mode & 0o077:
            raise ValueError("others may read it")
        return os.read(descriptor, FILE_LIMIT).decode("utf-8")
    finally:
        os.close(descriptor)
