"""What asyncio does not have."""

from __future__ import annotations

import asyncio
from typing import Any

from qmp_migrate.errors import QmpMigrateError


async def gather_all(*work: Any) -> list[Any]:
    """Await several at once; the first error of ours is raised after all have ended, so that nothing runs on unseen."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, QmpMigrateError):
            raise result
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return list(results)
