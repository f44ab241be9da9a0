"""``history``, ``report`` and ``status`` show saves, restores and moves of shut-down guests beside migrations."""

from __future__ import annotations

import asyncio
import json
from operator import methodcaller
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from qmp_migrate.cli.main import app
from qmp_migrate.errors import MigrationUnknown
from qmp_migrate.migration.journal.operations import DONE, Operations, either
from qmp_migrate.migration.journal.schema import operations as rows
from qmp_migrate.migration.journal.store import Journal

NOBODY = {"host": "nowhere", "boot_id": "0", "pid": 1, "started": 1}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A journal with a save, a migration, a move that was left half done, and a restore that failed, in this order."""
    state = f"sqlite:///{tmp_path}/journal.sqlite"

    async def fill() -> None:
        async with await Journal.open(state) as journal:
            operations = Operations(journal)
            await operations.begin("s1", "save", "web1", "a", {"path": "/srv/web1.state", "format": "stream"})
            result = {
                "owner": "file",
                "outcome": "completed",
                "stored_bytes": 5 << 20,
                "write_ms": 40,
                "warnings": ["w"],
            }
            await operations.enter("s1", DONE, epoch=1, outcome="completed", result=result)
            await journal.begin(id="m1", vm="web2", source="a", destination="b", mode="live", request={})
            await operations.begin("d1", "move", "db1", "a", {"destination": "b"})
            await operations.enter("d1", "staging", epoch=2)
            await operations.begin("r1", "restore", "web1", "b", {"path": "/srv/web1.state"})
            error = {"message": "the checksum is wrong"}
            failed = {"owner": "file", "outcome": "failed", "error": error}
            await operations.enter("r1", DONE, epoch=3, outcome="failed", result=failed)
            for number, id in enumerate(("s1", "d1", "r1")):
                at = {"started_at": 1000.0 + 10 * number, "updated_at": 1002.5 + 10 * number, "controller": NOBODY}
                await journal.transact(methodcaller("execute", sa.update(rows).where(rows.c.id == id).values(at)))

    asyncio.run(fill())
    path = tmp_path / "qmp-migrate.toml"
    path.write_text(
        f'[controller]\nstate = "{state}"\n[hosts.a]\naddress = "192.0.2.1"\n[hosts.b]\naddress = "192.0.2.2"\n'
    )
    return path


def said(config: Path, *words: str) -> Any:
    return CliRunner().invoke(app, ["--config", str(config), *words], catch_exceptions=False)


def test_history_lists_them_newest_first(config: Path) -> None:
    ended = said(config, "history")
    assert ended.exit_code == 0
    lines = [line.split() for line in ended.stdout.splitlines()]
    assert [line[0] for line in lines] == ["ID", "m1", "r1", "d1", "s1"]
    assert lines[4][1:7] == ["web1", "a", "file", "save", "completed", "file"]
    assert lines[4][-3:] == ["2.5", "s", "-"]
    assert lines[2][1:6] == ["web1", "file", "b", "restore", "failed"]
    assert lines[3][1:6] == ["db1", "a", "b", "move:", "staging"]
    assert "d1: no controller drives it; settle it with: qmp-migrate recover d1" in ended.stderr
    assert "recover s1" not in ended.stderr


def test_history_counts_both_kinds_together_and_filters(config: Path) -> None:
    document = json.loads(said(config, "history", "--json", "--limit", "2").stdout)
    assert [one["id"] for one in document["migrations"]] == ["m1"]
    assert [one["id"] for one in document["operations"]] == ["r1"]
    document = json.loads(said(config, "history", "--json", "--vm", "web1").stdout)
    assert document["migrations"] == []
    assert [(one["id"], one["owner"], one["file"]) for one in document["operations"]] == [
        ("r1", "file", "/srv/web1.state"),
        ("s1", "file", "/srv/web1.state"),
    ]


def test_report_tells_one_of_them(config: Path) -> None:
    told = said(config, "report", "s1").stdout
    assert "s1: save of web1 a -> file" in told
    assert "/srv/web1.state on a" in told
    assert "outcome: completed, owner: file" in told
    assert "error: the checksum is wrong" in said(config, "report", "r").stdout
    left = said(config, "report", "d1").stdout
    assert "last step: staging" in left
    assert "qmp-migrate recover d1" in left
    document = json.loads(said(config, "report", "d1", "--json").stdout)
    assert (document["schema"], document["destination"], document["left"]) == ("operation/1", "b", True)


def test_status_takes_the_id_of_one(config: Path) -> None:
    everything = said(config, "status")
    assert "move d1 of db1 on a: staging; settle it with: qmp-migrate recover d1" in everything.stderr
    assert "completed" in said(config, "status", "s1").stdout
    assert [one["id"] for one in json.loads(said(config, "status", "d1", "--json").stdout)["operations"]] == ["d1"]


def test_what_is_in_neither_table_is_unknown(config: Path) -> None:
    async def ask(id: str) -> None:
        async with await Journal.open(f"sqlite:///{config.parent}/journal.sqlite") as journal:
            await either(journal, id)

    for id in ("x1", "s9", "m9", ""):
        with pytest.raises(MigrationUnknown):
            asyncio.run(ask(id))


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("migrate w --to b --source-images remove --json", 2),
        ("check w --to b --source-images rename --json", 2),
        ("recover --owner x --json", 2),
        ("recover --fenced a --json", 2),
        ("tune m1 --json", 2),
        ("check w --to b --json", 78),
    ],
)
def test_a_wrong_word_ends_with_one_document_too(config: Path, words: str, code: int) -> None:
    if code == 78:
        config.write_text(config.read_text() + '[migration]\npolicy = "gentel"\n')
    ended = said(config, *words.split())
    assert ended.exit_code == code
    assert json.loads(ended.stdout)["error"]["message"]
    assert "error: " in ended.stderr
    assert code != 78 or "did you mean gentle?" in ended.stderr
