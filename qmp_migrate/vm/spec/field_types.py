"""Types of single values in a guest's spec, for pydantic: each checks what QEMU could misread.

Most of them become part of a ``key=value,…`` argument, so none of them may hold a comma or a control character; paths
may hold commas and are escaped where they are used.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated
from uuid import UUID

from pydantic import AfterValidator

from qmp_migrate.errors import InvalidName
from qmp_migrate.vm.names import validate_name


def _valid_name(value: str) -> str:
    try:
        return validate_name(value, "guest name")
    except InvalidName as error:
        raise ValueError(f"{error.message}; {error.hint}") from error


def _matching(pattern: str, expected: str) -> Callable[[str], str]:
    compiled = re.compile(pattern)

    def check(value: str) -> str:
        if not compiled.fullmatch(value):
            raise ValueError(f"{value[:60]!r} is not {expected}")
        return value

    return check


def _plain(value: str) -> str:
    if not value or len(value) > 4096 or any(ord(character) < 32 or character == "\x7f" for character in value):
        raise ValueError("must be a path without control characters")
    return value


def _uuid(value: str) -> str:
    try:
        return str(UUID(value))
    except ValueError:
        raise ValueError(f"{value[:60]!r} is not a UUID like 6d5c2a0e-5d6c-4f0e-9a3b-0d0f6f0f2a11") from None


def _unicast(value: str) -> str:
    if int(value[:2], 16) & 1:
        raise ValueError(f"{value!r} is a multicast address; the first byte of a MAC must be even")
    return value.lower()


def _no_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("holds a NUL character")
    return value


GuestName = Annotated[str, AfterValidator(_valid_name)]
HostPath = Annotated[str, AfterValidator(_plain)]
Word = Annotated[str, AfterValidator(_matching(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,79}", "one plain word"))]
Endpoint = Annotated[
    str,
    AfterValidator(
        _matching(r"(\[[0-9A-Fa-f:]+\]|[A-Za-z0-9._-]*):[0-9]{1,5}", "HOST:PORT, for example 10.0.0.1:4000")
    ),
]
InterfaceName = Annotated[
    str, AfterValidator(_matching(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}", "an interface name of at most 15 characters"))
]
MacAddress = Annotated[
    str,
    AfterValidator(_matching(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}", "a MAC address like 52:54:00:12:34:56")),
    AfterValidator(_unicast),
]
SerialNumber = Annotated[str, AfterValidator(_matching(r"[A-Za-z0-9_.-]{1,20}", "1 to 20 of A-Z a-z 0-9 _ . -"))]
CpuModel = Annotated[
    str, AfterValidator(_matching(r"[A-Za-z0-9][A-Za-z0-9._-]*(,[A-Za-z0-9+._=:-]+)*", "a CPU model with features"))
]
GuestUuid = Annotated[str, AfterValidator(_uuid)]
KernelText = Annotated[str, AfterValidator(_no_nul)]
