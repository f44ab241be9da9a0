"""What a controller says about itself and its migrations."""

from __future__ import annotations

from pydantic import Field

from qmp_migrate.bus.messages.base import BusMessage, CloudEvent, Part, SchemaId, StatusMessage
from qmp_migrate.bus.messages.field_types import Count, Name, Percent, Real, Text, Timestamp, Word


class ControllerStatus(StatusMessage):
    """``controller/ID/status``: a controller.

    Attributes:
        controller: Its id.
    """

    schema_id: SchemaId = Field(default="controller.status/1.0", alias="schema")

    controller: Name

    @property
    def speaker(self) -> str:
        """The controller."""
        return self.controller


class ErrorInfo(Part):
    """An error, as in ``migration.result/1``.

    Attributes:
        code: Stable, for programs.
        message: What happened, for people.
        hint: What to do about it, or ``null``.
        host: Where it happened, or ``null``.
    """

    code: Word
    message: Text
    hint: Text | None = None
    host: Text | None = None


class MigrationState(BusMessage):
    """``migration/ID/state``: retained; where a migration stands.

    Attributes:
        id: Migration id.
        vm: Guest name.
        source: Host it comes from.
        destination: Host it goes to.
        mode: ``live``, ``postcopy`` or ``offline``.
        phase: Phase of DESIGN §5.
        outcome: ``completed``, ``rolled_back``, ``cancelled``, ``failed``, ``unknown``; ``null`` while it runs.
        owner: ``source``, ``destination``, ``none``, ``unknown``: who may run the guest, or ``null``.
        error: Why it did not complete, or ``null``.
        started_at: When it was asked for.
        at: When this was written.
        rev: Grows with every change: a lower one is old news.
        controller: Who runs it.
    """

    schema_id: SchemaId = Field(default="migration.state/1.0", alias="schema")

    id: Name
    vm: Name
    source: Name
    destination: Name
    mode: Word
    phase: Word
    outcome: Word | None
    owner: Word | None
    error: ErrorInfo | None
    started_at: Timestamp
    at: Timestamp
    rev: Count
    controller: Name

    @property
    def speaker(self) -> str:
        """The migration."""
        return self.id


class MigrationProgress(BusMessage):
    """``migration/ID/progress``: QoS 0, a few times a second, the newest counts.

    Attributes:
        id: Migration id.
        vm: Guest name, or ``null`` where it was not said yet.
        at: When this was measured.
        seq: Grows; reports that were overtaken are left out.
        status: QEMU's migration status, in QEMU's spelling.
        transferred_bytes: Sent so far.
        remaining_bytes: Still to send, of this pass.
        total_bytes: The guest's memory.
        dirty_bytes_per_s: How fast the guest dirties memory.
        throughput_bytes_per_s: How fast memory travels.
        pass_number: QEMU's dirty-sync round.
        throttle_percent: How much QEMU slows the guest down.
        expected_blackout_ms: QEMU's estimate were the switchover now, or ``null``.
        eta_ms: Until the switchover, or ``null`` where it does not converge or is not known.
        percent: Never goes back.
        elapsed_ms: Since it was asked for.
        disk_transferred_bytes: Of disks that are copied along; ``status`` is ``mirroring`` until they are.
        disk_total_bytes: Of them; grows while the guest writes. 0: no disk is copied.
    """

    schema_id: SchemaId = Field(default="migration.progress/1.1", alias="schema")

    id: Name
    vm: Name | None
    at: Timestamp
    seq: Count
    status: Word
    transferred_bytes: Count
    remaining_bytes: Count
    total_bytes: Count
    dirty_bytes_per_s: Count
    throughput_bytes_per_s: Count
    pass_number: Count
    throttle_percent: Percent
    expected_blackout_ms: Real | None
    eta_ms: Count | None
    percent: Percent
    elapsed_ms: Count
    disk_transferred_bytes: Count = 0
    disk_total_bytes: Count = 0

    @property
    def speaker(self) -> str:
        """The migration."""
        return self.id


class MigrationEvent(CloudEvent):
    """``migration/ID/event``: a phase entered, a step taken and why, switchover, commit, rollback, end."""

    schema_id: SchemaId = Field(default="migration.event/1.0", alias="schema")
