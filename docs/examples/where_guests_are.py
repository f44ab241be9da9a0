"""Prints where guests are, and where they go: python where_guests_are.py HOST PORT."""

from __future__ import annotations

import asyncio
import json
import sys
from functools import partial
from typing import Final

import aiomqtt

GUESTS: Final = "qmp-migrate/v1/host/+/vm/+"

say = partial(print, flush=True)  # at once, also into a pipe


async def main(host: str, port: int) -> None:
    """Follow every guest on every host until interrupted."""
    async with aiomqtt.Client(host, port) as client:
        await client.subscribe(GUESTS, qos=1)
        async for message in client.messages:
            if not message.topic.matches(GUESTS):  # the lab's embedded broker sends more than was asked for
                continue
            *_, where, _, guest = str(message.topic).split("/")
            if not message.payload:  # a cleared topic: the guest has left
                say(f"{guest}: gone from {where}")
                continue
            state = json.loads(message.payload)
            say(f"{guest}: {state['runstate']} on {where} ({state['role']})")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
