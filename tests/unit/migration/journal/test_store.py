"""The journal: what it has confirmed is there, whoever dies, and what it cannot do it says."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from qmp_migrate.errors import JournalError, MigrationUnknown
from qmp_migrate.migration.journal.store import Journal, controller_lives, this_controller
from qmp_migrate.migration.model.phases import Phase
from tests import ROOT


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/state/journal.sqlite"


@pytest.fixture
async def journal(url: str) -> AsyncIterator[Journal]:
    async with await Journal.open(url) as opened:
        yield opened


def path_of(url: str) -> Path:
    return Path(url.removeprefix("sqlite:///"))


async def begin(journal: Journal, id: str = "m1", **members: Any) -> None:
    await journal.begin(
        **{"id": id, "vm": "web1", "source": "a", "destination": "b", "mode": "live", "request": {}} | members
    )


async def story(journal: Journal, migration: str = "m1") -> list[tuple[str, str]]:
    return [(entry.kind, entry.act) for entry in await journal.entries(migration)]


# -- what is kept ---------------------------------------------------------------------------------------------------


async def test_a_migration_is_kept_with_all_that_was_asked(journal: Journal) -> None:
    await begin(journal, request={"downtime_limit_ms": 300})
    record = await journal.get("m1")
    assert (record.vm, record.source, record.destination, record.mode) == ("web1", "a", "b", "live")
    assert (record.phase, record.epoch, record.rev) == (Phase.REQUESTED, 0, 0)
    assert (record.outcome, record.owner, record.result) == (None, None, None)
    assert (record.may_have_run, record.cancel_requested) == (False, False)
    assert record.request == {"downtime_limit_ms": 300}
    assert record.controller == this_controller()


async def test_a_phase_comes_with_what_belongs_to_it(journal: Journal) -> None:
    await begin(journal)
    await journal.enter("m1", Phase.PREFLIGHT)
    await journal.enter("m1", Phase.LOCKED, epoch=7)
    await journal.enter("m1", Phase.ROLLED_BACK, outcome="failed", owner="source", result={"blackout_ms": 0.5})
    record = await journal.get("m1")
    assert (record.phase, record.epoch, record.rev) == (Phase.ROLLED_BACK, 7, 3)
    assert (record.outcome, record.owner, record.result) == ("failed", "source", {"blackout_ms": 0.5})
    assert record.updated_at >= record.started_at


async def test_what_came_of_an_act_is_on_disk_before_the_next_intent_is(journal: Journal) -> None:
    await begin(journal)
    await journal.intent("m1", "launch-destination", host="b")
    journal.result("m1", "launch-destination", pid=17)
    journal.note("m1", "warning", text="x")
    await journal.intent("m1", "wire")
    assert await story(journal) == [
        ("intent", "launch-destination"),
        ("result", "launch-destination"),
        ("note", "warning"),
        ("intent", "wire"),
    ]
    first, second, *_ = await journal.entries("m1")
    assert (first.data, second.data) == ({"host": "b"}, {"pid": 17})
    assert first.seq < second.seq


async def test_the_commit_is_armed_before_it_is_sent(journal: Journal) -> None:
    await begin(journal)
    await begin(journal, "m2")
    await journal.arm_commit("m1")
    await journal.arm_commit("m1")
    assert (await journal.get("m1")).may_have_run is True
    assert (await journal.get("m2")).may_have_run is False
    assert ("intent", "commit") in await story(journal)


async def test_the_latest_come_first(journal: Journal) -> None:
    for number, vm in enumerate(["web1", "db1", "web1"]):
        await begin(journal, f"m{number}", vm=vm)
    assert [record.id for record in await journal.migrations()] == ["m2", "m1", "m0"]
    assert [record.id for record in await journal.migrations(vm="web1")] == ["m2", "m0"]
    assert [record.id for record in await journal.migrations(limit=1)] == ["m2"]


async def test_a_unique_beginning_of_an_id_is_enough(journal: Journal) -> None:
    await begin(journal, "m260712aaa")
    await begin(journal, "m260713bbb")
    assert (await journal.get("m260713")).id == "m260713bbb"
    for wrong in ("m26", "m3", "%", "_260713bbb"):
        with pytest.raises(MigrationUnknown) as caught:
            await journal.get(wrong)
        assert caught.value.exit_code == 2


async def test_a_cancel_reaches_who_drives_the_migration(journal: Journal, url: str) -> None:
    await begin(journal)
    assert await journal.cancel_requested("m1") is False
    async with await Journal.open(url) as other:
        await other.request_cancel("m1")
    assert await journal.cancel_requested("m1") is True
    assert await journal.cancel_requested("m2") is False
    with pytest.raises(MigrationUnknown):
        await journal.request_cancel("m2")


async def test_probes_are_remembered_until_asked_again(journal: Journal) -> None:
    assert await journal.probe("binary/a") is None
    await journal.remember_probe("binary/a", {"version": "7.2.22"})
    await journal.remember_probe("binary/a", {"version": "10.0.2"})
    assert await journal.probe("binary/a") == {"version": "10.0.2"}


# -- who dies -------------------------------------------------------------------------------------------------------


async def test_every_commit_is_on_the_disk_itself(journal: Journal) -> None:
    """A killed process loses nothing anyway; power does, unless each commit is synced."""
    for pragma, value in [("synchronous", 2), ("journal_mode", "wal")]:
        assert await journal._run(lambda c, p=pragma: c.exec_driver_sql(f"PRAGMA {p}").scalar()) == value


WRITER = """
import asyncio, sys
from qmp_migrate.migration.journal.store import Journal

