"""QEMU's two notations for properties, ``key=value,key=value`` and JSON, read as one and rewritten in place.

A comma within a value is written twice (``file=a,,b.img``). Nested JSON members read like QEMU's dotted keys, so
``{"file": {"filename": "/a"}}`` and ``file.filename=/a`` both have ``file.filename``. Rewriting touches only the value
that changes: all else keeps its spelling, down to the spaces in JSON where they are regular.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from qmp_migrate.errors import UsageError

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"

_TRUE: Final = frozenset({"on", "yes", "true", "y"})
_FALSE: Final = frozenset({"off", "no", "false", "n"})


@dataclass(frozen=True, slots=True)
class Properties:
    """Properties of one option, in order; a key may occur more than once (``hostfwd=``).

    Attributes:
        items: ``(key, value)`` pairs; nested keys are dotted, JSON booleans are ``on``/``off``.
    """

    items: tuple[tuple[str, str], ...]

    def get(self, *keys: str) -> str | None:
        """Return the last value given under any of `keys` (QEMU too lets the last one win), or ``None``."""
        return next((value for key, value in reversed(self.items) if key in keys), None)

    def all(self, key: str) -> tuple[str, ...]:
        """Return every value given under `key`, in order."""
        return tuple(value for name, value in self.items if name == key)

    def flag(self, *keys: str) -> bool | None:
        """Return a boolean property, or ``None`` where it is absent or no boolean (``read-only=auto``).

        Knows the shorthands ``server`` (on) and ``noserver`` (off).
        """
        names = set(keys) | {f"no{key}" for key in keys}
        for key, value in reversed(self.items):
            if key in names:
                if value in _TRUE or value in _FALSE:
                    return (value in _TRUE) == (key in keys)
                return None
        return None


def escape(value: str) -> str:
    """Return `value` with its commas doubled, as it stands in a ``key=value`` list."""
    return value.replace(",", ",,")


def _segments(text: str) -> Iterator[str]:
    """Split at single commas; doubled ones stay as they are written. An odd run ends a value: ``a,,,b`` is ``a,``, ``b``."""
    start = position = 0
    while position < len(text):
        if text[position] == ",":
            if text[position + 1 : position + 2] == ",":
                position += 2
                continue
            yield text[start:position]
            start = position + 1
        position += 1
    yield text[start:]


def _split(segment: str, *, first: bool, implied: str) -> tuple[str, str | None]:
    """Return a segment's key as it is meant and its value; ``None`` for a key that stands alone."""
    key, equals, value = segment.partition("=")
    if equals and "," not in key:
        return key, value.replace(",,", ",")
    if first and implied:
        return implied, segment.replace(",,", ",")
    return segment, None


def _is_json(text: str) -> bool:
    return text.lstrip().startswith("{")


def _load_json(text: str) -> dict[str, Json]:
    def unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key occurs twice")
        return found

    try:
        loaded = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{text[:60]!r} is not JSON: {error}",
            hint="write the properties as a JSON object with double quotes, or as key=value,key=value",
        ) from None
    assert isinstance(loaded, dict)  # it starts with a brace
    return loaded


