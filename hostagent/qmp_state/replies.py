"""What QEMU's answers mean, or ``None`` where they mean nothing: pure, and never wrong-footed by odd ones."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

_WORD: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,62}")


def facts_of(version: object, uuid: object, cpus: object, memory: object) -> dict[str, Any]:
    """Return the fields of `HostVm` that stay as they are while a QEMU runs.

    Args:
        version: Answer to ``query-version``.
        uuid: Answer to ``query-uuid``.
        cpus: Answer to ``query-cpus-fast``.
        memory: Answer to ``query-memory-size-summary``.
    """
    numbers = [_count(_member(_member(version, "qemu"), part)) for part in ("major", "minor", "micro")]
    ram = [_count(_member(memory, "base-memory")), _count(_member(memory, "plugged-memory", 0))]
    return {
        "qemu_version": None if None in numbers else ".".join(map(str, numbers)),
        "uuid": _word(_member(uuid, "UUID")),
        "vcpus": len(cpus) if isinstance(cpus, list) else None,
        "memory_bytes": None if None in ram else sum(part for part in ram if part is not None),
    }


def runstate_of(answer: object) -> str:
    """Return the run state from the answer to ``query-status``; ``unknown`` where it holds none."""
    return _word(_member(answer, "status")) or "unknown"


def migration_status_of(answer: object) -> str | None:
    """Return the migration status from the answer to ``query-migrate``; ``None`` where it holds none."""
    return _word(_member(answer, "status"))


def _member(value: object, name: str, default: object = None) -> object:
    return value.get(name, default) if isinstance(value, Mapping) else None


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62 else None


def _word(value: object) -> str | None:
    return value if isinstance(value, str) and _WORD.fullmatch(value) else None