async def main(url):
    async with await Journal.open(url) as journal:
        await journal.begin(id="m1", vm="web1", source="a", destination="b", mode="live", request={})
        for number in range(100):
            journal.result("m1", "result", number=number)
            await journal.intent("m1", "intent", number=number)
            print(number, flush=True)
        await journal.arm_commit("m1")
        print("armed", flush=True)
        journal.result("m1", "never-confirmed")
        sys.stdin.read()

asyncio.run(main(sys.argv[1]))
"""


async def test_what_was_confirmed_survives_its_writer_and_others_write_beside_it(url: str, journal: Journal) -> None:
    await begin(journal, "m2")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", WRITER, url),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stdout is not None
    confirmed = [await process.stdout.readline()]
    for _ in range(30):
        await journal.intent("m2", "beside")
    while (line := await process.stdout.readline()) not in {b"armed\n", b""}:
        confirmed.append(line)
    process.kill()
    assert await process.wait() == -signal.SIGKILL
    assert confirmed == [b"%d\n" % number for number in range(100)]
    record = await journal.get("m1")
    assert record.may_have_run is True
    assert controller_lives(record.controller) is False
    acts = [entry.act for entry in await journal.entries("m1")]
    assert acts == ["result", "intent"] * 100 + ["commit"]
    assert len(await journal.entries("m2")) == 30


async def test_several_controllers_open_a_new_one_at_once(url: str) -> None:
    opened = await asyncio.gather(*(Journal.open(url) for _ in range(4)), return_exceptions=True)
    for journal in opened:
        if isinstance(journal, Journal):
            await journal.close()
    assert [repr(journal) for journal in opened if not isinstance(journal, Journal)] == []


async def test_close_writes_what_is_pending(url: str) -> None:
    async with await Journal.open(url) as journal:
        await begin(journal)
        journal.note("m1", "done", outcome="completed")
    async with await Journal.open(url) as journal:
        assert await story(journal) == [("note", "done")]


# -- what cannot be done ----------------------------------------------------------------------------------------------


def is_open(path: Path) -> bool:
    """Say whether this process has a file open."""
    opened = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            opened.append(entry.readlink())
    return path in opened


async def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (f"sqlite:///{tmp_path}/file/journal.sqlite", "sqlite:////proc/journal.sqlite"):
        with pytest.raises(JournalError, match="cannot open the journal") as caught:
            await Journal.open(place)
        assert "[controller] state" in (caught.value.hint or "")


async def test_a_file_that_is_no_journal_is_left_as_it_is(url: str) -> None:
    path = path_of(url)
    path.parent.mkdir()
    path.write_bytes(b"this is no database\n" * 1000)
    with pytest.raises(JournalError, match="not a database"):
        await Journal.open(url)
    assert path.read_bytes() == b"this is no database\n" * 1000
    assert not is_open(path)


async def test_a_journal_of_a_newer_program_is_refused(url: str) -> None:
    async with await Journal.open(url):
        pass
    with sqlite3.connect(path_of(url)) as database:
        database.execute("UPDATE meta SET schema = 2")
    database.close()
    with pytest.raises(JournalError, match="has version 2, this program knows 1") as caught:
        await Journal.open(url)
    assert "newer" in (caught.value.hint or "")
    assert not is_open(path_of(url))


async def test_a_store_whose_driver_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(JournalError):
        await Journal.open("postgresql+psycopg://nobody@127.0.0.1:1/none")


async def full(journal: Journal, *, full: bool) -> None:
    """Let the disk be full, as far as the journal can tell, or let it have space again."""
    pages = 1 if full else 1 << 20
    await journal._run(lambda c: c.exec_driver_sql(f"PRAGMA max_page_count={pages}"))


async def test_an_intent_that_cannot_be_written_is_an_error(journal: Journal) -> None:
    await begin(journal)
    await full(journal, full=True)
    with pytest.raises(JournalError, match="disk is full") as caught:
        await journal.intent("m1", "commit", filler="x" * 100_000)
    assert "disk full" in (caught.value.hint or "")
    await full(journal, full=False)
    await journal.intent("m1", "commit")
    assert await story(journal) == [("intent", "commit")]


async def test_results_are_kept_until_they_can_be_written(journal: Journal) -> None:
    await begin(journal)
    journal.result("m1", "launch-destination", pid=17)
    await full(journal, full=True)
    with pytest.raises(JournalError):
        await journal.intent("m1", "wire", filler="x" * 100_000)
    await full(journal, full=False)
    await journal.intent("m1", "roll-back")
    assert await story(journal) == [("result", "launch-destination"), ("intent", "roll-back")]


async def test_a_second_migration_of_the_same_id_is_refused(journal: Journal) -> None:
    await begin(journal)
    with pytest.raises(JournalError):
        await begin(journal)


async def test_what_is_no_json_is_refused_and_harms_nothing(journal: Journal) -> None:
    await begin(journal)
    with pytest.raises(JournalError):
        await journal.intent("m1", "x", data=object())
    await journal.intent("m1", "y")
    assert await story(journal) == [("intent", "y")]


# -- who drives it --------------------------------------------------------------------------------------------------


def test_a_controller_is_known_by_more_than_its_pid() -> None:
    me = this_controller()
    assert me["pid"] == os.getpid()
    assert controller_lives(me) is True
    assert controller_lives(me | {"start_time": me["start_time"] + 1}) is False  # its pid was given to another
    assert controller_lives(me | {"pid": 2**22 + 1}) is False
    assert controller_lives(me | {"boot_id": "before"}) is False
    assert controller_lives(me | {"boot_id": "other", "host": "elsewhere"}) is None
    assert controller_lives({}) is None


def test_one_that_has_ended_and_was_not_waited_for_is_dead() -> None:
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it is a zombie from here on
        stat = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        assert controller_lives(this_controller() | {"pid": process.pid, "start_time": int(stat[19])}) is False
