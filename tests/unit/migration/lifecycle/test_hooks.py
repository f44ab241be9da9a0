"""Hooks: what they are told, how they are ended, and what their failure means."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qmp_migrate.errors import ConfigError, MigrationFailed
from qmp_migrate.hosts import HostAddress, make_host
from qmp_migrate.migration.journal.store import Entry
from qmp_migrate.migration.lifecycle.hooks import (
    GRACE_S,
    SSH_S,
    Hook,
    HookRun,
    Hooks,
    Point,
    describe,
    run_here,
    run_there,
)
from qmp_migrate.migration.model.phases import Phase
from qmp_migrate.migration.model.request import MigrationRequest, MigrationResult
from qmp_migrate.settings import parse

HOOKS = """
[[hook]]
at = "pre-switchover"
where = "destination"
command = ["/usr/local/bin/flip", "; rm -rf /"]
timeout = "2s"
required = true

[[hook]]
at = "done"
command = ["/bin/true"]
"""


def sh(script: str) -> tuple[str, ...]:
    return ("/bin/sh", "-c", script)


async def test_a_hook_is_told_on_standard_input_and_in_its_environment() -> None:
    outcome, status, output = await run_here(
        sh('cat; echo "$QMP_MIGRATE_VM"'), {"QMP_MIGRATE_VM": "web1"}, b"told\n", 5
    )
    assert (outcome, status, output) == ("ok", 0, b"told\nweb1\n")


async def test_a_hook_need_not_read_and_only_the_end_of_what_it_writes_is_kept() -> None:
    outcome, status, output = await run_here(sh("seq 1 100000; exit 3"), {}, b"x" * 1_000_000, 20)
    assert (outcome, status) == ("failed", 3)
    assert output.endswith(b"\n100000\n")
    assert len(output) == 4096


async def test_what_is_not_there_has_failed() -> None:
    outcome, status, output = await run_here(("/no/such/program",), {}, b"", 5)
    assert (outcome, status) == ("failed", None)
    assert b"/no/such/program" in output


@pytest.mark.parametrize("place", ["here", "there"])
async def test_one_that_takes_too_long_is_killed_with_all_that_it_started(place: str, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    script = sh(f"trap '' TERM; sleep 60 & echo $! >{pid}; echo began; wait; sleep 60")
    begun = time.monotonic()
    if place == "here":
        outcome, status, output = await run_here(script, {}, b"", 2.0)
    else:
        host = make_host(HostAddress("a", local=True))
        outcome, status, output = await run_there(host, script, {}, b"", 2.0)
        await host.close()
    assert outcome == "timeout"
    assert output == b"began\n"
    assert time.monotonic() - begun < 40, "and nobody waits for its own end"
    child = int(pid.read_text())
    for _ in range(500):
        if not _alive(child):
            break
        await asyncio.sleep(0.01)
    assert not _alive(child), "what it started is gone, too"
    assert status != 0


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def test_on_a_host_words_are_words() -> None:
    host = make_host(HostAddress("a", local=True))
    words = ("/usr/bin/printf", "%s|", "a b", "$(id)", "'", "QMP_X=1")
    outcome, _status, output = await run_there(host, words, {"QMP_MIGRATE_AT": "done"}, b"", 5)
    await host.close()
    assert (outcome, output) == ("ok", b"a b|$(id)|'|QMP_X=1|")


async def test_a_cancelled_hook_leaves_nothing(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    task = asyncio.create_task(run_here(sh(f"echo $$ >{pid}; exec sleep 60"), {}, b"", 60))
    while not (pid.exists() and pid.read_text()):  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not _alive(int(pid.read_text()))


def test_hooks_in_the_pause_ask_for_the_pause_and_for_time() -> None:
    hooks = Hooks.of(parse(HOOKS, source="x").hook)
    request = MigrationRequest("web1", "b")
    wanted = hooks.asked_for(request)
    assert wanted.guarded
    assert wanted.limits.switchover_s == request.limits.switchover_s + 2 + GRACE_S + SSH_S
    assert Hooks(hooks.at(Point.DONE)).asked_for(request) == request


def test_points_that_were_passed_are_known_from_the_journal() -> None:
    hooks = Hooks()
    hooks.remember(
        [
            Entry(1, 0.0, "intent", "hooks", {"at": "after-commit"}),
            Entry(2, 0.0, "intent", "migrate", {"at": "done"}),
        ]
    )
    assert hooks.ran == {"after-commit"}


def test_a_failure_is_told_in_one_line() -> None:
    run = HookRun("before", "source", "a", ("/x/y", "a b"), "failed", 3, 5, "one\ntwo\n")
    assert describe(run) == "the before hook /x/y 'a b' on a ended with status 3: two"
    absent = HookRun("done", "controller", "controller", ("/x",), "failed", None, 5, "[Errno 2] No such file: '/x'")
    assert describe(absent) == "the done hook /x on controller could not be started: [Errno 2] No such file: '/x'"
    late = HookRun("done", "controller", "controller", ("/x",), "timeout", None, 5, "")
    assert describe(late) == "the done hook /x on controller was killed: its time was over"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[[hook]]\nat = "sometime"\ncommand = ["/x"]', "hook.0.at"),
        ('[[hook]]\nat = "done"\ncommand = "rm -rf /"', "hook.0.command"),
        ('[[hook]]\nat = "done"\ncommand = ["rm"]', "absolute path"),
        ('[[hook]]\nat = "done"\ncommand = []', "absolute path"),
        ('[[hook]]\nat = "done"\ncommand = ["/a=b"]', "equals sign"),
        ('[[hook]]\nat = "done"\ncommand = ["/x"]\nrequired = true', "required is not possible at done"),
        ('[[hook]]\nat = "done"\ncommand = ["/x"]\ntimeout = "soon"', "hook.0.timeout"),
        ('[[hook]]\nat = "done"\ncomand = ["/x"]', "unknown key"),
    ],
)
def test_a_hook_that_makes_no_sense_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        parse(text, source="x")
    if "comand" in text:
        assert caught.value.hint == "did you mean 'command'?"


def test_announcements_are_settings() -> None:
    settings = parse('[migration]\nannounce_rounds = 9\nannounce_max = "1s"', source="x")
    assert settings.migration.announce == (50, 1000, 9, 100)
    request = MigrationRequest("web1", "b", announce=settings.migration.announce)
    again = MigrationRequest.again(
        json.loads(json.dumps(request.asked)),
        vm="web1",
        destination="b",
        source="a",
        mode="live",
        limits=request.limits,
        id="m",
    )
    assert list(again.announce) == [50, 1000, 9, 100]


class Told:
    """What a hook needs of a course."""

    def __init__(self, *, postcopy: bool) -> None:
        self.postcopy = postcopy
        self.request = MigrationRequest("web1", "b", "a")
        self.source = self.destination = SimpleNamespace(name="a", migration_address="h", fenced=False)
        self.warnings: list[str] = []
        self.intents: list[str] = []
        result = MigrationResult("m1", "web1", "a", "b", "live")
        self.chronicle = SimpleNamespace(
            phase=Phase.COPYING,
            result=result,
            intent=self._intent,
            event=lambda *_a, **_k: None,
            warn=self.warnings.append,
        )

    async def _intent(self, _act: str, *, at: str) -> None:
        self.intents.append(at)


def required(at: Point) -> Hooks:
    return Hooks((Hook(at, "controller", ("/bin/false",), 5.0, required=True),))


async def test_a_required_hook_takes_the_guest_back_as_long_as_there_is_a_way_back() -> None:
    course: Any = Told(postcopy=False)
    with pytest.raises(MigrationFailed, match="ended with status 1") as caught:
        await required(Point.PRE_SWITCHOVER).run(Point.PRE_SWITCHOVER, course)
    assert caught.value.safe_at_source
    course = Told(postcopy=True)
    await required(Point.PRE_SWITCHOVER).run(Point.PRE_SWITCHOVER, course)
    assert len(course.warnings) == 1, "after the commit nothing can"


async def test_hooks_that_run_beside_are_waited_for_and_run_once() -> None:
    course: Any = Told(postcopy=True)
    hooks = Hooks((Hook(Point.AFTER_COMMIT, "controller", sh("sleep 0.2; echo late"), 5.0),))
    hooks.begin(Point.AFTER_COMMIT, course)
    assert await hooks.run_after(Point.AFTER_COMMIT, course)
    assert not await hooks.run_after(Point.AFTER_COMMIT, course)
    assert [run["output"] for run in course.chronicle.result.hooks] == ["late\n"]
    assert course.intents == ["after-commit"]
