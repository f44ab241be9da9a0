"""Leftovers: what earlier migrations, crashes and reboots left on hosts; found, and on request taken away.

`find` changes nothing. `remove` acts on what `find` found, one by one, each under the guest's lock and after a second
look, and then looks at everything again. What is a leftover is decided in `leftover_kinds`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qmp_migrate.errors import QmpMigrateError
from qmp_migrate.fleet.cleanup import removal, run_dir_facts
from qmp_migrate.fleet.cleanup.classification import Finding, OpenMigration, classify, is_name
from qmp_migrate.fleet.cleanup.run_dir_facts import RunDir
from qmp_migrate.migration.journal.store import controller_lives
from qmp_migrate.migration.model.phases import ENDS

if TYPE_CHECKING:
    from qmp_migrate.fleet.controller import Controller

_RECORDS = 10_000


@dataclass(slots=True)
class Leftovers:
    """What a look has found.

    Attributes:
        hosts: The hosts it was about.
        findings: What is left, and after a removal also what was.
        unreachable: Host to why it could not be asked.
        busy: Host to the guests that were skipped, with who holds them.
    """

    hosts: tuple[str, ...]
    findings: list[Finding]
    unreachable: dict[str, str] = field(default_factory=dict)
    busy: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0: nothing of ours is left; 1: something is; 69: a host could not be asked."""
        if self.unreachable:
            return 69
        return 1 if any(finding.left for finding in self.findings) else 0

    def to_dict(self) -> dict[str, Any]:
        """Return the document of ``doctor --leftovers --json``."""
        hosts = {
            name: {
                "asked": name not in self.unreachable,
                "problem": self.unreachable.get(name),
                "busy": self.busy.get(name, {}),
            }
            for name in self.hosts
        }
        return {"schema": "leftovers/1", "hosts": hosts, "findings": [finding.to_dict() for finding in self.findings]}


async def find(controller: Controller, hosts: Sequence[str] = ()) -> Leftovers:
    """Find what is left on hosts, and in the journal; changes nothing.

    Args:
        controller: Its settings, connections and journal.
        hosts: Which; empty: all. The others are asked as well where they can be: a guest may run there.

    Raises:
        HostUnknown, InvalidName: The settings do not have one.
        JournalError: The journal cannot be read.
    """
    for name in hosts:
        controller.settings.host(name)
    wanted = tuple(hosts) or tuple(controller.settings.hosts)
    places, problems = await _look(controller, None, frozenset())
    findings = classify(places, await _open_migrations(controller))
    return Leftovers(
        hosts=wanted,
        findings=[finding for finding in findings if finding.host in wanted],
        unreachable={name: problem for name, problem in problems.items() if name in wanted},
        busy={name: dict(places[name].holders) for name in wanted if name in places and places[name].holders},
    )


async def remove(controller: Controller, found: Leftovers) -> Leftovers:
    """Take away what may be taken away, then look again.

    Args:
        controller: As for `find`.
        found: What `find` returned.

    Returns:
        What was done, and what is left and why.

    Raises:
        JournalError: The journal cannot be read.
    """

    async def look(vm: str, mine: Collection[tuple[str, str]]) -> list[Finding]:
        places, _problems = await _look(controller, vm, mine)
        return classify(places, await _open_migrations(controller), mine=mine)

    acted = [await removal.remove(finding, controller.side, look) for finding in found.findings]
    done = [finding for finding in acted if finding.action in removal.DONE]
    told = {finding.key: finding for finding in acted if finding not in done}
    after = await find(controller, found.hosts)
    after.findings = [*done, *(told.get(finding.key, finding) for finding in after.findings)]
    return after


async def _look(
    controller: Controller, vm: str | None, mine: Collection[tuple[str, str]]
) -> tuple[dict[str, RunDir], dict[str, str]]:
    """Gather facts from all hosts that answer, and ask the QEMUs: all, or the one of a guest."""

    async def gather(name: str) -> RunDir | str:
        try:
            return await run_dir_facts.gather(controller.side(name, "any"))
        except QmpMigrateError as error:
            return str(error)

    names = list(controller.settings.hosts)
    answers = dict(zip(names, await asyncio.gather(*(gather(name) for name in names)), strict=True))
    places = {name: answer for name, answer in answers.items() if isinstance(answer, RunDir)}
    problems = {name: answer for name, answer in answers.items() if isinstance(answer, str)}
    # A guest that somebody holds is left in peace: its monitor serves one client.
    busy = {held for place in places.values() for held in place.holders if (place.host, held) not in mine}

    async def ask(place: RunDir, name: str) -> None:
        side = controller.side(place.host, name)
        side.process = place.records[name].process
        place.qemus[name] = await run_dir_facts.ask(side)

    await asyncio.gather(
        *(
            ask(place, name)
            for place in places.values()
            for name, record in place.records.items()
            if record.alive and is_name(name) and name not in busy and vm in {None, name}
        )
    )
    return places, problems


async def _open_migrations(controller: Controller) -> list[OpenMigration]:
    """Return what the journal has not closed: migrations, and saves, restores and moves."""
    records = await controller.journal.migrations(limit=_RECORDS)
    found = [
        OpenMigration(
            record.id,
            record.vm,
            record.source,
            record.destination,
            controller_lives(record.controller) if record.outcome is None else False,
        )
        for record in records
        if record.phase not in ENDS
    ]
    return found + [
        OpenMigration(o.id, o.vm, o.host, o.data.get("destination", o.host), controller_lives(o.controller))
        for o in await controller.operations.unsettled()
    ]
