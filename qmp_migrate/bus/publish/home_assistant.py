"""What Home Assistant is told: a device for each host and each guest, by MQTT discovery. Pure: messages in, payloads out.

A host's entities read what its agent publishes. A guest's cannot: while it moves it is on two hosts, and messages of two
publishers have no order. So where a guest is, is worked out here from all of them, and published as one small document.

Topics, below the discovery prefix (``homeassistant``); NODE is the root of the bus in letters that discovery allows:

====================================  ====================================================================
``COMPONENT/NODE/OBJECT/config``      retained; one entity, as home-assistant.io/integrations/mqtt describes it
``NODE/vm/VM``                        retained; where a guest is and how it fares
``NODE/status``                       retained; ``online``, or ``offline`` where nobody works that out now
====================================  ====================================================================
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from qmp_migrate.bus.client.subscription import Received
from qmp_migrate.bus.consume.name_conflicts import Conflicts
from qmp_migrate.bus.messages.field_types import rfc3339
from qmp_migrate.bus.messages.registry import HostStatus, HostVm, MigrationProgress, MigrationState
from qmp_migrate.bus.messages.session import package_version
from qmp_migrate.bus.messages.topics import Kind, Topics
from qmp_migrate.errors import UsageError

DEFAULT_PREFIX: Final = "homeassistant"
LIMIT: Final = 5_000
"""Devices of a kind; beyond that nothing is announced: Home Assistant would not bear it, and no publisher may force it."""
GONE_S: Final = 300.0
"""A guest or host that is gone keeps its entities for so long: taking one away takes its history and its settings with it."""
ELSEWHERE: Final = frozenset({"inmigrate", "postmigrate"})
"""Run states of a QEMU that does not have the guest: not yet, or no longer."""
PROBLEMS: Final = frozenset({"internal-error", "io-error", "guest-panicked", "watchdog"})

_PREFIX: Final = re.compile(r"[A-Za-z0-9_-]{1,63}(/[A-Za-z0-9_-]{1,63}){0,3}")
_LOAD: Final[dict[str, dict[str, Any]]] = {
    "cpu": {
        "name": "CPU",
        "icon": "mdi:cpu-64-bit",
        "unit_of_measurement": "%",
        "value_template": "{{ value_json.cpu_percent }}",
    },
    "memory_available": {
        "name": "Memory available",
        "device_class": "data_size",
        "unit_of_measurement": "GiB",
        "value_template": "{{ (value_json.memory_available_bytes / 2**30) | round(2) }}",
    },
    "received": {
        "name": "Received",
        "device_class": "data_rate",
        "unit_of_measurement": "MB/s",
        "value_template": "{{ (value_json.receive_bytes_per_s / 10**6) | round(3) }}",
    },
    "sent": {
        "name": "Sent",
        "device_class": "data_rate",
        "unit_of_measurement": "MB/s",
        "value_template": "{{ (value_json.transmit_bytes_per_s / 10**6) | round(3) }}",
    },
    "guests": {"name": "Guests", "icon": "mdi:server", "value_template": "{{ value_json.guests | length }}"},
}
_GUEST: Final[dict[tuple[str, str], dict[str, Any]]] = {
    ("sensor", "host"): {"name": "Host", "icon": "mdi:server", "value_template": "{{ value_json.host or 'none' }}"},
    ("sensor", "state"): {"name": "State", "icon": "mdi:power", "value_template": "{{ value_json.state }}"},
    ("binary_sensor", "migrating"): {
        "name": "Migrating",
        "icon": "mdi:swap-horizontal",
        "value_template": "{{ 'ON' if value_json.migrating else 'OFF' }}",
    },
    ("sensor", "progress"): {
        "name": "Migration progress",
        "icon": "mdi:progress-clock",
        "unit_of_measurement": "%",
        "value_template": "{{ value_json.percent }}",
    },
    ("sensor", "outcome"): {
        "name": "Last migration",
        "icon": "mdi:clipboard-check",
        "value_template": "{{ value_json.last.outcome or 'none' }}",
    },
    ("binary_sensor", "problem"): {
        "name": "Problem",
        "device_class": "problem",
        "value_template": "{{ 'ON' if value_json.problem else 'OFF' }}",
    },
}
_THERE: Final = "{{ 'online' if value_json.state in ('ready', 'draining') else 'offline' }}"


def node_of(root: str) -> str:
    """Return the node id of a bus: its root in the letters that discovery allows."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", root)