def _flatten(value: Json, prefix: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, member in value.items():
            yield from _flatten(member, f"{prefix}.{key}" if prefix else key)
    elif isinstance(value, list):
        for index, member in enumerate(value):
            yield from _flatten(member, f"{prefix}.{index}")
    elif isinstance(value, bool):
        yield prefix, "on" if value else "off"
    elif value is not None:
        yield prefix, str(value)


def read(text: str, *, implied: str = "", takes_json: bool = False) -> Properties:
    """Read an option's properties.

    Args:
        text: The option's argument.
        implied: Key of a first value that has none, or ``""``.
        takes_json: Whether this option also takes JSON.

    Raises:
        UsageError: It starts like JSON and is not.
    """
    if takes_json and _is_json(text):
        return Properties(tuple(_flatten(_load_json(text), "")))
    found = []
    for number, segment in enumerate(_segments(text)):
        key, value = _split(segment, first=number == 0, implied=implied)
        if segment:
            found.append((key, "on" if value is None else value))
    return Properties(tuple(found))


def rewrite(text: str, change: Callable[[str, str], str], *, implied: str = "", takes_json: bool = False) -> str:
    """Return `text` with each value replaced by ``change(key, value)``; what does not change keeps its spelling.

    Args:
        text: The option's argument.
        change: Gets a key (dotted where nested) and its value; JSON values other than strings are not offered.
        implied: Key of a first value that has none, or ``""``.
        takes_json: Whether this option also takes JSON.

    Raises:
        UsageError: It starts like JSON and is not.
    """
    if takes_json and _is_json(text):
        loaded = _load_json(text)
        changed = _rewrite_json(loaded, "", change)
        return text if changed == loaded else _dump_like(text, loaded, changed)
    return ",".join(
        _rewrite_segment(segment, change, first=number == 0, implied=implied)
        for number, segment in enumerate(_segments(text))
    )


def without(text: str, keys: frozenset[str], *, implied: str = "", takes_json: bool = False) -> str:
    """Return `text` without some properties; all else keeps its spelling.

    Args:
        text: The option's argument.
        keys: Keys to leave out, whatever their value; of JSON only at the top.
        implied: Key of a first value that has none, or ``""``.
        takes_json: Whether this option also takes JSON.

    Raises:
        UsageError: It starts like JSON and is not.
    """
    if takes_json and _is_json(text):
        loaded = _load_json(text)
        return _dump_like(text, loaded, {key: value for key, value in loaded.items() if key not in keys})
    segments = list(_segments(text))
    kept = [
        segment
        for number, segment in enumerate(segments)
        if _split(segment, first=number == 0, implied=implied)[0] not in keys
    ]
    return ",".join(kept)


def added(text: str, values: Mapping[str, str | int], *, takes_json: bool = False) -> str:
    """Return `text` with further properties at its end.

    Raises:
        UsageError: It starts like JSON and is not.
    """
    if takes_json and _is_json(text):
        loaded = _load_json(text)
        return _dump_like(text, loaded, {**loaded, **values})
    return ",".join([text, *(f"{key}={escape(str(value))}" for key, value in values.items())])


def _rewrite_segment(segment: str, change: Callable[[str, str], str], *, first: bool, implied: str) -> str:
    key, value = _split(segment, first=first, implied=implied)
    if value is None:
        return segment
    changed = change(key, value)
    if changed == value:
        return segment
    bare = first and key == implied and not segment.startswith(f"{key}=") and "=" not in changed
    return escape(changed) if bare else f"{key}={escape(changed)}"


def _rewrite_json(value: Json, prefix: str, change: Callable[[str, str], str]) -> Json:
    if isinstance(value, dict):
        return {
            key: _rewrite_json(member, f"{prefix}.{key}" if prefix else key, change) for key, member in value.items()
        }
    if isinstance(value, list):
        return [_rewrite_json(member, f"{prefix}.{index}", change) for index, member in enumerate(value)]
    return change(prefix, value) if isinstance(value, str) else value


def _dump_like(text: str, loaded: Json, changed: Json) -> str:
    """Write JSON in the style that reproduces `text` from what it was loaded as; else the compact one."""
    for separators in ((",", ":"), (", ", ": ")):
        for ascii_only in (False, True):
            if json.dumps(loaded, separators=separators, ensure_ascii=ascii_only) == text:
                return json.dumps(changed, separators=separators, ensure_ascii=ascii_only)
    return json.dumps(changed, separators=(",", ":"), ensure_ascii=False)


def canonical(text: str, *, takes_json: bool) -> str:
    """Return `text` with JSON in one fixed spelling, for comparing; other text as it is.

    Raises:
        UsageError: It starts like JSON and is not.
    """
    if takes_json and _is_json(text):
        return json.dumps(_load_json(text), separators=(",", ":"), sort_keys=True)
    return text


_URL: Final = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def is_url(text: str) -> bool:
    """Return whether `text` is ``scheme://…``."""
    return bool(_URL.match(text))
