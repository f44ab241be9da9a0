"""Commands side by side: the order, what is shown, and the exit status."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import ROOT
from tests.runs.steps import Interrupted, Run, Step, duration


def sh(name: str, script: str, **keys: object) -> Step:
    return Step(name, ("sh", "-c", script), **keys)  # type: ignore[arg-type]


def test_output_is_whole_and_not_mixed(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = "echo {0} one; touch {0}; while [ ! -e {1} ]; do sleep 0.01; done; echo {0} two"
    monkeypatch.chdir(tmp_path)
    run = Run([sh("a", both.format("a", "b")), sh("b", both.format("b", "a"))])
    run()
    assert run.passed
    shown = capfd.readouterr().out
    assert "a one\na two\n== a: passed" in shown
    assert "b one\nb two\n== b: passed" in shown


def test_what_ends_beside_a_live_step_is_shown_after_it(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    live = "echo begins; while [ ! -e ended ]; do sleep 0.01; done; sleep 0.2; echo ends"
    Run([sh("live", live, live=True), sh("beside", "echo beside; touch ended")])()
    shown = capfd.readouterr().out
    assert "begins\nends\n== live: passed" in shown
    assert shown.index("ends\n") < shown.index("beside\n")


def test_a_step_that_needs_what_failed_is_not_run(capfd: pytest.CaptureFixture[str]) -> None:
    run = Run(
        [
            sh("lint", "exit 3"),
            sh("unit", "true", follows=("lint",)),
            sh("component", "echo never", needs=("lint", "unit")),
            sh("system", "echo never", needs=("component",)),
        ]
    )
    run()
    assert not run.passed
    assert run.failed == ["lint"]
    assert run.results["lint"].status == 3
    assert {name: how.outcome for name, how in run.results.items()} == {
        "lint": "failed",
        "unit": "passed",
        "component": "not run",
        "system": "not run",
    }
    shown = capfd.readouterr().out
    assert "lint: failed, exit status 3" in shown
    assert "not run: lint has not passed" in shown
    assert "never" not in shown


def test_an_exit_status_that_is_fine_is_no_failure() -> None:
    run = Run([sh("alone", "exit 5", fine=(0, 5)), sh("after", "true", needs=("alone",))])
    run()
    assert run.passed


def test_the_first_failure_is_the_one_that_came_first() -> None:
    run = Run([sh("slow", "sleep 5; exit 1"), sh("quick", "exit 1")])
    run()
    assert run.failed == ["quick", "slow"]


def test_a_log_is_shown_at_its_end_when_it_failed(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "x.log"
    Run([sh("x", "seq 1 1000; exit 1", log=log)])()
    shown = capfd.readouterr().out
    assert str(log) in shown
    assert "\n1000\n== x: failed" in shown
    assert "\n900\n" not in shown
    assert log.read_text().startswith("1\n2\n")


PROGRAM = """
from tests.runs.steps import Interrupted, Run, Step
try:
    script = "trap 'echo ended in order; exit 2' INT; echo begun; while :; do sleep 0.05; done"
    Run([Step("x", ("sh", "-c", script), live=True)])()
except Interrupted:
    print("interrupted")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_commands_in_order(number: signal.Signals) -> None:
    argv = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout
        while process.stdout.readline() != "begun\n":
            assert process.poll() is None
        process.send_signal(number)
        rest = process.stdout.read()
    assert process.returncode == 0
    assert "ended in order\n== x: interrupted" in rest
    assert rest.endswith("interrupted\n")


def test_no_command_outlives_a_run_that_was_killed() -> None:
    argv = [sys.executable, "-c", PROGRAM.replace("echo begun", "echo $$")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout
        while not (pid := process.stdout.readline().strip()).isdigit():
            assert process.poll() is None
        process.kill()
        process.stdout.read()  # until the command, which has it too, has ended
    deadline = time.monotonic() + 20
    while Path("/proc", pid).exists() and Path("/proc", pid, "stat").read_text().split()[2] != "Z":
        assert time.monotonic() < deadline, f"{pid} still runs"
        time.sleep(0.02)


def test_steps_that_wait_for_each_other_are_noticed() -> None:
    with pytest.raises(AssertionError, match="wait for each other"):
        Run([sh("a", "true", follows=("b",)), sh("b", "true", follows=("a",))])()
    with pytest.raises(AssertionError, match="do not exist"):
        Run([sh("a", "true", needs=("nothing",))])


def test_an_interrupted_run_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(step: Step, how: object) -> object:
        if step.name == "first":
            os.kill(os.getpid(), signal.SIGINT)
        return how

    steps = [sh("first", "true"), sh("second", "sleep 100", follows=("first",))]
    run = Run(steps, ended=ended)  # type: ignore[arg-type]
    with pytest.raises(Interrupted):
        run()
    assert "second" not in run.results or run.results["second"].outcome == "interrupted"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.6, "1 min 0 s"), (125, "2 min 5 s"), (3780, "1 h 3 min")],
)
def test_durations_are_readable(seconds: float, text: str) -> None:
    assert duration(seconds) == text
