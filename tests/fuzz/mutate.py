"""Make wrong input out of right input: bytes that are damaged, and JSON whose shape is wrong in ways that code trips over."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Sequence
from typing import Any, Final

ODD: Final[tuple[Any, ...]] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    -(2**63) - 1,
    10**400,
    0.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    "",
    " ",
    "\0",
    "\ud800",
    "é",
    "a" * 300,
    "x" * 70_000,
    "../../etc/passwd",
    "+/#",
    "9" * 5000,
    "2026-02-30T25:61:61Z",
    "0001-01-01T00:00:00+23:59",
    "completed",
    "running",
    [],
    {},
    [[]],
    [None],
    {"": {}},
    {"error": {"class": "GenericError", "desc": "x"}},
)
TOKENS: Final = (
    b"\0",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\r\n\r\n",
    b"\n",
    b"'",
    b'"',
    b"\\u0000",
    b"\\ud800",
    b",,",
    b"=",
    b"%s%n",
    b"{" * 500,
    b"[" * 5000,
    b"1e999",
    b"-",
    b"NaN",
    b"/1.0",
    b"/999999.0",
    b"9" * 5000,
    b" " * 64,
    b"file:",
    b"json:{",
    b"unix:",
    b"fd:3",
    b"[[",
    b"]]",
    b"'''",
)
JSON_MOVES: Final = ("replace", "replace", "replace", "delete", "rename", "add", "wrap", "deep", "swap")


def mutate(data: bytes, rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Return something like `data`: nearly right more often than not."""
    if rng.random() < 0.1:
        data = rng.choice(seeds)
    if data[:1] in b"{[" and rng.random() < 0.7:
        try:
            document = json.loads(data)
        except (ValueError, RecursionError):
            document = None
        if document is not None:
            return _shape(document, rng)
    for _ in range(1 + int(rng.expovariate(0.7))):
        data = _damage(data, rng, seeds)
    return data


def _odd(rng: random.Random) -> Any:
    return copy.deepcopy(rng.choice(ODD))  # it may be changed further


def _shape(document: Any, rng: random.Random) -> bytes:
    for _ in range(1 + int(rng.expovariate(1.0))):
        document = _changed(document, rng)
    try:
        return json.dumps(document, ensure_ascii=rng.random() < 0.8).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):
        return b"{}"


def _changed(document: Any, rng: random.Random) -> Any:
    places = list(_places(document, 0))
    if not places:
        return _odd(rng)
    where, key = rng.choice(places)
    match rng.choice(JSON_MOVES):
        case "replace":
            where[key] = _odd(rng)
        case "delete":
            del where[key]
        case "rename" if isinstance(where, dict):
            where[rng.choice(("", key + "s", key.upper(), "é", "\ud800", "a" * 300))] = where.pop(key)
        case "add" if isinstance(where, dict):
            where[f"new{rng.randrange(3)}"] = _odd(rng)
        case "add":
            where.extend([where[key]] * rng.choice((1, 3, 200)))
        case "wrap":
            where[key] = [where[key]]
        case "deep":
            deep: Any = 0
            for _ in range(rng.choice((20, 40, 200))):
                deep = [deep] if rng.random() < 0.5 else {"a": deep}
            where[key] = deep
        case "swap":
            other, there = rng.choice(places)
            try:
                where[key], other[there] = other[there], where[key]
                json.dumps(document)
            except (ValueError, RecursionError, KeyError, IndexError):  # it holds itself now
                return _odd(rng)
    return document


def _places(value: Any, depth: int) -> Any:
    if depth > 12:
        return
    if isinstance(value, dict):
        for key in list(value):
            yield value, key
            yield from _places(value[key], depth + 1)
    elif isinstance(value, list):
        for index in range(min(len(value), 20)):
            yield value, index
            yield from _places(value[index], depth + 1)


def _damage(data: bytes, rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    at = rng.randrange(len(data) + 1)
    match rng.randrange(8):
        case 0:
            return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
        case 1:
            return data[:at] + data[at + 1 + int(rng.expovariate(0.3)) :]
        case 2:
            return data[:at] + rng.choice(TOKENS) + data[at:]
        case 3:
            return data[:at] + rng.choice(TOKENS) + data[at + rng.randrange(1, 6) :]
        case 4:
            return data[:at]
        case 5:
            end = min(len(data), at + rng.randrange(1, 40))
            return data[:end] + data[at:end] * rng.choice((1, 2, 50)) + data[end:]
        case 6:
            other = rng.choice(seeds)
            cut = rng.randrange(len(other) + 1)
            return data[:at] + other[cut : cut + rng.randrange(1, 80)] + data[at:]
        case _:
            lines = data.split(b"\n")
            rng.shuffle(lines)
            return b"\n".join(lines)
