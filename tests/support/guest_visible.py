"""What of a command line the guest can tell, for comparing two of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from qmp_migrate.vm.commandline import properties
from qmp_migrate.vm.commandline.chardevs import chardevs, is_monitor
from qmp_migrate.vm.commandline.command_line import CommandLine, Option
from qmp_migrate.vm.commandline.listen_addresses import rewrite_listeners
from qmp_migrate.vm.commandline.option_table import TAKES_JSON
from qmp_migrate.vm.commandline.paths import rewrite_paths

# fmt: off
_HOST_SIDE: Final = frozenset(
    {
        "D", "L", "S", "add-fd", "async-teardown", "chroot", "compat", "d", "daemonize", "dfilter", "display",
        "dump-vmstate", "echr", "enable-sync-profile", "full-screen", "gdb", "incoming", "jitdump", "k", "loadvm",
        "monitor", "msg", "name", "no-user-config", "only-migratable", "overcommit", "perfmap", "pidfile",
        "plugin", "portrait", "qmp", "qmp-pretty", "qtest", "qtest-log", "rotate", "run-with", "runas", "s", "sandbox",
        "spice", "trace", "vnc",
    }
)
"""Options that the guest cannot see."""
# fmt: on


def guest_visible(command: CommandLine) -> tuple[Option, ...]:
    """Return what the guest can tell of a command line, for comparing two of them.

    It is without monitors, displays, logs and the like; with every path and listening address of the host replaced by one
    word, options under one spelling, and JSON under one. Two command lines with the same answer build the same machine
    (the alias of a machine type and the type are two different answers: pin first).

    Raises:
        UsageError: An option's JSON cannot be read.
    """
    return tuple(_visible(command))


def _visible(command: CommandLine) -> Iterator[Option]:
    host_side = _monitor_chardevs(command)
    for option in command.options:
        if option.name in _HOST_SIDE or is_monitor(option):
            continue
        if option.name == "chardev" and option.properties().get("id") in host_side:
            continue
        neutral = rewrite_listeners(rewrite_paths(option, lambda _path, _kind: "/path"), lambda _address: "address")
        text = neutral.value
        if text is not None:
            text = properties.canonical(text, takes_json=option.name in TAKES_JSON)
        yield Option(f"-{option.name}" if option.flag else "", text)


def _monitor_chardevs(command: CommandLine) -> set[str | None]:
    """Return the ids of character devices that nothing but a monitor uses."""
    monitors: set[str | None] = set()
    others: set[str | None] = set()
    for option in command.options:
        if option.name != "chardev" and option.has_properties:
            (monitors if is_monitor(option) else others).update(option.properties().all("chardev"))
    for device in chardevs(command):
        if device.backend == "chardev":
            (monitors if device.option.name in {"monitor", "qmp", "qmp-pretty"} else others).add(device.id)
    return monitors - others
