"""Topic names: building them, taking them apart, and the filters that select them.

Every level that holds a name (host, guest, migration, controller) is validated, so nothing that a user or a guest
chose can add a level (``/``) or a wildcard (``+``, ``#``) to a topic, and what arrives from a broker under a name
that we would never have written is no address at all::

    >>> topics = Topics()
    >>> topics.host_vm("a", "web1")
    'qmp-migrate/v1/host/a/vm/web1'
    >>> topics.parse("qmp-migrate/v1/host/a/vm/web1")
    Address(kind=<Kind.HOST_VM: 'host.vm'>, owner='a', vm='web1')
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from qmp_migrate.errors import ConfigError, InvalidName
from qmp_migrate.vm.names import validate_name

DEFAULT_ROOT: Final = "qmp-migrate/v1"

_ROOT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}(/[A-Za-z0-9][A-Za-z0-9_.-]{0,62}){0,3}")


class Kind(StrEnum):
    """What a topic carries. The value is the schema name of its payload."""

    HOST_STATUS = "host.status"
    HOST_INFO = "host.info"
    HOST_LOAD = "host.load"
    HOST_VM = "host.vm"
    HOST_EVENT = "host.event"
    HOST_TOKEN = "host.token"  # noqa: S105  # a word
    MIGRATION_STATE = "migration.state"
    MIGRATION_PROGRESS = "migration.progress"
    MIGRATION_EVENT = "migration.event"
    CONTROLLER_STATUS = "controller.status"

    @property
    def retained(self) -> bool:
        """Whether the topic holds state, which the broker keeps for those who come late."""
        return self not in (
            Kind.HOST_EVENT,
            Kind.HOST_TOKEN,
            Kind.MIGRATION_EVENT,
            Kind.MIGRATION_PROGRESS,
        )


@dataclass(frozen=True, slots=True)
class Address:
    """A topic, taken apart.

    Attributes:
        kind: What the topic carries.
        owner: Host, migration or controller id: who publishes under this topic.
        vm: Guest name, only for `Kind.HOST_VM`.
        migration: Migration id, only for `Kind.HOST_TOKEN`.
    """

    kind: Kind
    owner: str
    vm: str | None = None
    migration: str | None = None


@dataclass(frozen=True, slots=True)
class Topics:
    """All topics under one root.

    Args:
        root: First levels of every topic; at most four levels of letters, digits, ``_``, ``.`` and ``-``.

    Raises:
        ConfigError: The root is no such thing.
    """

    root: str = DEFAULT_ROOT

    def __post_init__(self) -> None:
        if not _ROOT.fullmatch(self.root):
            raise ConfigError(
                f"MQTT topic root {self.root!r} cannot be used",
                hint="use one to four levels of letters, digits, '_', '.' and '-', for example qmp-migrate/v1",
            )

    def host_status(self, host: str) -> str:
        """Return the topic of an agent's status and last will. Raises `InvalidName`."""
        return self._host(host, "status")

    def host_info(self, host: str) -> str:
        """Return the topic of what a host is. Raises `InvalidName`."""
        return self._host(host, "info")

    def host_load(self, host: str) -> str:
        """Return the topic of how busy a host is. Raises `InvalidName`."""
        return self._host(host, "load")

    def host_event(self, host: str) -> str:
        """Return the topic of the QMP events of a host's guests. Raises `InvalidName`."""
        return self._host(host, "event")

    def host_vm(self, host: str, vm: str) -> str:
        """Return the topic of one guest on one host. Raises `InvalidName`."""
        return self._host(host, f"vm/{validate_name(vm, 'guest name')}")

    def host_token(self, host: str, migration: str) -> str:
        """Return the topic on which a host's agent hands a guest over without the controller. Raises `InvalidName`."""
        return self._host(host, f"token/{validate_name(migration, 'migration id')}")

    def tokens_of(self, migration: str) -> str:
        """Return the filter for what all agents say of handing over in one migration. Raises `InvalidName`."""
        return f"{self.root}/host/+/token/{validate_name(migration, 'migration id')}"

    def migration_state(self, migration: str) -> str:
        """Return the topic of a migration's state. Raises `InvalidName`."""
        return self._migration(migration, "state")

    def migration_progress(self, migration: str) -> str:
        """Return the topic of a migration's numbers. Raises `InvalidName`."""
        return self._migration(migration, "progress")

    def migration_event(self, migration: str) -> str:
        """Return the topic of what happens in a migration. Raises `InvalidName`."""
        return self._migration(migration, "event")

    def controller_status(self, controller: str) -> str:
        """Return the topic of a controller's status and last will. Raises `InvalidName`."""
        return f"{self.root}/controller/{validate_name(controller, 'controller id')}/status"

    def all_hosts(self) -> str:
        """Return the filter for everything that agents say."""
        return f"{self.root}/host/#"

    def all_migrations(self) -> str:
        """Return the filter for everything that controllers say about migrations."""
        return f"{self.root}/migration/#"

    def all_controllers(self) -> str:
        """Return the filter for the status of every controller."""
        return f"{self.root}/controller/+/status"

    def vms_of(self, host: str) -> str:
        """Return the filter for the guests of one host. Raises `InvalidName`."""
        return self._host(host, "vm/+")

    def parse(self, topic: str) -> Address | None:
        """Take a topic apart; ``None`` where it is none of ours (another root, a bad name, an unknown kind)."""
        prefix = f"{self.root}/"
        if not topic.startswith(prefix):
            return None
        try:
            match topic.removeprefix(prefix).split("/"):
                case ["host", host, "vm", vm]:
                    return Address(Kind.HOST_VM, validate_name(host, "host name"), validate_name(vm, "guest name"))
                case ["host", host, "token", migration]:
                    name = validate_name(host, "host name")
                    return Address(Kind.HOST_TOKEN, name, migration=validate_name(migration, "migration id"))
                case ["host", host, ("status" | "info" | "load" | "event") as leaf]:
                    return Address(Kind(f"host.{leaf}"), validate_name(host, "host name"))
                case ["migration", migration, ("state" | "progress" | "event") as leaf]:
                    return Address(Kind(f"migration.{leaf}"), validate_name(migration, "migration id"))
                case ["controller", controller, "status"]:
                    return Address(Kind.CONTROLLER_STATUS, validate_name(controller, "controller id"))
        except InvalidName:
            return None
        return None

    def _host(self, host: str, leaf: str) -> str:
        return f"{self.root}/host/{validate_name(host, 'host name')}/{leaf}"

    def _migration(self, migration: str, leaf: str) -> str:
        return f"{self.root}/migration/{validate_name(migration, 'migration id')}/{leaf}"