def object_of(kind: str, name: str, entity: str) -> str:
    """Return the object id of an entity: another one for each, whatever the names are."""
    plain = re.sub(r"[^a-z0-9-]", lambda found: f"_{ord(found[0]):02x}", name)
    return f"{kind}_{plain}_{entity}"


@dataclass(slots=True)
class _Guest:
    """What is known of a guest.

    Attributes:
        places: What each host says of it.
        host: Where it was last known to be.
        version: Of the QEMU that ran it last.
        gone_at: Since when no host has it.
    """

    places: dict[str, HostVm] = field(default_factory=dict)
    host: str | None = None
    version: str | None = None
    gone_at: float | None = None


@dataclass(slots=True)
class _Move:
    """The newest migration of a guest.

    Attributes:
        state: What its controller says.
        percent: How far it is, where that was said.
    """

    state: MigrationState
    percent: int | None = None


class HomeAssistant:
    """Works out what has to be published.

    Args:
        topics: The topics of the bus.
        prefix: Discovery prefix of Home Assistant.
        guests: Shell patterns: which guests are announced.

    Attributes:
        left_out: Devices that were one too many.

    Raises:
        UsageError: The prefix cannot be a topic, or holds the bus itself.
    """

    def __init__(self, topics: Topics, prefix: str = DEFAULT_PREFIX, guests: Sequence[str] = ("*",)) -> None:
        if not _PREFIX.fullmatch(prefix):
            raise UsageError(
                f"the discovery prefix {prefix!r} cannot be used",
                hint="one to four levels of letters, digits, '_' and '-'; Home Assistant's own is homeassistant",
            )
        if f"{prefix}/".startswith(f"{topics.root}/") or f"{topics.root}/".startswith(f"{prefix}/"):
            raise UsageError(f"the discovery prefix {prefix!r} is where the bus is", hint="use another one")
        self.left_out = 0
        self._topics = topics
        self._prefix = prefix
        self._node = node_of(topics.root)
        self._patterns = tuple(guests)
        self._guests: dict[str, _Guest] = {}
        self._hosts: dict[str, HostStatus] = {}
        self._hosts_gone: dict[str, float] = {}
        self._moves: OrderedDict[str, _Move] = OrderedDict()  # by guest
        self._conflicts = Conflicts()
        self._conflicting: set[str] = set()
        self._fresh: set[tuple[str, str]] = set()
        self._said: dict[str, bytes] = {}

    @property
    def status_topic(self) -> str:
        """The topic that says whether this is at work: ``online`` or ``offline``."""
        return f"{self._prefix}/{self._node}/status"

    @property
    def own_topics(self) -> tuple[str, ...]:
        """Filters for everything that is published for Home Assistant, but the status."""
        return f"{self._prefix}/+/{self._node}/+/config", f"{self._prefix}/{self._node}/vm/+"

    @property
    def said(self) -> dict[str, bytes]:
        """What is published now, by topic."""
        return {topic: payload for topic, payload in self._said.items() if payload}

    def hear(self, received: Received, at: float) -> None:
        """Take note of a message.

        Args:
            received: What came.
            at: When, seconds on a clock that is never set.
        """
        address, message = received.address, received.message
        if address is None or received.error is not None:
            return
        self._conflicts.hear(received, at)
        if address.kind is Kind.HOST_STATUS:
            self._hear_host(address.owner, message if isinstance(message, HostStatus) else None, at)
        elif address.kind is Kind.HOST_VM and address.vm is not None:
            self._hear_guest(address.vm, address.owner, message if isinstance(message, HostVm) else None, at)
        elif isinstance(message, MigrationState):
            self._hear_migration(message)
        elif isinstance(message, MigrationProgress):
            move = self._moves.get(message.vm or "")
            if move is not None and move.state.id == message.id:
                move.percent = int(message.percent)
                self._fresh.add(("guest", move.state.vm))

    def changes(self, at: float) -> dict[str, bytes]:
        """Return what has to be published since the last call, by topic; empty: clear it.

        Args:
            at: Now, on the clock of `hear`.
        """
        for document in self._conflicts.found(at):
            if document["kind"] == "guest" and (vm := document["vm"]) in self._guests:
                self._conflicting = self._conflicting - {vm} | ({vm} if document["hosts"] else set())
                self._fresh.add(("guest", vm))
        for host in [name for name, since in self._hosts_gone.items() if at - since >= GONE_S]:
            del self._hosts_gone[host], self._hosts[host]
            self._fresh.add(("host", host))
        for vm in [name for name, guest in self._guests.items() if _is_over(guest, at)]:
            del self._guests[vm]
            self._conflicting.discard(vm)
            self._fresh.add(("guest", vm))
        changed = {}
        for kind, name in sorted(self._fresh):
            for topic, payload in self._of(kind, name):
                if self._said.get(topic, b"") != payload:
                    changed[topic] = payload
                    if payload:
                        self._said[topic] = payload
                    else:
                        del self._said[topic]
        self._fresh.clear()
        return changed

    # -- what is known ------------------------------------------------------------------------------------------

    def _hear_host(self, host: str, status: HostStatus | None, at: float) -> None:
        if status is None:
            if host in self._hosts:
                self._hosts_gone.setdefault(host, at)
            return
        if host not in self._hosts and len(self._hosts) >= LIMIT:
            self.left_out += 1
            return
        was = self._hosts.get(host)
        self._hosts[host] = status
        self._hosts_gone.pop(host, None)
        self._fresh.add(("host", host))
        if was is None or was.state != status.state:
            self._fresh |= {("guest", vm) for vm, guest in self._guests.items() if host in guest.places}

    def _hear_guest(self, vm: str, host: str, state: HostVm | None, at: float) -> None:
        guest = self._guests.get(vm) if state is None else self._guest(vm)
        if guest is None:
            return
        if state is None:
            guest.places.pop(host, None)
        elif host in guest.places or len(guest.places) < LIMIT:
            guest.places[host] = state
            guest.version = state.qemu_version or guest.version
        if guest.places:
            guest.gone_at = None
        elif guest.gone_at is None:
            guest.gone_at = at
        self._fresh.add(("guest", vm))

    def _hear_migration(self, state: MigrationState) -> None:
        last = self._moves.get(state.vm)
        if last is None or last.state.id == state.id:
            self._moves[state.vm] = _Move(state, last.percent if last is not None else None)
        elif last.state.started_at <= state.started_at:  # retained states of several come in any order
            self._moves[state.vm] = _Move(state)
        self._moves.move_to_end(state.vm)
        if len(self._moves) > 2 * LIMIT:
            self._moves.popitem(last=False)
        self._fresh.add(("guest", state.vm))

    def _guest(self, vm: str) -> _Guest | None:
        if vm not in self._guests:
            if not any(fnmatch.fnmatchcase(vm, pattern) for pattern in self._patterns):
                return None
            if len(self._guests) >= LIMIT:
                self.left_out += 1
                return None
            self._guests[vm] = _Guest()
        return self._guests[vm]

    # -- what is said -------------------------------------------------------------------------------------------

    def _of(self, kind: str, name: str) -> Iterator[tuple[str, bytes]]:
        entities = self._host(name) if kind == "host" else self._guest_entities(name)
        there = name in (self._hosts if kind == "host" else self._guests)
        for component, entity, config in entities:
            topic = f"{self._prefix}/{component}/{self._node}/{object_of(kind, name, entity)}/config"
            yield topic, _payload(config) if there else b""
        if kind == "guest":
            yield f"{self._prefix}/{self._node}/vm/{name}", _payload(self._document(name)) if there else b""

    def _host(self, host: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
        status, load = self._topics.host_status(host), self._topics.host_load(host)
        known = self._hosts.get(host)
        common = self._common("host", host, known.version if known is not None else None)
        yield (
            "binary_sensor",
            "agent",
            {
                **common("agent"),
                "name": "Agent",
                "device_class": "connectivity",
                "state_topic": status,
                "value_template": "{{ 'ON' if value_json.state in ('ready', 'draining') else 'OFF' }}",
            },
        )
        there = [{"topic": status, "value_template": _THERE}]
        for entity, more in _LOAD.items():
            yield (
                "sensor",
                entity,
                {**common(entity), "state_topic": load, "availability": there, "state_class": "measurement", **more},
            )

    def _guest_entities(self, vm: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
        guest = self._guests.get(vm)
        common = self._common("guest", vm, guest.version if guest is not None else None)
        topic = f"{self._prefix}/{self._node}/vm/{vm}"
        for (component, entity), more in _GUEST.items():
            config = {
                **common(entity),
                "state_topic": topic,
                "availability": [{"topic": self.status_topic}],
                **more,
            }
            if entity == "outcome":
                config |= {
                    "json_attributes_topic": topic,
                    "json_attributes_template": "{{ value_json.last | tojson }}",
                }
            yield component, entity, config

    def _common(self, kind: str, name: str, version: str | None) -> Any:
        device = {
            "identifiers": [f"{self._node}_{object_of(kind, name, '')}".rstrip("_")],
            "name": name,
            "manufacturer": "qmp-migrate",
            "model": f"QEMU {kind}",
        }
        if version is not None:
            device["sw_version"] = version

        def of(entity: str) -> dict[str, Any]:
            return {
                "unique_id": f"{self._node}_{object_of(kind, name, entity)}",
                "device": device,
                "origin": {"name": "qmp-migrate", "sw_version": package_version()},
                "qos": 1,
            }

        return of

    def _document(self, vm: str) -> dict[str, Any]:
        guest = self._guests[vm]
        move = self._moves.get(vm)
        migration = move.state if move is not None else None
        moving = migration is not None and migration.outcome is None
        guest.host = self._where(vm) or (guest.host if guest.places or moving else None)
        state = guest.places.get(guest.host or "")
        if not guest.places:
            shown = "unknown" if moving else "gone"
        elif state is None or self._is_lost(guest.host):
            shown = "unknown"
        else:
            shown = state.runstate
        conflict = vm in self._conflicting
        ended = migration if migration is not None and not moving else None
        return {
            "host": ", ".join(sorted(self._here(guest))) if conflict else guest.host,
            "state": shown,
            "migrating": moving,
            "percent": move.percent if move is not None and moving else None,
            "problem": conflict or shown in PROBLEMS or (ended is not None and ended.outcome in ("failed", "unknown")),
            "last": {
                "outcome": ended.outcome if ended is not None else None,
                "id": ended.id if ended is not None else None,
                "source": ended.source if ended is not None else None,
                "destination": ended.destination if ended is not None else None,
                "error": ended.error.message if ended is not None and ended.error is not None else None,
                "at": rfc3339(ended.at) if ended is not None else None,
            },
        }

    def _where(self, vm: str) -> str | None:
        """Return the host that has a guest; None where nobody says so for the moment."""
        guest, move = self._guests[vm], self._moves.get(vm)
        here = self._here(guest)
        if len(here) > 1:  # one of them is old: the end of a migration has not come from everywhere yet
            if move is not None and move.state.owner == "destination" and move.state.destination in here:
                return move.state.destination
            return guest.host if guest.host in here else here[0]
        if here:
            return here[0]
        only = list(guest.places)
        return only[0] if len(only) == 1 and guest.host is None else None

    def _here(self, guest: _Guest) -> list[str]:
        there = [h for h, s in guest.places.items() if s.role != "incoming" and s.runstate not in ELSEWHERE]
        alive = [host for host in there if not self._is_lost(host)]
        return sorted(alive or there)

    def _is_lost(self, host: str | None) -> bool:
        status = self._hosts.get(host or "")
        return status is not None and status.state in ("lost", "stopped")


def _is_over(guest: _Guest, at: float) -> bool:
    return guest.gone_at is not None and at - guest.gone_at >= GONE_S


def _payload(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
