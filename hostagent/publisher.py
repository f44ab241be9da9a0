"""The agent's side of the bus: its status with the last will, its host, its guests and their events."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import structlog
from pydantic_core import to_jsonable_python

from qmp_migrate.bus.client.address import BrokerAddress
from qmp_migrate.bus.client.client import BusClient
from qmp_migrate.bus.client.presence import Presence
from qmp_migrate.bus.messages.field_types import now
from qmp_migrate.bus.messages.registry import (
    HostEvent,
    HostInfo,
    HostLoad,
    HostStatus,
    HostToken,
    HostVm,
    PresenceState,
)
from qmp_migrate.bus.messages.session import Session, begin_session, package_version
from qmp_migrate.bus.messages.topics import Topics

QMP_TYPE: Final = "org.qemu.qmp."
OWN_TYPE: Final = "qmp-migrate.host."

log = structlog.get_logger("hostagent")


class Publisher:
    """Publishes one host. All methods but the contexts return at once and never raise.

    Args:
        address: The broker.
        topics: The topics in use.
        host: Name of the host.
        interval_s: Seconds between load reports, told to readers.

    Attributes:
        client: The connection.

    Raises:
        InvalidName: The host name is no name.
    """

    def __init__(self, address: BrokerAddress, topics: Topics, host: str, *, interval_s: float) -> None:
        self._topics = topics
        self._host = host
        self._interval_s = interval_s
        # Of the process, not of the connection: numbers go on through an outage, so that what it swallowed shows.
        self._session = begin_session()
        self._seq = 0
        self._guests: set[str] = set()
        self._refused: set[str] = set()
        presence = Presence(topics.host_status(host), self._status)
        self.client = BusClient(address, topics, role="agent", presence=presence)

    def _status(self, state: PresenceState, session: Session) -> HostStatus:
        return HostStatus(
            host=self._host,
            at=now(),
            state=state,
            session=session.id,
            started_at=session.started_at,
            interval_s=self._interval_s,
            version=package_version(),
        )

    @property
    def events(self) -> int:
        """How many events there were in this session, published or not."""
        return self._seq

    def info(self, info: HostInfo) -> None:
        """Publish what the host is."""
        self.client.publish_state(self._topics.host_info(self._host), info)

    def load(self, load: HostLoad) -> None:
        """Publish how busy the host is."""
        self.client.publish_state(self._topics.host_load(self._host), load, qos=0)

    def expect(self, vm: str) -> None:
        """Take note that a guest is here, before anything is known of it: its retained topic is not a stale one."""
        self._guests.add(vm)

    def guest(self, state: HostVm) -> None:
        """Publish what a guest's state is."""
        self.client.publish_state(self._topics.host_vm(self._host, state.vm), state)

    def guest_gone(self, vm: str) -> None:
        """Clear a guest's topic: it is no longer on this host."""
        self._guests.discard(vm)
        self.client.clear_state(self._topics.host_vm(self._host, vm))

    def qmp_event(self, vm: str, name: str, data: Mapping[str, Any], *, seconds: float, publish: bool = True) -> None:
        """Publish a QMP event of a guest.

        Args:
            vm: The guest.
            name: QEMU's name of the event.
            data: Its data.
            seconds: QEMU's clock, since the epoch.
            publish: False: too many; only count it, so that readers see a gap.
        """
        with self._say_once("event"):
            moment = datetime.fromtimestamp(seconds, UTC) if seconds > 0 else now()
            self._event(f"{QMP_TYPE}{name}"[:256], vm, data, moment, publish=publish)

    def own_event(self, kind: str, vm: str, data: Mapping[str, Any]) -> None:
        """Publish what the agent itself has seen or done: ``guest-appeared``, ``guest-gone``, ``guardian-…``."""
        with self._say_once("event"):
            self._event(f"{OWN_TYPE}{kind}", vm, data, now(), publish=True)

    def _event(self, kind: str, vm: str, data: Mapping[str, Any], moment: datetime, *, publish: bool) -> None:
        self._seq += 1
        if not publish:
            return
        event = HostEvent(
            id=f"{self._session.id}.{self._seq}",
            source=f"/qmp-migrate/host/{self._host}",
            type=kind,
            time=moment,
            subject=vm,
            session=self._session.id,
            seq=self._seq,
            data=to_jsonable_python(dict(data), fallback=str),
        )
        self.client.publish_event(self._topics.host_event(self._host), event)

    def token(self, token: HostToken) -> None:
        """Publish a word of a hand-over to the agent of the other host."""
        self.client.publish_event(self._topics.host_token(self._host, token.migration), token)

    async def clear_strangers(self) -> None:
        """Clear retained guests of ours that are not here (any more), for as long as this runs.

        They are from before a crash of this agent, or from a broker that was restored from an old copy.

        Raises:
            BusError: The broker does not let us read our own topics.
        """
        async with self.client.subscribe(self._topics.vms_of(self._host)) as messages:
            async for received in messages:
                vm = received.address.vm if received.address is not None else None
                if vm is not None and vm not in self._guests and not received.cleared:
                    self.client.clear_state(received.topic)

    @contextlib.contextmanager
    def _say_once(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if what not in self._refused:
                self._refused.add(what)
                log.warning("not-published", what=what, reason=str(error), further="not repeated")
