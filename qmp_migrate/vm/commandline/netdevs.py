"""Network backends of a command line."""

from __future__ import annotations

from dataclasses import dataclass

from qmp_migrate.vm.commandline.command_line import CommandLine, Option
from qmp_migrate.vm.commandline.properties import Properties


@dataclass(frozen=True, slots=True)
class Netdev:
    """One network backend: how frames leave the guest on its host.

    Attributes:
        option: The option it comes from.
        kind: ``user``, ``tap``, ``bridge``, ``socket``, ``stream``, ``dgram``, ``vhost-user``, …
        id: Its id; ``None`` where QEMU makes one up (``-nic``, ``-net``).
        properties: All its properties.
    """

    option: Option
    kind: str
    id: str | None
    properties: Properties


def netdevs(command: CommandLine) -> tuple[Netdev, ...]:
    """Return the network backends (``-netdev``, ``-nic``, ``-net`` other than ``nic``), in order; ``none`` is none.

    Raises:
        UsageError: An option's JSON cannot be read.
    """
    found = []
    for option in command.named("netdev", "nic", "net"):
        given = option.properties()
        kind = given.get("type") or "user"
        if kind != "none" and not (option.name == "net" and kind == "nic"):
            found.append(Netdev(option, kind, given.get("id"), given))
    return tuple(found)
