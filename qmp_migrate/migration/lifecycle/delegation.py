"""What the hosts' agents may do, should this controller be gone when the guest runs nowhere: a mandate for each of them.

Written to both hosts over SSH before memory travels, withdrawn when the migration has ended (ADR 28). It holds who the two
QEMUs are, the fencing number, and a secret of this one migration, with which the agents sign what they tell each other;
`hostagent.failover.decision` tells what they do with it. Where no agent runs, nothing reads it.

None is given where the agents could not be sure: for a guest that is paused anyway; where memory may travel in post-copy,
whose commit is another command; where disks are carried along, whose copies end with steps on both hosts.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from dataclasses import dataclass
from typing import Any, Final

from qmp_migrate.errors import Fenced, QmpMigrateError
from qmp_migrate.hosts.scripts import script
from qmp_migrate.migration.endpoint.endpoint import Side
from qmp_migrate.migration.lifecycle.context import Course

GIVE: Final = script("delegation/give")

WITHDRAW: Final = script("delegation/withdraw")

RECORD: Final = script("delegation/read_record")


def wanted(course: Course) -> bool:
    """Tell whether the agents may hand this guest over."""
    return course.request.handover_by_agents and course.running and not course.profile.postcopy and not course.copies


async def give(course: Course) -> None:
    """Give both agents their mandate. What goes wrong is a warning: it is a safety net, not the rope.

    Raises:
        Fenced: Another controller has the guest.
    """
    source, destination = course.source.process, course.destination.process
    if source is None or destination is None or course.lock is None:
        return
    secret = secrets.token_hex(32)
    common = {
        "schema": "handover.mandate/1",
        "migration": course.request.id,
        "vm": course.request.vm,
        "destination_process": " ".join(destination.words),
        "epoch": course.lock.epoch,
        "secret": secret,
    }

    async def one(side: Side, role: str, process: str) -> None:
        text = json.dumps({**common, "role": role, "process": process})
        await side.host.script(GIVE, _place(side), input=f"{text}\n".encode())

    try:
        await asyncio.gather(
            one(course.source, "source", " ".join(source.words)),
            one(course.destination, "destination", " ".join(destination.words)),
        )
    except Fenced:
        raise
    except QmpMigrateError as error:
        course.chronicle.warn(f"the hosts' agents could not be told what to do without a controller: {error.message}")


async def withdraw(course: Course) -> None:
    """Take both mandates back, and what was written down of them; where a host is away, nothing comes of it.

    Raises:
        Fenced: Another controller has the guest.
    """

    async def one(side: Side) -> None:
        try:
            await side.host.script(WITHDRAW, _place(side))
        except Fenced:
            raise
        except QmpMigrateError:
            pass  # its other half is gone, and the epoch rises with the next lock: it is void

    await asyncio.gather(*(one(side) for side in (course.source, course.destination) if not side.fenced))


@dataclass(frozen=True, slots=True)
class Records:
    """What the agents have done in a migration.

    Attributes:
        released: The source's agent has proven that the source was completed, and ended it or was about to.
        continued: The destination's agent has continued the guest, or was about to.
        ran: It has seen it run.
        certain: What the destination's agent has written down could be read.
    """

    released: bool = False
    continued: bool = False
    ran: bool = False
    certain: bool = True


async def records(course: Course) -> Records:
    """Read what the agents have written down; the guest's locks are held, so they do nothing meanwhile."""
    of_source, of_destination = await asyncio.gather(_state(course, course.source), _state(course, course.destination))
    return Records(
        released=of_source in {"released", "ended"},
        continued=of_destination in {"continuing", "ran"},
        ran=of_destination == "ran",
        certain=of_destination is not None,
    )


async def _state(course: Course, side: Side) -> str | None:
    """Return an agent's last state in this migration, ``""`` where there is none; None where that cannot be told."""
    if side.fenced:
        return None
    try:
        text = (await side.host.script(RECORD, _place(side))).text
        document: Any = json.loads(text) if text else {}
    except (QmpMigrateError, ValueError):
        return None
    if not isinstance(document, dict) or document.get("migration") != course.request.id:
        return ""
    return str(document.get("state", ""))


def _place(side: Side) -> list[str]:
    return [side.settings.run_dir, side.vm]
