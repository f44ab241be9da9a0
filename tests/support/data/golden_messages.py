"""Messages for tests of the bus, made from the golden payloads."""

from __future__ import annotations

import json
from typing import Any

from qmp_migrate.bus.client.presence import Presence
from qmp_migrate.bus.messages.registry import MODELS, BusMessage, HostStatus, HostVm, MigrationEvent
from qmp_migrate.bus.messages.session import Session
from qmp_migrate.bus.messages.topics import Kind, Topics
from tests import ROOT

GOLDEN = ROOT / "tests" / "data" / "bus_messages"


def golden(name: str) -> dict[str, Any]:
    """Return a golden payload, for example ``host.vm-1.0``."""
    document: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text())
    return document


def golden_of(kind: Kind) -> dict[str, Any]:
    """Return the golden payload of a kind, of the version that is written."""
    schema: str = MODELS[kind].model_fields["schema_id"].default
    return golden(schema.replace("/", "-"))


def message(kind: Kind, **changes: Any) -> BusMessage:
    """Return the golden message of a kind, with changes."""
    return MODELS[kind].model_validate_json(json.dumps({**golden_of(kind), **changes}))


def vm(name: str, **changes: Any) -> HostVm:
    """Return a guest on host ``a``."""
    made = message(Kind.HOST_VM, vm=name, **changes)
    assert isinstance(made, HostVm)
    return made


def event(seq: int) -> MigrationEvent:
    """Return an event of a migration, with its number."""
    made = message(Kind.MIGRATION_EVENT, seq=seq, id=str(seq))
    assert isinstance(made, MigrationEvent)
    return made


def presence_of_a() -> Presence:
    """Return the presence of an agent of host ``a``."""

    def document(state: str, session: Session) -> HostStatus:
        fields = {**golden("host.status-1.0"), "state": state, "session": session.id, "started_at": session.started_at}
        return HostStatus.model_validate(fields)

    return Presence(Topics().host_status("a"), document)
