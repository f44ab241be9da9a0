"""The ``jump`` setting of a host: ``user@host:port``."""

from __future__ import annotations

from dataclasses import dataclass, replace

from qmp_migrate.errors import ConfigError
from qmp_migrate.hosts.base import HostAddress


@dataclass(frozen=True, slots=True)
class Jump:
    """A host to go through.

    Attributes:
        host: DNS name or IP address.
        port: SSH port.
        user: SSH user, or ``None`` for that of the target.
    """

    host: str
    port: int = 22
    user: str | None = None

    @classmethod
    def parse(cls, text: str, *, host: str | None = None) -> Jump:
        """Read ``[user@]host[:port]``; an IPv6 address stands in brackets where a port follows.

        Raises:
            ConfigError: It does not read like that.
        """
        user, at, rest = text.rpartition("@")
        address, port = rest, "22"
        if rest.startswith("["):
            address, bracket, tail = rest[1:].partition("]")
            port = tail.removeprefix(":") if tail else "22"
            good = bool(bracket) and (not tail or tail.startswith(":"))
        elif rest.count(":") == 1:
            address, _, port = rest.partition(":")
            good = True
        else:
            good = True  # a name, an IPv4 address, or a bare IPv6 address
        if not good or not address or bool(at) != bool(user) or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ConfigError(f"jump = {text!r} cannot be read", hint="write user@host:port", host=host)
        return cls(address, int(port), user or None)

    def address(self, target: HostAddress) -> HostAddress:
        """Return how the jump host is reached: with the target's keys, known hosts and time limits."""
        return replace(
            target,
            name=f"{target.name} (jump {self.host})",
            address=self.host,
            port=self.port,
            user=self.user or target.user,
            jump=None,
        )
