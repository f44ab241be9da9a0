"""``rig.json``: what a rig consists of and which processes those are, so that ``down`` ends exactly those."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from qmp_migrate.errors import RigError
from qmp_migrate.hosts.process import ProcessId
from qmp_migrate.rig.addresses import RigHost
from qmp_migrate.rig.guest.images import GuestKind

SCHEMA = "rig/1"
FILE = "rig.json"


@dataclass(frozen=True, slots=True)
class Part:
    """One process of a rig.

    Attributes:
        name: ``broker``, ``sshd-a``, ``agent-a``, ``hub``, ``machine-a``, …; its files are in ``DIR/parts/NAME/``.
        role: ``broker``, ``sshd`` or ``agent``; where hosts are machines: ``broker``, ``hub`` or ``machine``.
        host: The host it belongs to; ``None`` for the broker and the hub.
        process: Which process it is; ``None`` before it was started.
    """

    name: str
    role: str
    host: str | None = None
    process: ProcessId | None = None


@dataclass(frozen=True, slots=True)
class RigState:
    """A rig.

    Attributes:
        directory: Where it is.
        created: True where ``rig up`` made the directory itself, so that ``down`` removes it.
        hosts: Its hosts.
        parts: Its processes, in the order they were started.
        broker_url: ``mqtt://…`` of its broker; empty before that runs.
        complete: True once everything is up.
        warnings: What is missing although the rig is up, for people.
        guest: Which test guest ``guest.toml`` starts.
        machines: True where each host is a virtual machine (`qmp_migrate.rig.vm_hosts.machines`).
    """

    directory: Path
    created: bool
    hosts: tuple[RigHost, ...]
    parts: tuple[Part, ...]
    broker_url: str = ""
    complete: bool = False
    warnings: tuple[str, ...] = ()
    guest: GuestKind = "linux"
    machines: bool = False

    @property
    def settings_file(self) -> Path:
        """Settings for the controller: ``qmp-migrate --config``."""
        return self.directory / "qmp-migrate.toml"

    @property
    def guest_file(self) -> Path:
        """Spec of the chosen test guest, for ``qmp-migrate vm start``; absent where its images are not built."""
        return self.directory / "guest.toml"

    @property
    def bare_guest_file(self) -> Path:
        """Spec of the bare test guest, whichever was chosen; absent where its image is not built."""
        return self.directory / "guest-bare.toml"

    def part_directory(self, name: str) -> Path:
        """Return where the files of one process are."""
        return self.directory / "parts" / name

    def with_process(self, name: str, process: ProcessId) -> RigState:
        """Return the same with ``process`` noted for one part."""
        parts = (replace(part, process=process) if part.name == name else part for part in self.parts)
        return replace(self, parts=tuple(parts))

    def save(self) -> None:
        """Write ``rig.json``, atomically.

        Raises:
            RigError: It cannot be written.
        """
        document = {"schema": SCHEMA, **asdict(self)}
        new = self.directory / f"{FILE}.new"
        try:
            new.write_text(json.dumps(document, indent=1, default=os.fspath) + "\n", "utf-8")
            new.replace(self.directory / FILE)
        except OSError as error:
            raise RigError(f"cannot write {self.directory / FILE}: {error.strerror}") from error


def load(directory: Path) -> RigState | None:
    """Read ``rig.json``; ``None`` where there is no rig.

    Raises:
        RigError: The file is there and cannot be read or understood.
    """
    path = directory / FILE
    try:
        document = json.loads(path.read_text("utf-8"))
        if document.pop("schema") != SCHEMA:
            raise ValueError("written by another version")
        hosts = tuple(RigHost(**{**host, "run_dir": Path(host["run_dir"])}) for host in document.pop("hosts"))
        parts = tuple(
            Part(**{**part, "process": ProcessId(**part["process"]) if part["process"] else None})
            for part in document.pop("parts")
        )
        document |= {"directory": Path(document["directory"]), "warnings": tuple(document["warnings"])}
        return RigState(**document, hosts=hosts, parts=parts)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RigError(
            f"{path} cannot be used: {error}",
            hint=f"end the processes named in it, then remove {directory}",
        ) from error
