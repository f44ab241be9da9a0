"""The line of a key in a TOML text, found with the TOML parser itself.

A key stands where the text up to some line first parses *and* has it. So this knows strings, arrays over many lines,
dotted keys, inline tables and ``[[arrays of tables]]`` exactly as well as ``tomllib`` does.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from typing import Any


def line_of(text: str, location: Sequence[str | int]) -> int | None:
    """Return the 1-based line on which a key's statement starts.

    Args:
        text: A text that parses as TOML.
        location: Keys and list indices from the top (``("disk", 0, "path")``). Where the last ones are absent, the line
            of what would hold them is returned.

    Returns:
        The line, or ``None`` where not even the first key is there.
    """
    lines = text.split("\n")
    present = _depth(tomllib.loads(text), location)
    if present == 0:
        return None
    start = 0
    for number in range(1, len(lines) + 1):
        try:
            data = tomllib.loads("\n".join(lines[:number]))
        except (ValueError, RecursionError):
            continue  # within a statement of several lines
        if _depth(data, location) >= present:
            return start + 1
        start = number
    return None


def _depth(data: Any, location: Sequence[str | int]) -> int:
    """Return how many steps of `location` are there."""
    steps = 0
    for key in location:
        match data, key:
            case dict(), str() if key in data:
                data = data[key]
            case list(), int() if key < len(data):
                data = data[key]
            case _:
                break
        steps += 1
    return steps
