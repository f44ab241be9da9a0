"""Character devices of a command line: consoles, logs and monitors, in QEMU's new and old notation."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from qmp_migrate.vm.commandline import properties
from qmp_migrate.vm.commandline.command_line import CommandLine, Option
from qmp_migrate.vm.commandline.option_table import CHARACTER_DEVICES
from qmp_migrate.vm.commandline.properties import Properties, escape

_NETWORK: Final = frozenset({"tcp", "telnet", "tn3270", "websocket"})
_HOST_PORT: Final = re.compile(r"(?P<host>\[[^\]]*\]|[^:,]*):(?P<port>[^,@]*)")


@dataclass(frozen=True, slots=True)
class Chardev:
    """One character device.

    Attributes:
        option: The option it comes from.
        backend: QEMU's name: ``socket``, ``file``, ``pty``, ``stdio``, ``null``, ``udp``, ``pipe``, ``chardev`` (a
            reference by id), …
        id: Its id (``-chardev``), or the id it refers to (``-serial chardev:ID``).
        path: File or UNIX socket.
        host: Address it listens on or connects to.
        port: TCP or UDP port, as text (QEMU takes service names too).
        server: Whether QEMU listens.
        waits: Whether QEMU waits for a client before it starts (its default for what listens).
    """

    option: Option
    backend: str
    id: str | None = None
    path: str | None = None
    host: str | None = None
    port: str | None = None
    server: bool = False
    waits: bool = False


@dataclass(frozen=True, slots=True)
class MonitorDevice:
    """One monitor of a command line.

    Attributes:
        mode: ``control`` (QMP) or ``readline`` (for people).
        chardev: Where it is reached.
    """

    mode: Literal["control", "readline"]
    chardev: Chardev


@dataclass(frozen=True, slots=True)
class OldNotation:
    """A character device as ``-serial`` and others write it, in its parts.

    Attributes:
        prefix: ``mon:`` where the monitor shares it, else ``""``.
        scheme: The word before the first colon (``unix``, ``file``, ``tcp``, ``chardev``), ``/`` for a bare device
            path, ``""`` for a bare word (``stdio``).
        rest: What follows the colon, without options; the whole path or word where there is none.
        options: ``,server=on,wait=off`` with its leading comma, or ``""``.
    """

    prefix: str
    scheme: str
    rest: str
    options: str = ""

    @classmethod
    def parse(cls, text: str) -> OldNotation:
        """Split `text`; `str` puts it together again, letter by letter."""
        prefix = "mon:" if text.startswith("mon:") else ""
        body = text.removeprefix(prefix)
        if body.startswith("/"):
            return cls(prefix, "/", body)
        scheme, colon, rest = body.partition(":")
        if not colon:
            return cls(prefix, "", body)
        if scheme in {"file", "pipe"}:  # the whole rest is the path, commas too
            return cls(prefix, scheme, rest)
        if scheme == "unix":
            end = re.search(r"(?<!,)(,,)*,(?!,)", rest)
            cut = end.end() - 1 if end else len(rest)
        else:
            cut = rest.find(",") if "," in rest else len(rest)
        return cls(prefix, scheme, rest[:cut], rest[cut:])

    def __str__(self) -> str:
        start = "" if self.scheme in {"", "/"} else f"{self.scheme}:"
        return f"{self.prefix}{start}{self.rest}{self.options}"

    @property
    def path(self) -> str | None:
        """The file or UNIX socket it names, or ``None``."""
        if self.scheme == "unix":
            return self.rest.replace(",,", ",")
        return self.rest if self.scheme in {"/", "file", "pipe"} else None

    def with_path(self, path: str) -> OldNotation:
        """Return the same with another path."""
        return OldNotation(self.prefix, self.scheme, escape(path) if self.scheme == "unix" else path, self.options)

    @property
    def listens(self) -> bool:
        """Whether ``server`` is among its options."""
        return bool(properties.read(self.options.removeprefix(",")).flag("server"))

    @property
    def waits(self) -> bool:
        """Whether ``wait`` is not turned off among its options."""
        return properties.read(self.options.removeprefix(",")).flag("wait") is not False


def _from_old(option: Option, text: str) -> Chardev:
    old = OldNotation.parse(text)
    if old.path is not None:
        backend = {"unix": "socket", "/": "parallel" if "par" in old.rest else "serial"}.get(old.scheme, old.scheme)
        server = old.scheme == "unix" and old.listens
        return Chardev(option, backend, path=old.path, server=server, waits=server and old.waits)
    if old.scheme in _NETWORK:
        address = _HOST_PORT.match(old.rest)
        host, port = (address["host"].strip("[]"), address["port"]) if address else (old.rest, None)
        # The debugger's stub listens without being told to.
        server = old.listens or option.name == "gdb"
        return Chardev(option, "socket", host=host, port=port, server=server, waits=old.listens and old.waits)
    if old.scheme == "udp":
        address = _HOST_PORT.match(old.rest)
        return Chardev(
            option, "udp", host=address["host"] if address else None, port=address["port"] if address else None
        )
    return Chardev(option, old.scheme or old.rest, id=old.rest if old.scheme == "chardev" else None)


def _from_properties(option: Option, given: Properties) -> Chardev:
    return Chardev(
        option,
        given.get("backend") or "",
        id=given.get("id"),
        path=given.get("path"),
        host=given.get("host"),
        port=given.get("port"),
        server=bool(given.flag("server")),
        waits=bool(given.flag("server")) and given.flag("wait") is not False,
    )


def chardevs(command: CommandLine) -> tuple[Chardev, ...]:
    """Return every character device that is given, in order; references (``chardev:ID``) are among them.

    Raises:
        UsageError: An option's JSON cannot be read.
    """
    return tuple(_all(command))


def _all(command: CommandLine) -> Iterator[Chardev]:
    for option in command.options:
        if option.name == "chardev":
            yield _from_properties(option, option.properties())
        elif option.name in CHARACTER_DEVICES and option.value is not None:
            yield _from_old(option, option.value)


def is_monitor(option: Option) -> bool:
    """Return whether an option puts a monitor on a character device: ``-mon``, or the objects that follow it in 11.1."""
    if option.name == "object":
        return option.properties().get("qom-type") in {"monitor-qmp", "monitor-hmp"}
    return option.name == "mon"


def monitors(command: CommandLine) -> tuple[MonitorDevice, ...]:
    """Return the monitors: ``-mon``, ``-object monitor-qmp``, ``-monitor``, ``-qmp``, … (``none`` is none).

    Raises:
        UsageError: An option's JSON cannot be read.
    """
    known = chardevs(command)
    by_id = {device.id: device for device in known if device.option.name == "chardev"}
    found: list[MonitorDevice] = []
    for option in command.options:
        if is_monitor(option):
            given = option.properties()
            device = by_id.get(given.get("chardev"))
            if device is not None:
                control = given.get("mode") == "control" or given.get("qom-type") == "monitor-qmp"
                found.append(MonitorDevice("control" if control else "readline", device))
        elif option.name in {"monitor", "qmp", "qmp-pretty"}:
            device = next(device for device in known if device.option is option)
            device = by_id.get(device.id, device) if device.backend == "chardev" else device
            if device.backend != "none":
                found.append(MonitorDevice("readline" if option.name == "monitor" else "control", device))
    return tuple(found)
