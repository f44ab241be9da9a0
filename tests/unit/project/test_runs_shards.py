"""A long run goes on where it stopped, runs nothing twice, and tells every failure with its seed and log."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests import ROOT
from tests.runs import full, ids, plan, results, shards, steady
from tests.runs.steps import Ended, Interrupted, Step

TESTS = """
import os, signal, pytest

@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_it(n):
    open("ran", "a").write(f"{n}")
    if n == 2:
        print("what it said")
        assert n == 3, "two is not three"
    if n == 3 and not os.path.exists("again"):
        open("again", "w").close()
        os.kill(os.getpid(), signal.SIGKILL)

def test_skipped():
    pytest.skip("not here")
"""


@pytest.fixture
def state(tmp_path: Path) -> Iterator[shards.State]:
    with closing(shards.State.open(tmp_path / "state")) as opened:
        yield opened


def pytest_step(directory: Path, name: str = "stage") -> Step:
    (directory / "test_it.py").write_text(TESTS)
    argv = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(directory), str(directory))
    return Step(name, argv, tests=True, cwd=str(directory), env={"PYTHONPATH": str(ROOT)})


def test_tests_that_were_run_before_a_stop_are_not_run_again(tmp_path: Path, state: shards.State) -> None:
    step = pytest_step(tmp_path)
    left = shards.prepared([step], state)[0]
    died = subprocess.run(left.argv, cwd=tmp_path, env=os.environ | dict(left.env), capture_output=True, check=False)
    assert died.returncode == -signal.SIGKILL
    assert [result.outcome for result in state.results_of(step)] == ["passed", "failed"]
    shards.go([step], state)
    assert (tmp_path / "ran").read_text() == "12334"  # the third one was on its way
    assert sorted(result.outcome for result in state.results_of(step)) == [
        "failed",
        "passed",
        "passed",
        "passed",
        "skipped",
    ]
    # all that was left has passed, yet the shard has failed: what failed before the stop counts
    assert state.ended["stage"].outcome == "failed"
    shards.go([step], state)
    assert (tmp_path / "ran").read_text() == "12334"


def test_a_failure_is_told_with_its_seed_and_its_log(tmp_path: Path, state: shards.State) -> None:
    (tmp_path / "again").touch()
    step = pytest_step(tmp_path)
    shards.go([step], state)
    [failure] = state.failures([step], {"stage": 42})
    assert failure.test == "test_it.py::test_it[2]"
    assert failure.reason == "AssertionError: two is not three"
    said = failure.log.read_text()
    assert "seed: 42" in said
    assert "what it said" in said
    shown = results.table([failure])
    assert all(word in shown for word in ("stage, seed 42", failure.test, failure.reason, str(failure.log)))


def test_a_worker_that_died_is_a_failure(tmp_path: Path, state: shards.State) -> None:
    step = pytest_step(tmp_path)
    step = Step(step.name, (*step.argv, "-n", "1"), tests=True, cwd=step.cwd, env=step.env)
    shards.go([step], state)
    bad = [failure.reason for failure in state.failures([step], {})]
    assert any("crashed" in reason for reason in bad), bad
    assert state.ended["stage"].outcome == "failed"


def test_a_shard_that_fails_without_a_test_is_in_the_table(state: shards.State) -> None:
    step = Step("make demo", ("sh", "-c", "echo why; exit 4"))
    shards.go([step], state)
    [failure] = state.failures([step], {})
    assert failure.reason == "exit status 4"
    assert failure.log.read_text() == "why\n"


def test_an_interrupted_run_goes_on_with_what_is_left(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    write = f"echo $0 >> {ran}"
    steps = shards.in_order(
        [
            Step("one", ("sh", "-c", write, "one")),
            Step(
                "two",
                ("sh", "-c", f"{write}; [ -e {ran}.2 ] || {{ touch {ran}.2; kill -INT $PPID; exec sleep 60; }}", "two"),
            ),
            Step("three", ("sh", "-c", write, "three")),
        ]
    )
    state = shards.State.open(tmp_path / "state")
    with pytest.raises(Interrupted):
        shards.go(steps, state)
    state.close()
    with closing(shards.State.open(tmp_path / "state")) as again:
        assert list(again.ended) == ["one"]
        assert again.spent["two"] > 0
        shards.go(steps, again)
    assert ran.read_text().split() == ["one", "two", "two", "three"]
    assert list(again.ended) == ["one", "two", "three"]
    assert not again.spent


def test_two_runs_do_not_share_a_directory(tmp_path: Path) -> None:
    state = shards.State.open(tmp_path)
    with pytest.raises(shards.Busy, match=f"pid {os.getpid()}"):
        shards.State.open(tmp_path)
    state.close()
    shards.State.open(tmp_path).close()


def test_a_record_that_was_cut_off_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    record = tmp_path / "x.jsonl"
    whole = json.dumps({"id": "a", "outcome": "passed", "seconds": 1.0, "text": ""})
    record.write_text(f"{whole}\n{whole[:20]}")
    assert [result.id for result in results.read(record)] == ["a"]
    results.keep_whole_lines(record)
    assert record.read_text() == f"{whole}\n"


def test_the_table_counts_what_failed_often(tmp_path: Path) -> None:
    found = [results.Failure(f"round {n}: system", "t::a", "boom", n, tmp_path / f"{n}.log") for n in (1, 2)]
    shown = results.table(found)
    assert shown.startswith("2 failures:")
    assert shown.endswith("   2 t::a")
    assert results.table([]) == "no failures"


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"N": "five"}, "N=five"),
        ({"N": "0"}, "N=0"),
        ({"TEST": "tests/unit/test_nothing.py::test_x"}, "test_nothing.py, which does not exist"),
        ({"TEST": "tests/unit/'x"}, "TEST cannot be read"),
    ],
)
def test_a_wish_that_cannot_be_met_is_refused(variables: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        steady.Wanted.of(variables)


def test_each_round_has_a_seed_of_its_own_and_keeps_it() -> None:
    wanted = steady.Wanted(2)
    seeds = steady.with_seeds(wanted, {})
    more = steady.with_seeds(steady.Wanted(3), seeds)
    assert {name: more[name] for name in seeds} == seeds
    steps = steady.rounds(wanted, seeds)
    assert [step.name for step in steps] == [
        f"round {n}: {stage}" for n in (1, 2) for stage in ("component", "component, alone", "system", "system, alone")
    ]
    assert len({step.env["PYTHONHASHSEED"] for step in steps}) == len(steps)
    for step in steps:
        assert f"--hypothesis-seed={seeds[step.name]}" in step.argv
        assert step.env["PYTHONHASHSEED"] == str(seeds[step.name])


def test_the_number_of_rounds_does_not_change_where_the_state_is() -> None:
    test = "tests/unit/project/test_runs_shards.py::test_it[a b]"
    wanted = steady.Wanted.of({"N": "3", "TEST": f"'{test}'"})
    assert wanted.tests == (test,)
    assert wanted.key == steady.Wanted.of({"N": "50", "TEST": f"'{test}'"}).key
    assert wanted.key != steady.Wanted.of({"N": "3", "TEST": f"'{test}'", "K": "x"}).key
    assert steady.Wanted.of({}).key == "stages"


def test_nothing_that_was_run_is_no_success(
    tmp_path: Path, state: shards.State, capsys: pytest.CaptureFixture[str]
) -> None:
    step = Step("round 1: tests", ("true",), tests=True)
    state.ended[step.name] = Ended("passed", 5, 1.0)
    assert steady.closing(state, [step], {}, "abc", interrupted=False) == 1
    assert "no test was run" in capsys.readouterr().out


def test_the_full_run_holds_all_of_make_test(state: shards.State) -> None:
    whole = {step.name: step.argv for step in full.steps()}
    for step in plan.test():
        if step not in plan.SETUP:
            assert whole[step.name] == step.argv
    marked = [step.argv for step in full.steps() if step.tests]
    assert {words[words.index("-m", 3) + 1] for words in marked} == {
        "not full and not alone",
        "alone and not full",
        "full and not alone",
        "full and alone",
    }


def test_lint_and_types_run_beside_the_unit_tests_and_nothing_beside_what_measures() -> None:
    steps = {step.name: step for step in plan.test()}
    assert not {"lint", "types"} & {*steps["unit"].needs, *steps["unit"].follows}
    for alone in ("unit, alone", "component, alone"):
        before = {*steps[alone].needs, *steps[alone].follows}
        assert before >= set(list(steps)[: list(steps).index(alone)]), alone


def test_the_closing_line_names_the_commit_and_the_counts(
    state: shards.State, capsys: pytest.CaptureFixture[str]
) -> None:
    step = Step("unit", ("true",), tests=True)
    plan.record_of("unit", state.directory).write_text('{"id": "a", "outcome": "passed", "seconds": 1, "text": ""}\n')
    state.ended["unit"] = Ended("passed", 0, 61.0)
    assert full.closing(state, [step], "abc123", interrupted=False) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "make test-full: passed, commit abc123: 1 of 1 shards in 1 min 1 s: 1 passed"
    assert full.closing(state, [step, Step("system", ("true",))], "abc123", interrupted=True) == 130


def test_a_test_that_is_gone_is_noticed() -> None:
    before = ids.ids("tests/a.py::test_1[x y]\ntests/a.py::test_2\n\n2 tests collected in 0.1s\n")
    assert before == ["tests/a.py::test_1[x y]", "tests/a.py::test_2"]
    assert ids.missing(before, ["tests/a.py::test_2", "tests/a.py::test_3"]) == ["tests/a.py::test_1[x y]"]
    assert not ids.missing(before, before)
