"""What is worth telling a person or a program, from what the bus says: pure, and a closed list of words."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from qmp_migrate.bus.client.subscription import Received
from qmp_migrate.bus.messages.field_types import now, rfc3339
from qmp_migrate.bus.messages.registry import HostEvent, HostStatus, MigrationState
from qmp_migrate.notice_kinds import KINDS

_OWN: Final = {
    "guardian-cancelled": "guest.taken-back",
    "handover-continued": "guest.handed-over",
}
_QMP: Final = {"GUEST_PANICKED": "guest.panicked", "BLOCK_IO_ERROR": "guest.io-error"}
_ENDINGS: Final = {"crashed": "guest.crashed", "killed": "guest.crashed", "shutdown": "guest.stopped"}


@dataclass(frozen=True, slots=True)
class Notice:
    """One thing that is told.

    Attributes:
        id: The same whenever the same thing is seen again: a receiver, and we, know it by that.
        kind: One of `KINDS`.
        vm: Guest, where it is about one.
        host: Host, where it is about one.
        text: In words.
        data: What the bus said.
    """

    id: str
    kind: str
    vm: str | None
    host: str | None
    text: str
    data: dict[str, Any] = field(default_factory=dict)

    def cloudevent(self) -> dict[str, Any]:
        """Return it as a CloudEvents 1.0 event (structured JSON)."""
        return {
            "specversion": "1.0",
            "id": self.id,
            "source": "/qmp-migrate/notify",
            "type": f"qmp-migrate.{self.kind}",
            "time": rfc3339(now()),
            "subject": self.vm or self.host,
            "datacontenttype": "application/json",
            "data": {"text": self.text, "vm": self.vm, "host": self.host, **self.data},
        }


def of(received: Received) -> Notice | None:
    """Return what is to be told of a message; ``None``: nothing."""
    message = received.message
    match message:
        case MigrationState(outcome=str(outcome)):
            kind = f"migration.{outcome}"
            if kind not in KINDS:
                return None
            way = f"{message.source} -> {message.destination}"
            why = f": {message.error.message}" if message.error is not None else ""
            return Notice(
                f"{message.id}.{outcome}.{message.rev}",
                kind,
                message.vm,
                message.destination if message.owner == "destination" else message.source,
                f"{message.vm} {way}: {KINDS[kind]}{why}",
                {"migration": message.id, "outcome": outcome, "owner": message.owner},
            )
        case HostStatus():
            kind = f"host.{message.state}"
            text = f"host {message.host}: {KINDS.get(kind, '')}"
            return (
                Notice(f"{message.host}.{message.session}.{message.state}", kind, None, message.host, text)
                if kind in KINDS
                else None
            )
        case HostEvent():
            return _of_event(message, received)
    return None


def _of_event(event: HostEvent, received: Received) -> Notice | None:
    host = received.address.owner if received.address is not None else None
    word = event.type.rpartition(".")[2]
    kind = _QMP.get(word) or _OWN.get(word)
    if word == "guest-gone":
        kind = _ENDINGS.get(str(event.data.get("reason")))
    if kind is None:
        return None
    data = {key: value for key, value in event.data.items() if isinstance(value, str | int | float | bool)}
    return Notice(event.id, kind, event.subject, host, f"{event.subject} on {host}: {KINDS[kind]}", data)


def silent(document: Mapping[str, Any], count: int) -> Notice:
    """Return what is to be told of a host that has fallen silent (`qmp_migrate.bus.consume.staleness`).

    Args:
        document: As `Silence.fallen` returns it.
        count: Tells one silence of a host from the next.
    """
    host = str(document["host"])
    return Notice(f"{host}.silent.{count}", "host.silent", None, host, f"host {host}: {KINDS['host.silent']}", {})


def conflict(document: Mapping[str, Any], count: int) -> Notice | None:
    """Return what is to be told of a conflict (`qmp_migrate.bus.consume.name_conflicts`); ``None`` where it has ended.

    Args:
        document: As `Conflicts.found` returns it.
        count: Tells one conflict from the next.
    """
    if document["kind"] == "host":
        host = str(document["host"])
        return Notice(f"{host}.conflict.{count}", "host.conflict", None, host, str(document["text"]), {})
    if not document["hosts"]:
        return None
    vm, data = str(document["vm"]), {name: document[name] for name in ("hosts", "uuids", "same_uuid")}
    return Notice(f"{vm}.conflict.{count}", "guest.conflict", vm, None, str(document["text"]), data)


@dataclass(frozen=True, slots=True)
class Filter:
    """Who wants to be told what.

    Attributes:
        on: Patterns of kinds.
        vm, host: Patterns of names; ``*``: all.
    """

    on: tuple[str, ...]
    vm: str = "*"
    host: str = "*"

    def admits(self, notice: Notice) -> bool:
        """Tell whether a notice is for them."""
        return (
            any(fnmatch.fnmatchcase(notice.kind, pattern) for pattern in self.on)
            and (notice.vm is None or fnmatch.fnmatchcase(notice.vm, self.vm))
            and (notice.host is None or fnmatch.fnmatchcase(notice.host, self.host))
            and (self.vm == "*" or notice.vm is not None)
        )
