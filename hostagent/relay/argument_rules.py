"""Whether an argument of a script is one that the script may have. Default: no."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Final

from hostagent.relay.settings import Allowed

NAME: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
WORD: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:+@-]{0,127}")
NUMBER: Final = re.compile(r"[0-9]{1,15}")
BOOT: Final = re.compile(r"[0-9a-f-]{36}")
TEXT_LIMIT: Final = 400
DEVICES: Final = frozenset({"/dev/kvm", "/dev/urandom", "/dev/random", "/dev/net/tun", "/dev/vhost-net"})
"""What a guest may need besides files; the controller looks whether it is there."""
READ: Final = frozenset({"argv.json", "qemu.log"})
WRITTEN: Final = frozenset({"serial.log.1"})
"""What the controller itself writes into a guest's directory. Its pid and its record are written when it is started."""
KEPT: Final = ("pid", "argv.json", "cwd", "qemu.log")
"""Beginnings of names that a guest must not write there, by a character device: others believe those files."""


class Refused(Exception):
    """It is not allowed; the message says why."""


def path_below(path: str, roots: tuple[str, ...]) -> bool:
    """Tell whether a path is in one of the directories, also after all symbolic links that are there now are followed."""
    if not os.path.isabs(path) or os.path.normpath(path) != path or any(c < " " or c == "\x7f" for c in path):
        return False
    try:
        real = os.path.realpath(path)
    except ValueError:  # no name of a file at all
        return False
    return any(
        path.startswith(f"{root}/") and real.startswith(f"{os.path.realpath(root)}/") for root in roots if root != "/"
    )


def check(kind: str, word: str, allowed: Allowed) -> None:
    """Check one argument.

    Args:
        kind: What it must be, see `CHECKS`.
        word: The argument.
        allowed: What the host's owner allows.

    Raises:
        Refused: It is not.
    """
    if not CHECKS[kind](word, allowed):
        raise Refused(f"{word[:120]!r} is no {kind} that is allowed here")


def _guest(word: str, allowed: Allowed) -> bool:
    directory, _, name = word.rpartition("/")
    return directory == allowed.run_dir and bool(NAME.fullmatch(name)) and not os.path.islink(word)


def _lock(word: str, allowed: Allowed, wanted: str) -> bool:
    directory, _, name = word.rpartition("/")
    stem, _, kind = name.rpartition(".")
    return directory == f"{allowed.run_dir}/.locks" and kind == wanted and bool(NAME.fullmatch(stem))


def _in_guest(word: str, allowed: Allowed) -> bool:
    if not path_below(word, (allowed.run_dir,)):
        return False
    name, _, below = word[len(allowed.run_dir) + 1 :].partition("/")
    return bool(NAME.fullmatch(name)) and bool(below) and not os.path.islink(word)


def _named(word: str, allowed: Allowed, names: frozenset[str]) -> bool:
    directory, _, name = word.rpartition("/")
    return _guest(directory, allowed) and name in names and not os.path.islink(word)


def _text(word: str, allowed: Allowed) -> bool:
    return 0 < len(word) <= TEXT_LIMIT and word.isprintable() and "\t" not in word


CHECKS: Final[dict[str, Callable[[str, Allowed], bool]]] = {
    "run directory": lambda word, allowed: word == allowed.run_dir,
    "guest's directory": _guest,
    "file of a guest": _in_guest,
    "record or log of a guest": lambda word, allowed: _named(word, allowed, READ),
    "serial log that travels": lambda word, allowed: _named(word, allowed, WRITTEN),
    # Apart: who may write the one may not have it read as the other.
    "lock": lambda word, allowed: _lock(word, allowed, "lock"),
    "epoch": lambda word, allowed: _lock(word, allowed, "epoch"),
    "guest's name": lambda word, _: bool(NAME.fullmatch(word)),
    "signal": lambda word, _: word in {"KILL", "TERM"},
    "mode": lambda word, _: word in {"0400", "0600"},
    "number": lambda word, _: bool(NUMBER.fullmatch(word)),
    # Before it is done, the relay looks who that is (`executor`).
    "guest's process": lambda word, _: bool(NUMBER.fullmatch(word)),
    "command's process": lambda word, _: bool(NUMBER.fullmatch(word)),
    "word": lambda word, _: bool(WORD.fullmatch(word)),
    # What is said to such a script is looked at line by line.
    "scope of locks": lambda word, _: bool(WORD.fullmatch(word)),
    "boot id": lambda word, _: bool(BOOT.fullmatch(word)),
    "line of text": _text,
    "QEMU": lambda word, allowed: word in allowed.qemus,
    "address or nothing": lambda word, _: not word or bool(WORD.fullmatch(word.strip("[]"))),
    "image": lambda word, allowed: path_below(word, (*allowed.images, *allowed.qcow2_images)),
    "file for a guest": lambda word, allowed: (
        word in DEVICES
        or path_below(word, (*allowed.images, *allowed.qcow2_images, *allowed.readable, allowed.run_dir))
    ),
}
