"""What is said on the bus: one model per kind of topic (DESIGN §7).

Rules that all of them keep:

- ``schema`` is ``name/MAJOR.MINOR``. A new optional field raises MINOR, anything else raises MAJOR; a field's name is
  never used again with another meaning. Readers ignore fields they do not know and any MINOR, and refuse another MAJOR.
- Times are UTC, RFC 3339, milliseconds. Quantities carry their unit in the name (``_bytes``, ``_ms``, ``_percent``).
- What is unknown is ``null``, never 0 and never left out.
- A list of words that may grow (phase, run state, outcome) is open for readers.

`qmp_migrate.bus.messages.codec` turns them into payloads and back.
"""

from __future__ import annotations

from typing import Final

from qmp_migrate.bus.messages.base import BusMessage, CloudEvent, PresenceState, StatusMessage
from qmp_migrate.bus.messages.handover_token import HostToken
from qmp_migrate.bus.messages.host import (
    Cpu,
    GuestLoad,
    HostEvent,
    HostInfo,
    HostLoad,
    HostStatus,
    HostVm,
    InterfaceLoad,
    NetworkAddress,
    Pressure,
    QemuBinary,
    Role,
    Stalled,
)
from qmp_migrate.bus.messages.migration import (
    ControllerStatus,
    ErrorInfo,
    MigrationEvent,
    MigrationProgress,
    MigrationState,
)
from qmp_migrate.bus.messages.topics import Kind

__all__ = [
    "MODELS",
    "BusMessage",
    "CloudEvent",
    "ControllerStatus",
    "Cpu",
    "ErrorInfo",
    "GuestLoad",
    "HostEvent",
    "HostInfo",
    "HostLoad",
    "HostStatus",
    "HostToken",
    "HostVm",
    "InterfaceLoad",
    "MigrationEvent",
    "MigrationProgress",
    "MigrationState",
    "NetworkAddress",
    "PresenceState",
    "Pressure",
    "QemuBinary",
    "Role",
    "Stalled",
    "StatusMessage",
]

MODELS: Final[dict[Kind, type[BusMessage]]] = {
    Kind.HOST_STATUS: HostStatus,
    Kind.HOST_INFO: HostInfo,
    Kind.HOST_LOAD: HostLoad,
    Kind.HOST_VM: HostVm,
    Kind.HOST_EVENT: HostEvent,
    Kind.HOST_TOKEN: HostToken,
    Kind.MIGRATION_STATE: MigrationState,
    Kind.MIGRATION_PROGRESS: MigrationProgress,
    Kind.MIGRATION_EVENT: MigrationEvent,
    Kind.CONTROLLER_STATUS: ControllerStatus,
}
"""The model of each kind of topic."""
