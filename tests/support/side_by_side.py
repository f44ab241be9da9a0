"""Tests that mostly wait, done at once: that nothing happens takes as long for ten of them as for one."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any


async def side_by_side(cases: Mapping[str, Coroutine[Any, Any, None]]) -> None:
    """Do all, each to its end; raise what the first of those that failed has raised, with its name.

    Args:
        cases: What is done, by name.
    """
    results = await asyncio.gather(*cases.values(), return_exceptions=True)
    failed = {name: result for name, result in zip(cases, results, strict=True) if result is not None}
    for name, error in failed.items():
        error.add_note(f"in the case: {name}; failed in all: {', '.join(failed)}")
        raise error
