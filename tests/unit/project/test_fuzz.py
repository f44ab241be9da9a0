"""The fuzz targets, a few inputs each; one that breaks is found, and its input kept. `make fuzz` gives them a million."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from qmp_migrate.bus.messages.codec import decode
from qmp_migrate.bus.messages.topics import Topics
from qmp_migrate.errors import BusError
from tests.fuzz import targets
from tests.fuzz.mutate import mutate
from tests.fuzz.one import Found, Trial, by_mutation
from tests.fuzz.targets import TARGETS, Target

INPUTS = {"command-line": 150, "answers": 200, "monitor-lines": 200}
OTHERS = 1500


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_but_refusals_comes_of_wrong_input(name: str, tmp_path: Path) -> None:
    trial = Trial(name, tmp_path)
    by_mutation(trial, INPUTS.get(name, OTHERS), seed=20261126)
    assert trial.inputs == INPUTS.get(name, OTHERS)


@pytest.mark.parametrize("name", TARGETS)
def test_right_input_is_taken(name: str) -> None:
    target = TARGETS[name]
    for seed in target.seeds:
        if name not in {"answers", "monitor-lines"}:  # what is asked there needs more than one answer
            target.run(seed)


def test_a_target_that_breaks_is_found_and_its_input_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fragile(data: bytes) -> None:
        if b"\xff" in data:
            raise KeyError("not foreseen")

    monkeypatch.setitem(targets.TARGETS, "fragile", Target(fragile, (ValueError,), (b"some text",)))
    with pytest.raises(Found, match="not foreseen"):
        by_mutation(Trial("fragile", tmp_path), 20_000, seed=1)
    [kept] = tmp_path.iterdir()
    with pytest.raises(Found):
        Trial("fragile", tmp_path)(kept.read_bytes())


def test_the_same_seed_makes_the_same_inputs() -> None:
    seeds = TARGETS["bus-payload"].seeds
    one, two = random.Random(5), random.Random(5)
    assert [mutate(seeds[0], one, seeds) for _ in range(300)] == [mutate(seeds[0], two, seeds) for _ in range(300)]


def test_make_fuzz_reports_what_it_did(tmp_path: Path) -> None:
    argv = [
        sys.executable,
        "-m",
        "tests.fuzz",
        "--inputs",
        "200",
        "--engine",
        "mutate",
        "--seed",
        "1",
        "--out",
        str(tmp_path),
    ]
    ran = subprocess.run([*argv, "--target", "token", "--target", "proc"], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "nothing was raised that may not be" in ran.stdout


def test_a_refusal_keeps_nothing_of_what_was_refused() -> None:
    """Found by fuzzing: pydantic's error, kept as the context, made each refused message a cycle that is never freed."""
    topics = Topics()
    with pytest.raises(BusError) as caught:
        decode(topics, topics.host_status("a"), b'{"schema": "host.status/1.0", "host": 7}')
    assert caught.value.__context__ is None
    assert caught.value.__cause__ is None
