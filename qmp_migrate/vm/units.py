"""Sizes, rates and times as people write them, as exact integers.

=========  ====================================================  ==========================
kind       written                                               becomes
=========  ====================================================  ==========================
size       ``512MiB`` ``1GiB`` ``1.5GiB`` ``4096`` ``512M``      bytes
rate       ``1Gbit`` ``100Mbit/s`` ``80MiB`` ``125MB/s``         bytes per second
time       ``300ms`` ``2s`` ``1.5s`` ``1m`` ``1h``               milliseconds
=========  ====================================================  ==========================

``KiB`` counts by 1024, ``KB`` and ``kbit`` by 1000; QEMU's bare letters (``512M``) count by 1024 as QEMU does and are
sizes only: as a rate ``100M`` could be bits or bytes, so it is refused. All arithmetic is on integers and fractions.

`ByteSize`, `ByteRate` and `Milliseconds` are the same for pydantic fields: they read text, hold an ``int``, and are
written as text again in JSON.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Annotated, Final

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

from qmp_migrate.errors import InvalidQuantity

_NUMBER: Final = re.compile(r"(?P<number>[0-9]{1,20}(\.[0-9]{1,20})?) ?(?P<unit>[A-Za-z]*)(?P<per>/s)?")

_BINARY: Final = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40, "PiB": 1 << 50}
_DECIMAL: Final = {"kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "PB": 10**15}
_QEMU: Final = {letter: 1 << shift for shift, letter in zip((10, 20, 30, 40, 50), "KMGTP", strict=True)}

_SIZES: Final[Mapping[str, Fraction]] = {
    unit: Fraction(factor)
    for unit, factor in {
        "": 1,
        "B": 1,
        **_BINARY,
        **_DECIMAL,
        **_QEMU,
        **{letter.lower(): factor for letter, factor in _QEMU.items()},
    }.items()
}
_BITS: Final = {"kbit": 10**3, "Kbit": 10**3, "Mbit": 10**6, "Gbit": 10**9, "Tbit": 10**12}
_RATES: Final[Mapping[str, Fraction]] = {
    **{unit: Fraction(factor) for unit, factor in {"B": 1, **_BINARY, **_DECIMAL}.items()},
    **{unit: Fraction(factor, 8) for unit, factor in {"bit": 1, **_BITS}.items()},
    **{f"{unit[0]}ibit": Fraction(_BINARY[f"{unit[0]}iB"], 8) for unit in ("Kbit", "Mbit", "Gbit")},
}
_TIMES: Final[Mapping[str, Fraction]] = {
    unit: Fraction(factor) for unit, factor in {"ms": 1, "s": 1000, "m": 60_000, "min": 60_000, "h": 3_600_000}.items()
}

SIZE_LIMIT: Final = 1 << 60
"""Largest size that is believed, in bytes (1 EiB): above it somebody mistook the unit."""
RATE_LIMIT: Final = 1 << 40
"""Largest rate that is believed, in bytes per second (1 TiB/s)."""
TIME_LIMIT_MS: Final = 30 * 24 * 3_600_000
"""Longest time that is believed, in milliseconds (30 days)."""


def _invalid(text: object, kind: str, reason: str, example: str) -> InvalidQuantity:
    shown = repr(text)
    if len(shown) > 60:
        shown = shown[:57] + "..."
    return InvalidQuantity(f"{shown} is not a {kind}: {reason}", hint=f"write it like {example}")


def _read(text: str, kind: str, units: Mapping[str, Fraction], example: str, *, per_second: bool) -> Fraction:
    stripped = text.strip()
    if stripped.startswith("-"):
        raise _invalid(text, kind, "it is negative", example)
    match = _NUMBER.fullmatch(stripped)
    if match is None or (match["per"] and not per_second):
        raise _invalid(text, kind, "a number and a unit are expected", example)
    unit = match["unit"]
    if unit not in units:
        if not unit:
            raise _invalid(text, kind, "it has no unit", example)
        alike = [known for known in units if known.lower() == unit.lower()]
        known = ", ".join(known for known in units if known)
        reason = f"unit {unit!r} is not known" + (f", did you mean {alike[0]!r}?" if alike else f" (known: {known})")
        raise _invalid(text, kind, reason, example)
    return Fraction(match["number"]) * units[unit]


def _checked(text: object, kind: str, value: int, limit: str, maximum: int, example: str) -> int:
    if value <= 0:
        raise _invalid(text, kind, "it is zero", example)
    if value > maximum:
        raise _invalid(text, kind, f"it is more than {limit}", example)
    return value


def parse_size(text: str) -> int:
    """Read a size.

    Args:
        text: For example ``512MiB``, ``1.5GiB``, ``4096`` (bytes), ``512M`` (QEMU's: MiB), ``10GB`` (10^10).

    Returns:
        Bytes, at least 1.

    Raises:
        InvalidQuantity: Not a size, zero, negative, not a whole number of bytes, or above 1 EiB.
    """
    kind, example = "size", "512MiB, 1.5GiB or 4096 (bytes)"
    exact = _read(text, kind, _SIZES, example, per_second=False)
    if exact.denominator != 1:
        raise _invalid(text, kind, "it is not a whole number of bytes", example)
    return _checked(text, kind, int(exact), "1 EiB", SIZE_LIMIT, example)


def parse_rate(text: str) -> int:
    """Read a rate.

    Args:
        text: For example ``1Gbit``, ``100Mbit/s``, ``80MiB``, ``125MB/s``. The unit is never optional.

    Returns:
        Bytes per second, at least 1; a broken number of bytes is rounded down (a rate is a limit).

    Raises:
        InvalidQuantity: Not a rate, without unit, less than one byte per second, negative, or above 1 TiB/s.
    """
    kind, example = "rate", "1Gbit, 100Mbit/s or 80MiB (per second)"
    exact = _read(text, kind, _RATES, example, per_second=True)
    return _checked(text, kind, int(exact), "1 TiB per second", RATE_LIMIT, example)


def parse_time_ms(text: str) -> int:
    """Read a time.

    Args:
        text: For example ``300ms``, ``2s``, ``1.5s``, ``1m``, ``1h``. The unit is never optional.

    Returns:
        Milliseconds, at least 1.

    Raises:
        InvalidQuantity: Not a time, without unit, zero, negative, finer than a millisecond, or above 30 days.
    """
    kind, example = "time", "300ms, 1.5s or 2m"
    exact = _read(text, kind, _TIMES, example, per_second=False)
    if exact.denominator != 1:
        raise _invalid(text, kind, "it is finer than a millisecond", example)
    return _checked(text, kind, int(exact), "30 days", TIME_LIMIT_MS, example)


def parse_qemu_size(text: str, *, unit: int = 1) -> int:
    """Read a size as QEMU's own options write it (``-m 512``, ``size=1.5G``, ``0x1000``).

    Args:
        text: A number with at most one letter of ``b k m g t p e``, either case; fractions are cut as QEMU does.
        unit: Bytes that a number without a letter counts; 1 MiB for ``-m``.

    Raises:
        InvalidQuantity: QEMU would not take it either.
    """
    match = re.fullmatch(r"(0[xX][0-9a-fA-F]{1,16}|[0-9]{1,20}(?:\.[0-9]{0,20})?)([bBkKmMgGtTpPeE]?)", text)
    if match is None:
        raise _invalid(text, "QEMU size", "a number with one letter is expected", "512M or 1G")
    number = Fraction(int(match[1], 16)) if match[1][:2] in {"0x", "0X"} else Fraction(match[1])
    factor = 1 << (10 * "bkmgtpe".index(match[2].lower())) if match[2] else unit
    return int(number * factor)


def format_size(value: int) -> str:
    """Write bytes exactly, in the largest binary unit that leaves no rest: ``536870912`` is ``512MiB``."""
    for unit, factor in reversed(_BINARY.items()):
        if value and value % factor == 0:
            return f"{value // factor}{unit}"
    return f"{value}B"


def about_size(value: float) -> str:
    """Return bytes as people read them, rounded: ``512.0 MiB``. For reading only: `format_size` is exact."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def format_rate(value: int) -> str:
    """Write bytes per second exactly, with ``/s``: in bits where they are round, else in bytes.

    ``125000000`` is ``1Gbit/s``, ``83886080`` is ``80MiB/s``.
    """
    for unit in ("Gbit", "Mbit"):
        if value and value * 8 % _BITS[unit] == 0:
            return f"{value * 8 // _BITS[unit]}{unit}/s"
    return f"{format_size(value)}/s"


def format_time_ms(value: int) -> str:
    """Write milliseconds exactly: ``300`` is ``300ms``, ``2000`` is ``2s``, ``90000`` is ``90s``, ``120000`` is ``2m``."""
    for unit, factor in (("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if value and value % factor == 0:
            return f"{value // factor}{unit}"
    return f"{value}ms"


def _reader(parse: Callable[[str], int], kind: str, *, bare: bool) -> Callable[[object], int]:
    """Make a pydantic validator; pydantic keeps the key only with a ``ValueError``, so that is what it gets."""

    def read(value: object) -> int:
        if bare and isinstance(value, int):
            value = str(value)
        if not isinstance(value, str):
            raise ValueError(f"a {kind} is written as text with its unit, in quotes")
        try:
            return parse(value)
        except InvalidQuantity as error:
            raise ValueError(f"{error.message}; {error.hint}") from error

    return read


ByteSize = Annotated[
    int,
    BeforeValidator(_reader(parse_size, "size", bare=True)),
    PlainSerializer(format_size, when_used="json"),
    WithJsonSchema({"type": "string", "examples": ["512MiB"]}),
]
"""A size in bytes; a bare TOML integer is bytes."""

ByteRate = Annotated[
    int,
    BeforeValidator(_reader(parse_rate, "rate", bare=False)),
    PlainSerializer(format_rate, when_used="json"),
    WithJsonSchema({"type": "string", "examples": ["1Gbit"]}),
]
"""A rate in bytes per second; text with a unit only."""

Milliseconds = Annotated[
    int,
    BeforeValidator(_reader(parse_time_ms, "time", bare=False)),
    PlainSerializer(format_time_ms, when_used="json"),
    WithJsonSchema({"type": "string", "examples": ["300ms"]}),
]
"""A time in milliseconds; text with a unit only."""
