"""The real command line, which stops at a named point and tells the harness, so that a fault comes exactly there.

Started as ``python -m tests.faults.lab.controller FD TRAP[,TRAP…] BUG[,BUG…] WORD…``. At each trap a line ``NAME`` with the
migration's id goes to the socket FD, and the one coroutine that is there waits for a line back; everything else of the
controller lives on. Traps:

``preflight``           the guest was found, and is about to be looked at
``launched``            the destination's QEMU is up; nobody has written that down yet
``phase:NAME``          a phase was entered, and the journal says so
``pass:N``              memory is copied, in pass N or later
``held``                the source waits at pre-switchover
``before:COMMAND@HOST`` a QMP command is about to be sent
``after:COMMAND@HOST``  a QMP command was answered; the answer was not looked at yet
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from qmp_migrate.fleet import controller as fleet
from qmp_migrate.migration.lifecycle import engine
from qmp_migrate.migration.lifecycle.engine import Engine
from qmp_migrate.migration.lifecycle.recorder import Chronicle
from qmp_migrate.migration.precopy.runner import Copying
from qmp_migrate.qemu.monitor import Monitor

FIRST_BYTES = 1 << 20
"""Memory travels for certain once so much of it has."""


class Traps:
    """The traps that are set; each is sprung once."""

    def __init__(self, channel: socket.socket, names: set[str]) -> None:
        self._channel = channel
        self._set = names
        self._lines = channel.makefile("r")

    async def spring(self, name: str) -> None:
        """Tell the harness and wait for its word, where this trap is set."""
        if name in self._set:
            self._set.discard(name)
            self._channel.sendall(json.dumps({"trap": name}).encode() + b"\n")
            await asyncio.to_thread(self._lines.readline)


def set_traps(traps: Traps) -> None:
    """Wrap the functions that the traps are at."""
    _around(fleet, "make_plan", before=lambda *_: traps.spring("preflight"))
    _around(engine, "launch", after=lambda *_: traps.spring("launched"))
    _around(Chronicle, "enter", after=lambda _self, phase, *_: traps.spring(f"phase:{phase.value}"))
    _around(Engine, "_held", before=lambda *_: traps.spring("held"))

    async def numbers(_self: Copying, info: Any, *_: Any) -> None:
        if info.status == "active" and info.ram is not None and info.ram.transferred > FIRST_BYTES:
            for number in range(1, info.ram.passes + 1):
                await traps.spring(f"pass:{number}")

    _around(Copying, "_on_numbers", before=numbers)
    _around(
        Monitor,
        "execute",
        before=lambda monitor, command, *_: traps.spring(f"before:{command}@{monitor.host}"),
        after=lambda monitor, command, *_: traps.spring(f"after:{command}@{monitor.host}"),
    )


def _around(
    place: Any,
    name: str,
    *,
    before: Callable[..., Awaitable[None]] | None = None,
    after: Callable[..., Awaitable[None]] | None = None,
) -> None:
    original = getattr(place, name)

    async def wrapped(*args: Any, **kwargs: Any) -> Any:
        if before is not None:
            await before(*args)
        result = await original(*args, **kwargs)
        if after is not None:
            await after(*args)
        return result

    setattr(place, name, wrapped)


def main() -> None:
    """Set traps and bugs, then be ``qmp-migrate``."""
    descriptor, traps, bugs, *words = sys.argv[1:]
    set_traps(Traps(socket.socket(fileno=int(descriptor)), set(filter(None, traps.split(",")))))
    for bug in filter(None, bugs.split(",")):
        from tests.faults.seeded_bugs.bugs import BUGS

        BUGS[bug].seed()
    sys.argv = ["qmp-migrate", *words]
    from qmp_migrate.cli.main import main as command_line

    command_line()


if __name__ == "__main__":
    main()
