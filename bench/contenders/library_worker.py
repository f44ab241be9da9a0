"""A program that keeps a `Controller` open, as a long-running user of the library does.

It reads one JSON object a line from standard input and answers each with one on standard output. It is a process of its
own so that its CPU time is the library's, and so that nothing of the measuring disturbs it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from qmp_migrate import Controller, GuestUnknown, MigrationRequest, QmpMigrateError, load_settings, parse_spec


async def answer(controller: Controller, wish: dict[str, Any]) -> dict[str, Any]:
    """Do what is asked; an error of the library is an answer too."""
    try:
        match wish["do"]:
            case "start":
                spec = parse_spec(wish["spec"], source="bench", base_dir=wish["base_dir"])
                await controller.start(spec, on=wish["on"])
                return {}
            case "stop":
                with contextlib.suppress(GuestUnknown):  # it has moved on meanwhile
                    await controller.stop(wish["vm"], on=wish["on"], force=True)
                return {}
            case "migrate":
                request = MigrationRequest(**wish["request"])
                began, began_at = time.monotonic(), time.time()
                result = await controller.migrate(request)
                ended, ended_at = time.monotonic(), time.time()
                return {
                    "wall_ms": (ended - began) * 1000,
                    "began_at": began_at,
                    "ended_at": ended_at,
                    "result": result.to_dict(),
                }
            case _:
                return {}
    except QmpMigrateError as error:
        return {"error": f"{error} [{error.code}]"}


async def serve(settings_file: Path, answers: TextIO) -> None:
    """Answer until standard input ends."""
    loop = asyncio.get_running_loop()
    async with Controller.open(load_settings(settings_file)) as controller:
        await asyncio.gather(*(controller.host(name).connect() for name in controller.settings.hosts))
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            wish = json.loads(line)
            print(json.dumps({**await answer(controller, wish), "number": wish["number"]}), file=answers, flush=True)


if __name__ == "__main__":
    with os.fdopen(os.dup(1), "w") as own:
        os.dup2(2, 1)  # whatever a library prints to standard output must not stand among the answers
        asyncio.run(serve(Path(sys.argv[1]), own))
