"""The controller's side of the bus: its own status, and its migrations as they go.

`MqttReporter` fits the `Reporter` port of `qmp_migrate.migration.model.reporter` without knowing it: the bus must not import
the migration, so what is read of its objects is written down here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final, Protocol

import structlog
from pydantic_core import to_jsonable_python

from qmp_migrate.bus.client.address import BrokerAddress
from qmp_migrate.bus.client.client import BusClient
from qmp_migrate.bus.client.presence import Presence
from qmp_migrate.bus.messages.field_types import now
from qmp_migrate.bus.messages.registry import (
    ControllerStatus,
    ErrorInfo,
    MigrationEvent,
    MigrationProgress,
    MigrationState,
    PresenceState,
)
from qmp_migrate.bus.messages.session import Session, begin_session, package_version
from qmp_migrate.bus.messages.topics import Topics

EVENT_TYPE: Final = "qmp-migrate.migration."
REMEMBERED: Final = 1_000
"""Ended migrations whose numbers a long-lived controller keeps."""

log = structlog.get_logger("qmp_migrate.bus")


class ViewLike(Protocol):
    """What is read of a `MigrationView`. ``started_at`` is in seconds since the epoch."""

    @property
    def id(self) -> str: ...  # noqa: D102
    @property
    def vm(self) -> str: ...  # noqa: D102
    @property
    def source(self) -> str: ...  # noqa: D102
    @property
    def destination(self) -> str: ...  # noqa: D102
    @property
    def mode(self) -> str: ...  # noqa: D102
    @property
    def phase(self) -> str: ...  # noqa: D102
    @property
    def rev(self) -> int: ...  # noqa: D102
    @property
    def started_at(self) -> float: ...  # noqa: D102
    @property
    def outcome(self) -> str | None: ...  # noqa: D102
    @property
    def owner(self) -> str | None: ...  # noqa: D102
    @property
    def error(self) -> Mapping[str, Any] | None: ...  # noqa: D102


class ProgressLike(Protocol):
    """What is read of a `Progress`."""

    @property
    def id(self) -> str: ...  # noqa: D102
    @property
    def seq(self) -> int: ...  # noqa: D102
    @property
    def status(self) -> str: ...  # noqa: D102
    @property
    def percent(self) -> float: ...  # noqa: D102
    @property
    def transferred_bytes(self) -> int: ...  # noqa: D102
    @property
    def remaining_bytes(self) -> int: ...  # noqa: D102
    @property
    def total_bytes(self) -> int: ...  # noqa: D102
    @property
    def throughput_bytes_per_s(self) -> int: ...  # noqa: D102
    @property
    def dirty_bytes_per_s(self) -> int: ...  # noqa: D102
    @property
    def pass_number(self) -> int: ...  # noqa: D102
    @property
    def throttle_percent(self) -> float: ...  # noqa: D102
    @property
    def expected_blackout_ms(self) -> float | None: ...  # noqa: D102
    @property
    def eta_ms(self) -> int | None: ...  # noqa: D102
    @property
    def elapsed_ms(self) -> int: ...  # noqa: D102
    @property
    def disk_transferred_bytes(self) -> int: ...  # noqa: D102
    @property
    def disk_total_bytes(self) -> int: ...  # noqa: D102


def controller_client(address: BrokerAddress, topics: Topics, controller: str) -> BusClient:
    """Return the client of a controller: with ``controller/ID/status`` and its last will. Start it with ``async with``.

    After a clean end the status topic is cleared, since a controller often lives for one command only; after a crash
    ``lost`` stays.

    Args:
        address: The broker.
        topics: The topics in use.
        controller: Id of this controller: a name by DESIGN rule 10, unique among those alive.

    Raises:
        InvalidName: The id is no name.
    """

    def document(state: PresenceState, session: Session) -> ControllerStatus:
        return ControllerStatus(
            controller=controller,
            at=now(),
            state=state,
            session=session.id,
            started_at=session.started_at,
            version=package_version(),
        )

    presence = Presence(topics.controller_status(controller), document, ephemeral=True)
    return BusClient(address, topics, role="ctl", presence=presence)


class MqttReporter:
    """Publishes migrations. One serves any number of them; its methods return at once and never raise.

    Args:
        client: Where to; its broker may be away.
        controller: Id of this controller.
    """

    def __init__(self, client: BusClient, controller: str) -> None:
        self._client = client
        self._topics = client.topics
        self._controller = controller
        # Of the process, not of the connection: numbers go on through an outage, so that what it swallowed shows.
        self._session = begin_session()
        self._seq: dict[str, int] = {}
        self._vm: dict[str, str] = {}
        self._failed: set[str] = set()

    def phase(self, view: ViewLike) -> None:
        """Publish that a phase was entered, or that the migration has ended: the state, and an event."""
        with self._never_raise("phase"):
            self._remember(view)
            state = MigrationState(
                id=view.id,
                vm=view.vm,
                source=view.source,
                destination=view.destination,
                mode=str(view.mode),
                phase=str(view.phase),
                outcome=None if view.outcome is None else str(view.outcome),
                owner=None if view.owner is None else str(view.owner),
                error=None if view.error is None else ErrorInfo.model_validate(dict(view.error)),
                started_at=datetime.fromtimestamp(view.started_at, UTC),
                at=now(),
                rev=view.rev,
                controller=self._controller,
            )
            self._client.publish_state(self._topics.migration_state(view.id), state)
            told = state.model_dump(mode="json", include={"phase", "outcome", "owner", "error", "rev"})
            self._publish_event(view.id, "phase", told)

    def progress(self, progress: ProgressLike) -> None:
        """Publish the numbers; newer ones overtake older ones that could not be sent yet."""
        with self._never_raise("progress"):
            message = MigrationProgress(
                id=progress.id,
                vm=self._vm.get(progress.id),
                at=now(),
                seq=progress.seq,
                status=str(progress.status),
                transferred_bytes=int(progress.transferred_bytes),
                remaining_bytes=int(progress.remaining_bytes),
                total_bytes=int(progress.total_bytes),
                dirty_bytes_per_s=int(progress.dirty_bytes_per_s),
                throughput_bytes_per_s=int(progress.throughput_bytes_per_s),
                pass_number=int(progress.pass_number),
                throttle_percent=float(progress.throttle_percent),
                expected_blackout_ms=progress.expected_blackout_ms,
                eta_ms=None if progress.eta_ms is None else int(progress.eta_ms),
                percent=float(progress.percent),
                elapsed_ms=int(progress.elapsed_ms),
                disk_transferred_bytes=int(progress.disk_transferred_bytes),
                disk_total_bytes=int(progress.disk_total_bytes),
            )
            self._client.publish_progress(self._topics.migration_progress(progress.id), message)

    def event(self, kind: str, data: Mapping[str, Any]) -> None:
        """Publish something that happened once.

        Args:
            kind: ``step``, ``warning``, ``switchover``, ``committed``, ``rolled-back``, ``done``…; ends the type.
            data: What belongs to the kind; ``id`` says which migration.
        """
        with self._never_raise("event"):
            self._publish_event(str(data["id"]), kind, data)

    def _publish_event(self, migration: str, kind: str, data: Mapping[str, Any]) -> None:
        seq = self._seq[migration] = self._seq.get(migration, 0) + 1
        event = MigrationEvent(
            id=f"{self._session.id}.{migration}.{seq}",
            source=f"/qmp-migrate/controller/{self._controller}",
            type=f"{EVENT_TYPE}{kind}",
            time=now(),
            subject=self._vm.get(migration),
            session=self._session.id,
            seq=seq,
            data={key: value for key, value in to_jsonable_python(dict(data), fallback=str).items() if key != "id"},
        )
        self._client.publish_event(self._topics.migration_event(migration), event)

    def _remember(self, view: ViewLike) -> None:
        self._vm[view.id] = view.vm
        while len(self._vm) > REMEMBERED:
            oldest = next(iter(self._vm))
            del self._vm[oldest]
            self._seq.pop(oldest, None)

    @contextlib.contextmanager
    def _never_raise(self, method: str) -> Iterator[None]:
        """What watches a migration must not be able to disturb it; the first failure of each kind is logged."""
        try:
            yield
        except Exception as error:
            if method not in self._failed:
                self._failed.add(method)
                log.warning("report-not-published", report=method, reason=str(error), further="not repeated")
