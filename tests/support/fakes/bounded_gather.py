"""Many migrations of fake QEMUs side by side, over one journal."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, TypeVar

AT_ONCE: Final = 24

_In = TypeVar("_In")
_Out = TypeVar("_Out")


async def by_turns(
    work: Callable[[_In], Awaitable[_Out]], each: Iterable[_In], *, at_once: int = AT_ONCE
) -> list[_Out]:
    """Do `work` for each, so many at once; return the results in order."""
    places = asyncio.Semaphore(at_once)

    async def one(item: _In) -> _Out:
        async with places:
            return await work(item)

    return list(await asyncio.gather(*(one(item) for item in each)))
