"""What the journal of a lab says of a guest, read from its file: a command would take a second for each look.

The journal is what `history`, `status` and `report` print. Tests of those use the commands; tests that only wait for
a moment use this.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import tomllib
from pathlib import Path
from typing import Any, Final

from tests.support.real.lab import Guest, Lab, qemus, wait_for

POLL_S: Final = 0.05
PATIENCE_S: Final = 60.0
_ESTABLISHED: Final = "01"
"""In ``/proc/net/tcp``."""


def record(lab: Lab, guest: Guest, *, config: Path | None = None) -> dict[str, Any] | None:
    """Return the latest migration of a guest; None where there is none.

    Args:
        config: Settings with another journal than the lab's.

    Returns:
        The row of the journal: ``id``, ``phase``, ``outcome``, ``owner``, ``source``, ``destination``, …
    """
    found = _rows(lab, "select * from migrations where vm = ? order by started_at desc limit 1", guest.name, config)
    return found[0] if found else None


def acts(lab: Lab, guest: Guest, *, config: Path | None = None) -> list[str]:
    """Return the acts of a guest's latest migration, in order; empty where there is none."""
    latest = record(lab, guest, config=config)
    if latest is None:
        return []
    rows = _rows(lab, "select act from entries where migration = ? order by seq", latest["id"], config)
    return [row["act"] for row in rows]


def wait_for_phase(lab: Lab, guest: Guest, phase: str, *, config: Path | None = None) -> dict[str, Any]:
    """Wait until a guest's migration that has not ended is in a phase; return its record.

    The journal is ahead of what is done: in the phase ``copying``, wait until the hosts are connected, too. A controller
    that is killed before has not begun to copy.

    Raises:
        AssertionError: It is not within a minute, or ended before it was seen there.
    """
    under_way: set[str] = set()

    def look() -> dict[str, Any] | None:
        latest = record(lab, guest, config=config)
        if latest is None:
            return None
        if latest["outcome"] is None:
            under_way.add(latest["id"])
            if latest["phase"] != phase or (phase == "copying" and not _are_connected(lab, latest["id"], config)):
                return None
            return latest
        assert latest["id"] not in under_way, f"it ended and was not seen in phase {phase}: {latest}"
        return None  # an earlier one

    found: dict[str, Any] = wait_for(
        look, PATIENCE_S, lambda: f"phase {phase}: {record(lab, guest, config=config)}", every=POLL_S
    )
    return found


def _are_connected(lab: Lab, migration: str, config: Path | None) -> bool:
    """Whether somebody is connected to the port on which the destination waits for memory."""
    statement = "select data from entries where migration = ? and kind = 'intent' and act = 'migrate' order by seq desc"
    begun = _rows(lab, statement, migration, config)
    if not begun:
        return False
    ending = f":{json.loads(begun[0]['data'])['port']:04X}"
    connections = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return any(fields[1].endswith(ending) and fields[3] == _ESTABLISHED for fields in connections)


def assert_untouched(guest: Guest) -> None:
    """The guest runs on at the source without a gap, and nothing is left at the destination."""
    seen = guest.verdict("a")
    verdict = guest.wait("a", lambda v: v.last_tick > seen.last_tick + 20 and v.sweeps_ok > seen.sweeps_ok)
    assert verdict.survived, verdict.reasons
    assert not guest.directory("b").exists()
    assert qemus(guest.name) == [guest.pid("a")]
    assert not list(guest.directory("a").glob("tls-*"))


def _rows(lab: Lab, statement: str, value: str, config: Path | None) -> list[dict[str, Any]]:
    settings = tomllib.loads((config or lab.settings).read_text())
    path = Path(settings["controller"]["state"].removeprefix("sqlite:///"))
    if not path.exists():
        return []
    with contextlib.closing(sqlite3.connect(path, timeout=10.0)) as journal:
        journal.row_factory = sqlite3.Row
        try:
            rows = [dict(row) for row in journal.execute(statement, (value,))]
        except sqlite3.OperationalError as error:
            if "no such table" in str(error):  # it is being made
                return []
            raise
    for row in rows:
        for key in ("controller", "request", "result"):
            if row.get(key):
                row[key] = json.loads(row[key])
    return rows
