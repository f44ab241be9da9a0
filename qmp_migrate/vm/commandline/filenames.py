"""What QEMU's block layer understands as a file name: a path, a URL, or one with a protocol in front.

A word before the first colon is a protocol when no slash comes before it (``file:/a``, ``nbd:unix:/a``, ``fat:rw:/a``);
``json:{…}`` holds properties of a block node.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final
from urllib.parse import quote, unquote

from qmp_migrate.vm.commandline import properties

_PROTOCOL: Final = re.compile(r"(?P<protocol>[^/:]*):(?P<rest>.*)", re.DOTALL)
_URL: Final = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://")
_SOCKET: Final = re.compile(r"(?P<before>.*[?&]socket=)(?P<path>[^&]*)(?P<after>.*)", re.DOTALL)

_TO_PATH: Final = frozenset({"file", "host_device", "host_cdrom", "blkdebug", "blkverify", "raw", "vvfat"})


def local_path(filename: str) -> str | None:
    """Return the path of a file on the host that `filename` names, or ``None`` where it names something else.

    A directory shown as a FAT disk (``fat:``) and the socket of a network disk are not the disk's file: ``None``.
    """
    match = _PROTOCOL.fullmatch(filename)
    if match is None:
        return filename or None
    if match["protocol"] in {"file", "host_device", "host_cdrom"} and not _URL.match(filename):
        return match["rest"]
    if filename.startswith("json:"):
        given = properties.read(filename.removeprefix("json:"), takes_json=True)
        named = next((value for key, value in given.items if key.rpartition(".")[2] == "filename"), None)
        return None if named is None else local_path(named)
    return None


def rewrite_filename(filename: str, change: Callable[[str], str]) -> str:
    """Return `filename` with every path in it replaced by ``change(path)``; the rest keeps its spelling.

    Raises:
        UsageError: A ``json:`` name that cannot be read.
    """
    if filename.startswith("json:"):

        def member(key: str, value: str) -> str:
            leaf = key.rpartition(".")[2]
            return rewrite_filename(value, change) if leaf == "filename" or value.startswith("/") else value

        return "json:" + properties.rewrite(filename.removeprefix("json:"), member, takes_json=True)
    if _URL.match(filename):
        socket = _SOCKET.fullmatch(filename)
        if socket is None:
            return filename
        path = unquote(socket["path"])
        changed = change(path)
        return filename if changed == path else f"{socket['before']}{quote(changed)}{socket['after']}"
    match = _PROTOCOL.fullmatch(filename)
    if match is None:
        return change(filename) if filename else filename
    protocol, rest = match["protocol"], match["rest"]
    if protocol in _TO_PATH:
        return f"{protocol}:{rewrite_filename(rest, change)}"
    if protocol == "nbd" and rest.startswith("unix:"):
        path, colon, tail = rest.removeprefix("unix:").partition(":")
        return f"nbd:unix:{change(path)}{colon}{tail}"
    if protocol == "fat":
        words = rest.split(":")
        return ":".join(["fat", *words[:-1], change(words[-1])]) if words[-1] else filename
    return filename
