"""The file that a saved guest is kept in: its layout, and the document that it carries. Pure; no I/O.

One file, so that nothing can be separated from it::

    state      as QEMU wrote it: a migration stream, or RAM at fixed places (``mapped-ram``)
    console    the end of the guest's serial log, as it travels along with a migration
    document   JSON: what is needed to start the guest, the checksums, the images that belong to it
    footer     one line of text, `FOOTER_BYTES` long: schema, length and SHA-256 of the document

QEMU stops reading at the end of its own part; it was seen to ignore what follows (7.2, 10.0, 11.1, every format). A file
that was cut off has no footer, one that was damaged has another checksum, and ``tail -n 1 FILE`` says what it is.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final, Literal, TypeAlias

from qmp_migrate.errors import ConfigError
from qmp_migrate.migration.savefile.image_stamps import Stamp

SCHEMA: Final = "state-file/1"
FOOTER_BYTES: Final = 98
MAX_DOCUMENT: Final = 512 * 1024
CHUNK_BYTES: Final = 64 << 20
"""The state's checksum is the SHA-256 of its chunks' SHA-256 sums: chunks are read by all CPUs at once, and one that is all
zeros (what a sparse file does not store) is known without being hashed."""

ZERO_CHUNK: Final = "3b6a07d0d404fab4e23b6d34bc6696a6a312dd92821332385e5af7c01c421351"
"""SHA-256 of `CHUNK_BYTES` zero bytes."""

Format: TypeAlias = Literal["stream", "mapped-ram"]

_FOOTER: Final = re.compile(rb"qmp-migrate-state/1 ([0-9]{12}) ([0-9a-f]{64})\n")


@dataclass(frozen=True, slots=True)
class Document:
    """What a state file says of itself and its guest.

    Attributes:
        id: The save's.
        saved_at: Seconds since the epoch, on the controller's clock.
        host, directory: Where the guest ran, and its ``RUN_DIR/NAME`` there.
        addresses: The host's migration address: what listened there is to listen on the new host's.
        qemu: Version that wrote it.
        machine: Versioned machine type.
        cpu: CPU model that the command line's alias stands for; None: none is given, or it is no alias.
        cpu_model, cpu_flags: The host's own CPU.
        cpu_lacking: Features of the CPU model that this host could not give.
        accel: ``kvm`` or ``tcg``.
        running: The guest ran when it was saved: it runs when it is restored.
        format, channels: How the state is written; channels of multifd, 0: without.
        state_bytes, state_sum: Its length, and the checksum that `CHUNK_BYTES` explains.
        console_bytes, console_sum: Likewise of the serial log's end; its sum is its plain SHA-256.
        images: The images that the guest had open, as they were once it had stopped.
    """

    id: str
    vm: str
    saved_at: float
    host: str
    directory: str
    addresses: str
    qemu: str
    argv: tuple[str, ...]
    machine: str | None
    cpu: str | None
    cpu_model: str
    cpu_flags: tuple[str, ...]
    cpu_lacking: tuple[str, ...]
    accel: str
    running: bool
    memory_bytes: int
    format: Format
    channels: int
    state_bytes: int
    state_sum: str
    console_bytes: int = 0
    console_sum: str = ""
    uuid: str | None = None
    images: tuple[Stamp, ...] = field(default=())

    def sealed(self) -> bytes:
        """Return the document and the footer: the end of the file.

        Raises:
            ConfigError: The command line is so long that nobody could read it back.
        """
        text = json.dumps({"schema": SCHEMA, **asdict(self)}, separators=(",", ":")).encode() + b"\n"
        if len(text) > MAX_DOCUMENT:
            raise ConfigError(f"the state file's document would have {len(text)} bytes, at most {MAX_DOCUMENT}")
        digest = hashlib.sha256(text).hexdigest()
        return text + f"qmp-migrate-state/1 {len(text):012d} {digest}\n".encode("ascii")


def document_length(footer: bytes) -> tuple[int, str] | None:
    """Return length and SHA-256 of the document that a footer announces; None: this is no state file, or not all of it."""
    match = _FOOTER.fullmatch(footer)
    if match is None or int(match[1]) > MAX_DOCUMENT:
        return None
    return int(match[1]), match[2].decode("ascii")


def opened(text: bytes, digest: str) -> Document:
    """Return the document of a state file.

    Args:
        text: The document's bytes.
        digest: What the footer says of them.

    Raises:
        ConfigError: It is damaged, or of a newer program.
    """
    if hashlib.sha256(text).hexdigest() != digest:
        raise ConfigError("the state file's document is damaged: its checksum is another one")
    try:
        found = json.loads(text)
        if found.get("schema") != SCHEMA:
            raise ConfigError(
                f"the state file has the schema {found.get('schema')!r}, this program knows {SCHEMA}",
                hint="use the newer qmp-migrate",
            )
        return _read(found)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"the state file's document cannot be read: {error!r}") from error


def _read(found: Mapping[str, Any]) -> Document:
    known = {f.name for f in fields(Document)}
    values = {name: value for name, value in found.items() if name in known}
    for name in ("argv", "cpu_flags", "cpu_lacking"):
        values[name] = tuple(str(word) for word in values[name])
    values["images"] = tuple(Stamp(**stamp) for stamp in values.get("images", ()))
    return Document(**values)
