"""Where a command line listens on an address of its host, and how to make it listen on another.

Addresses that QEMU connects *to* are somebody else's and stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from qmp_migrate.vm.commandline import properties
from qmp_migrate.vm.commandline.chardevs import OldNotation
from qmp_migrate.vm.commandline.command_line import Option
from qmp_migrate.vm.commandline.option_table import CHARACTER_DEVICES, IMPLIED_KEY, TAKES_JSON
from qmp_migrate.vm.commandline.properties import Properties

_NETWORK: Final = frozenset({"tcp", "telnet", "tn3270", "websocket"})
_HOST_PORT: Final = re.compile(r"(?P<host>\[[^\]]*\]|[^:\[\]]*):(?P<port>[^:]*)")
_FORWARD_KEY: Final = re.compile(r"hostfwd(\.[0-9]+\.str)?")
_FORWARD: Final = re.compile(r"(?P<protocol>[a-z]*):(?P<host>\[[^\]]*\]|[^:\[\]]*):(?P<rest>[0-9]+-.*)")

Change = Callable[[str], str]


def rewrite_listeners(option: Option, change: Change) -> Option:
    """Return `option` with each address it listens on replaced by what `change` answers.

    Args:
        option: Any option.
        change: Gets an address without brackets, ``""`` for every address; returns the address to put there.

    Raises:
        UsageError: Its JSON cannot be read.
    """
    text = option.value
    if not text:
        return option
    name = option.name
    if name in CHARACTER_DEVICES:
        old = OldNotation.parse(text)
        if old.scheme in _NETWORK and (old.listens or name == "gdb"):
            changed = OldNotation(old.prefix, old.scheme, _host_port(old.rest, change), old.options)
            return option.with_value(str(changed))
        if old.scheme == "udp" and "@" in old.rest:
            remote, _, local = old.rest.partition("@")
            changed = OldNotation(old.prefix, old.scheme, f"{remote}@{_host_port(local, change)}", old.options)
            return option.with_value(str(changed))
        return option
    if name not in IMPLIED_KEY or name in {"device", "drive", "blockdev", "object"}:
        return option
    given = option.properties()
    rewritten = properties.rewrite(
        text,
        lambda key, value: _property(name, key, value, given, change),
        implied=IMPLIED_KEY[name],
        takes_json=name in TAKES_JSON,
    )
    return option.with_value(rewritten)


def _property(name: str, key: str, value: str, given: Properties, change: Change) -> str:
    if (name, key) in {("vnc", "vnc"), ("display", "vnc")}:
        return value if value.startswith("unix:") else _host_port(value, change)
    if (name, key) == ("spice", "addr"):
        return value if value.startswith("/") else change(value)
    if name == "chardev":
        listens = (key == "host" and given.flag("server")) or key == "localaddr"
        return change(value) if listens else value
    if name in {"netdev", "nic", "net"}:
        return _netdev(key, value, given, change)
    return value


def _netdev(key: str, value: str, given: Properties, change: Change) -> str:
    kind = given.get("type")
    if _FORWARD_KEY.fullmatch(key):
        forward = _FORWARD.fullmatch(value)
        if forward is None:
            return value
        return f"{forward['protocol']}:{_bracketed(forward['host'], change)}:{forward['rest']}"
    if kind == "socket" and key == "listen":
        return _host_port(value, change)
    if kind == "socket" and key == "localaddr":
        return _host_port(value, change) if _HOST_PORT.fullmatch(value) else change(value)
    if kind == "l2tpv3" and key == "src":
        return change(value)
    if (kind == "stream" and key == "addr.host" and given.flag("server")) or (kind == "dgram" and key == "local.host"):
        return change(value)
    return value


def _host_port(text: str, change: Change) -> str:
    match = _HOST_PORT.fullmatch(text)
    return f"{_bracketed(match['host'], change)}:{match['port']}" if match else text


def _bracketed(host: str, change: Change) -> str:
    bare = host.strip("[]")
    changed = change(bare)
    if changed == bare:
        return host
    return f"[{changed}]" if ":" in changed else changed
