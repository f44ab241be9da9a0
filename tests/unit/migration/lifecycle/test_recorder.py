"""What a migration tells: to the journal first, then to whoever watches, and neither can stop the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from qmp_migrate.errors import CommandFailed, JournalError, MigrationFailed
from qmp_migrate.migration.journal.store import Journal
from qmp_migrate.migration.lifecycle.recorder import Chronicle
from qmp_migrate.migration.model.phases import Phase
from qmp_migrate.migration.model.reporter import MigrationView, Progress, Reporter, Reporters
from qmp_migrate.migration.model.request import MigrationRequest, MigrationResult

P = Phase


class Watching:
    """A reporter that notes what it was told, and what the journal's file held at that moment."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.views: list[MigrationView] = []
        self.events: list[tuple[str, Mapping[str, Any]]] = []
        self.journaled: list[str] = []

    def phase(self, view: MigrationView) -> None:
        self.views.append(view)
        self.journaled.append(self._phase_on_disk())

    def progress(self, progress: Progress) -> None: ...

    def event(self, kind: str, data: Mapping[str, Any]) -> None:
        self.events.append((kind, data))

    def _phase_on_disk(self) -> str:
        import sqlite3

        database = sqlite3.connect(self.path)
        try:
            return str(database.execute("SELECT phase FROM migrations WHERE id = 'm1'").fetchone()[0])
        finally:
            database.close()


class Falling:
    """A reporter that fails at everything."""

    def phase(self, view: MigrationView) -> None:
        raise RuntimeError("no")

    def progress(self, progress: Progress) -> None:
        raise OSError("no")

    def event(self, kind: str, data: Mapping[str, Any]) -> None:
        raise KeyError("no")


@pytest.fixture
async def journal(tmp_path: Path) -> AsyncIterator[Journal]:
    async with await Journal.open(f"sqlite:///{tmp_path}/journal.sqlite") as opened:
        await opened.begin(id="m1", vm="web1", source="a", destination="b", mode="live", request={})
        yield opened


@pytest.fixture
def watching(tmp_path: Path) -> Watching:
    return Watching(tmp_path / "journal.sqlite")


def chronicle_of(journal: Journal, reporter: Reporter) -> Chronicle:
    request = MigrationRequest("web1", "b", "a", id="m1")
    return Chronicle(request, journal, reporter, MigrationResult("m1", "web1", "a", "b", "live"))


@pytest.fixture
def chronicle(journal: Journal, watching: Watching) -> Chronicle:
    return chronicle_of(journal, watching)


async def test_the_journal_knows_before_anybody_is_told(chronicle: Chronicle, watching: Watching) -> None:
    await chronicle.enter(P.LOCKED, epoch=3)
    await chronicle.enter(P.DESTINATION_LAUNCHED)
    assert [view.phase for view in watching.views] == watching.journaled == ["locked", "destination-launched"]
    assert [view.rev for view in watching.views] == [2, 3]
    assert (await chronicle.journal.get("m1")).epoch == 3


async def test_a_reporter_that_fails_disturbs_nobody(journal: Journal, watching: Watching) -> None:
    chronicle = chronicle_of(journal, Reporters([Falling(), watching, Falling()]))
    await chronicle.enter(P.LOCKED)
    chronicle.event("step", reason="x")
    chronicle.reporter.progress(Progress("m1", 1, "active", 0.0, 0, 0, 0, 0, 0, 0, 0, None, None, 0))
    await chronicle.end(P.ROLLED_BACK, "failed", "source", None)
    assert [view.phase for view in watching.views] == ["locked", "rolled-back"]
    assert [kind for kind, _ in watching.events] == ["step", "done"]


async def test_a_step_that_is_not_in_the_graph_is_told_to_nobody(chronicle: Chronicle, watching: Watching) -> None:
    with pytest.raises(ValueError, match="cannot go from preflight to committed"):
        await chronicle.enter(P.COMMITTED)
    assert not watching.views
    assert (await chronicle.journal.get("m1")).phase is P.REQUESTED


