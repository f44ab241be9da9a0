"""Names of guests and hosts, and paths of sockets: checked once, at the door (DESIGN rule 10).

A name becomes a directory, an MQTT topic level and a part of a QEMU option. The rule is narrow enough to be safe in
all of them: ``^[a-z0-9][a-z0-9_.-]{0,62}$``, and no ``..``.
"""

from __future__ import annotations

import os
import re
from typing import Final

from qmp_migrate.errors import ConfigError, InvalidName

NAME_PATTERN: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
"""Always used with ``fullmatch``: ``$`` would let a trailing newline through."""

SOCKET_PATH_LIMIT: Final = 107
"""Bytes of ``sun_path`` on Linux that a path can fill; the 108th is its terminating NUL."""


def validate_name(text: str, what: str) -> str:
    """Return `text` if it is a name by DESIGN rule 10.

    Args:
        text: What the user wrote.
        what: What it names, for the message: ``"guest name"``, ``"host name"``.

    Raises:
        InvalidName: It is not; the hint says what is wrong with it and, where there is one, a name that would do.
    """
    if NAME_PATTERN.fullmatch(text) and ".." not in text:
        return text
    shown = repr(text if len(text) <= 80 else text[:77] + "...")
    suggestion = _nearest(text)
    hint = f"{_reason(text)}; a {what} is 1 to 63 of a-z 0-9 _ . - and starts with a letter or a digit"
    if suggestion:
        hint += f"; {suggestion!r} would do"
    raise InvalidName(f"{shown} is not a {what}", hint=hint)


def _reason(text: str) -> str:
    if not text:
        return "it is empty"
    if len(text) > 63:
        return f"it has {len(text)} characters, 63 are allowed"
    if ".." in text:
        return "'..' is not allowed"
    if not NAME_PATTERN.fullmatch(text[0]):
        return f"it starts with {text[0]!r}"
    wrong = next(character for character in text if not re.fullmatch(r"[a-z0-9_.-]", character))
    return f"it contains {wrong!r}"


def _nearest(text: str) -> str | None:
    cleaned = re.sub(r"[^a-z0-9_.-]+", "-", text.strip().lower())
    cleaned = re.sub(r"\.{2,}", ".", cleaned).lstrip("_.-").rstrip("-")[:63]
    return cleaned if NAME_PATTERN.fullmatch(cleaned) else None


def check_socket_path(path: str) -> str:
    """Return `path` if a UNIX socket can have it.

    Args:
        path: Absolute path of the socket on its host.

    Raises:
        ConfigError: Longer than 107 bytes, not absolute, or with a NUL. QEMU and the kernel would say so much later
            (or silently cut it), so it is checked up front.
    """
    if not path.startswith("/") or "\0" in path:
        raise ConfigError(f"socket path {path!r} is not absolute", hint="run_dir must be an absolute path")
    length = len(os.fsencode(path))
    if length > SOCKET_PATH_LIMIT:
        raise ConfigError(
            f"socket path {path} has {length} bytes, the kernel allows {SOCKET_PATH_LIMIT}",
            hint="choose a shorter run_dir for the host, for example /run/qmp-migrate, or a shorter guest name",
        )
    return path
