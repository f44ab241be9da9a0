"""Two that claim to be one: a guest's name on two hosts, a host's name with two agents. Shown, never merged.

Nothing is decided here, and nothing is left out of what a subscriber gets: it is told, once, that there are two.

A migration is no conflict: while it lasts, one of the two says ``source`` or ``incoming``. What a host says that is known to
be gone does not count, and what changes back within a moment is not told: messages of two publishers have no order.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final

from qmp_migrate.bus.client.subscription import Received
from qmp_migrate.bus.messages.registry import CloudEvent, HostStatus, HostVm
from qmp_migrate.bus.messages.topics import Kind

SETTLED_S: Final = 2.0
"""A conflict is told once it has lasted for so long."""
REMEMBERED: Final = 50_000
"""Guests and hosts that are remembered; a hostile publisher cannot make it more."""
PAST_SESSIONS: Final = 16
RETURNS: Final = 3
"""A session of the same boot that came back so often is another agent. Once may be a message that was late."""
NOT_THERE: Final = frozenset({"inmigrate", "postmigrate", "finish-migrate", "prelaunch", "shutdown", "unknown"})


def conflict_document(vm: str, uuids: Mapping[str, str | None]) -> dict[str, Any]:
    """Return ``events.conflict/1`` for a guest.

    Args:
        vm: The name.
        uuids: The guest's UUID by host, None where unknown; empty: the conflict has ended.
    """
    hosts = sorted(uuids)
    same = len(set(uuids.values())) == 1 and None not in uuids.values()
    where = " and ".join(hosts)
    if not hosts:
        text = f"{vm}: no longer on two hosts"
    elif same:
        text = f"{vm}: runs on {where} with the same UUID: it may be one guest, twice"
    else:
        text = f"{vm}: there is one on {where}: two guests of one name"
    return {
        "schema": "events.conflict/1",
        "kind": "guest",
        "vm": vm,
        "hosts": hosts,
        "uuids": dict(uuids),
        "same_uuid": same,
        "text": text,
    }


class Conflicts:
    """Watches for names that are used twice. Pure: the time comes from outside."""

    def __init__(self) -> None:
        self._guests: OrderedDict[str, dict[str, HostVm]] = OrderedDict()
        self._gone: set[str] = set()
        self._since: dict[str, float] = {}
        self._told: dict[str, tuple[str, ...]] = {}
        self._sessions: OrderedDict[str, _Sessions] = OrderedDict()
        self._doubled: list[str] = []

    def hear(self, received: Received, at: float) -> None:
        """Take note of a message.

        Args:
            received: What came.
            at: When, seconds on a clock that is never set.
        """
        address, message = received.address, received.message
        if address is None:
            return
        if address.kind is Kind.HOST_VM and address.vm is not None:
            self._hear_guest(address.vm, address.owner, message if isinstance(message, HostVm) else None, at)
        elif isinstance(message, HostStatus):
            self._hear_host(message, at)
        elif address.kind is Kind.HOST_EVENT and isinstance(message, CloudEvent):
            self._hear_session(address.owner, message.session)

    def found(self, at: float) -> list[dict[str, Any]]:
        """Return a document for each conflict that has begun, changed or ended since the last call."""
        documents = []
        for vm, since in list(self._since.items()):
            if at - since < SETTLED_S:
                continue
            del self._since[vm]
            hosts = tuple(sorted(self._claims(vm)))
            if len(hosts) < 2:
                hosts = ()
            if hosts != self._told.get(vm, ()):
                places = self._guests.get(vm, {})
                documents.append(conflict_document(vm, {host: places[host].uuid for host in hosts}))
                self._told[vm] = hosts
                if not hosts:
                    del self._told[vm]
        for host in self._doubled:
            text = f"host/{host}: two agents use this name; what is told of it is of both"
            documents.append({"schema": "events.conflict/1", "kind": "host", "host": host, "text": text})
        self._doubled.clear()
        return documents

    def _hear_guest(self, vm: str, host: str, state: HostVm | None, at: float) -> None:
        places = self._guests.setdefault(vm, {})
        self._guests.move_to_end(vm)
        if state is None:
            places.pop(host, None)
        elif host in places or len(places) < 1000:
            places[host] = state
        if not places:
            del self._guests[vm]
        if len(places) > 1 or vm in self._told:
            self._since.setdefault(vm, at)
        while len(self._guests) > REMEMBERED:
            self._forget(next(iter(self._guests)))

    def _hear_host(self, status: HostStatus, at: float) -> None:
        was_gone = status.host in self._gone
        if status.state in ("lost", "stopped"):
            if len(self._gone) < REMEMBERED:
                self._gone.add(status.host)
        else:
            self._gone.discard(status.host)
            self._hear_session(status.host, status.session)
        if was_gone != (status.host in self._gone):
            for vm, places in self._guests.items():
                if status.host in places and (len(places) > 1 or vm in self._told):
                    self._since.setdefault(vm, at)

    def _hear_session(self, host: str, session: str) -> None:
        if self._sessions.setdefault(host, _Sessions()).doubled_by(session):
            self._doubled.append(host)
        self._sessions.move_to_end(host)
        while len(self._sessions) > REMEMBERED:
            self._sessions.popitem(last=False)

    def _claims(self, vm: str) -> list[str]:
        return [
            host
            for host, state in self._guests.get(vm, {}).items()
            if state.role == "idle" and state.runstate not in NOT_THERE and host not in self._gone
        ]

    def _forget(self, vm: str) -> None:
        self._guests.pop(vm, None)
        self._since.pop(vm, None)
        self._told.pop(vm, None)


class _Sessions:
    """The sessions that speak for one host, newest last."""

    __slots__ = ("_current", "_past", "_returns", "_said")

    def __init__(self) -> None:
        self._current = ""
        self._past: OrderedDict[str, None] = OrderedDict()
        self._returns = 0
        self._said = False

    def doubled_by(self, session: str) -> bool:
        """Tell whether, with this one, there are two agents; once."""
        if session == self._current:
            return False
        twice = False
        if session in self._past:
            self._returns += 1
            # A machine that has booted anew does not speak as of before; one process that reconnects may, once or so.
            twice = _boot(session) != _boot(self._current) or self._returns >= RETURNS
        if self._current:
            self._past[self._current] = None
            self._past.move_to_end(self._current)
            if len(self._past) > PAST_SESSIONS:
                self._past.popitem(last=False)
        self._current = session
        if not twice or self._said:
            return False
        self._said = True
        return True


def _boot(session: str) -> str:
    return session.rpartition(".")[0]