async def test_a_phase_that_was_over_at_once_costs_no_write_of_its_own(
    chronicle: Chronicle, watching: Watching
) -> None:
    chronicle.phase = P.COPYING
    chronicle.pass_through(P.SWITCHING)
    assert not watching.views
    await chronicle.enter(P.COMMITTED)
    told = [(entry.kind, entry.act) for entry in await chronicle.journal.entries("m1")]
    assert told == [("note", "switching"), ("phase", "committed")]


async def test_who_owns_it_changes_with_the_commit(chronicle: Chronicle, watching: Watching) -> None:
    for phase in (P.LOCKED, P.DESTINATION_LAUNCHED, P.WIRED, P.COPYING, P.SWITCHING, P.COMMITTED):
        await chronicle.enter(phase)
    assert [view.owner for view in watching.views] == ["source"] * 5 + ["destination"]
    assert all(view.outcome is None for view in watching.views)


async def test_the_end_has_the_result_in_the_journal_and_for_all(chronicle: Chronicle, watching: Watching) -> None:
    error = MigrationFailed("it failed", safe_at_source=True, hint="try again", host="a")
    chronicle.warn("something small")
    await chronicle.end(P.ROLLED_BACK, "rolled_back", "source", error)
    assert chronicle.ended
    record = await chronicle.journal.get("m1")
    assert (record.phase, record.outcome, record.owner) == (P.ROLLED_BACK, "rolled_back", "source")
    assert record.result == chronicle.result.to_dict()
    assert record.result["error"] == {
        "code": "migration_failed",
        "message": "it failed",
        "hint": "try again",
        "host": "a",
    }
    assert record.result["warnings"] == ["something small"]
    (view,) = watching.views
    assert (view.outcome, view.owner, view.error) == ("rolled_back", "source", error.to_dict())
    assert [kind for kind, _ in watching.events] == ["warning", "done"]
    assert watching.events[-1][1] == {"id": "m1", "vm": "web1", "outcome": "rolled_back", "owner": "source"}


async def test_time_passes_between_the_beginning_and_the_end(chronicle: Chronicle) -> None:
    await asyncio.sleep(0.01)
    await chronicle.end(P.PARKED, "unknown", "unknown", None)
    assert 10 <= chronicle.result.total_ms < 10_000
    assert chronicle.result.error is None


# -- a journal that fails ---------------------------------------------------------------------------------------------


async def fill_the_disk(journal: Journal) -> None:
    """From here on nothing more can be written."""
    await journal._run(lambda c: c.exec_driver_sql("PRAGMA query_only = 1"))


async def test_what_cannot_be_written_must_not_be_done(chronicle: Chronicle, watching: Watching) -> None:
    await fill_the_disk(chronicle.journal)
    with pytest.raises(JournalError):
        await chronicle.intent("launch-destination")
    with pytest.raises(JournalError):
        await chronicle.enter(P.LOCKED)
    assert not watching.views


async def test_but_the_way_back_is_taken_anyway(chronicle: Chronicle, watching: Watching) -> None:
    await chronicle.enter(P.LOCKED)
    await fill_the_disk(chronicle.journal)
    await chronicle.turn_back()
    assert chronicle.phase is P.ROLLING_BACK
    await chronicle.end(P.ROLLED_BACK, "rolled_back", "source", None)
    assert [view.phase for view in watching.views] == ["locked", "rolling-back", "rolled-back"]
    assert any("not in the journal" in warning for warning in chronicle.result.warnings)
    # `_run` writes pending notes at close; the disk has space again by then.
    await chronicle.journal._run(lambda c: c.exec_driver_sql("PRAGMA query_only = 0"))


async def test_what_harms_nobody_is_a_warning(chronicle: Chronicle, watching: Watching) -> None:
    with chronicle.tolerate("the serial log stayed behind"):
        raise CommandFailed("cat ended with status 1", returncode=1, host="a")
    assert chronicle.result.warnings == ["the serial log stayed behind: a: cat ended with status 1"]
    assert watching.events == [("warning", {"id": "m1", "vm": "web1", "text": chronicle.result.warnings[0]})]
    with pytest.raises(ZeroDivisionError), chronicle.tolerate("a bug is no warning"):
        _ = 1 / 0
