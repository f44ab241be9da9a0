"""Which commands `make check` and `make test` consist of, and in which order they may run."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Final

from tests import ROOT as ROOT
from tests.runs.steps import NOTHING_COLLECTED, Step

BIN: Final = ".venv/bin"
PYTHON: Final = f"{BIN}/python"
MAKE: Final = (os.environ.get("MAKE", "make"), "--no-print-directory")

SETUP: Final = (
    Step("venv", (*MAKE, "venv")),
    Step("images", (*MAKE, "images")),
    Step("other QEMUs", ("contrib/qemus.sh", "--try")),
    Step("host machines", ("vm-images/host/build.sh", "--try"), needs=("venv", "images")),
)
LINT: Final = (
    Step("lint", (f"{BIN}/ruff", "check", ".")),
    Step("format", (f"{BIN}/ruff", "format", "--check", ".")),
    Step("imports", (f"{BIN}/lint-imports", "--no-cache")),
    Step("types", (f"{BIN}/mypy",)),
)


WORKERS: Final = {"unit": "2", "component": "4", "system": "3"}
"""On two cores. Component tests wait most of their time."""


def workers(name: str) -> str:
    """Return how many tests of a directory run side by side: what `WORKERS` says, else what suits them."""
    return os.environ.get("WORKERS") or WORKERS[name]


def recorded(step: Step, directory: Path, *, snapshot: Path | None = None) -> Step:
    """Return a step of tests that writes its record into a directory, and leaves out what a snapshot of it holds."""
    if not step.tests:
        return step
    words: tuple[str, ...] = ("-p", "tests.runs.record", "--record", str(record_of(step.name, directory)))
    if snapshot:
        words += ("--recorded", str(snapshot))
    return replace(step, argv=(*step.argv, *words))


def record_of(name: str, directory: Path) -> Path:
    """Return the path of the record of a step of tests."""
    return directory / f"{name.replace(', ', '-').replace(': ', '-').replace(' ', '-')}.jsonl"


def pytest(*words: str, workers: str = "0") -> tuple[str, ...]:
    """Return the command that runs these tests, so many side by side; 0: one after the other."""
    spread = () if workers == "0" else ("-n", workers, "--dist", "worksteal")
    return (PYTHON, "-m", "pytest", *spread, *words)


def stage(name: str) -> tuple[Step, ...]:
    """Return the steps of a directory of tests: those that run side by side, then those that measure time limits."""
    return (
        _tests(name, pytest(f"tests/{name}", "-m", "not full and not alone", workers=workers(name))),
        _tests(f"{name}, alone", pytest(f"tests/{name}", "-m", "alone and not full")),
    )


def full_stages() -> tuple[Step, ...]:
    """Return the steps that `make test-full` has besides those of `make test`."""
    directories = ("unit", "component", "system")
    return (
        *(
            _tests(f"{name}, full", pytest(f"tests/{name}", "-m", "full and not alone", workers=workers(name)))
            for name in directories
        ),
        _tests("full, alone", pytest("tests", "-m", "full and alone")),
    )


def _tests(name: str, argv: tuple[str, ...]) -> Step:
    # It is no failure when no test is marked for a stage.
    return Step(name, argv, live=True, tests=True, fine=(0, NOTHING_COLLECTED))


def check(*, after_setup: bool) -> list[Step]:
    """Return the steps of `make check`: lint and types beside the unit tests, then those that must be alone."""
    setup = [step.name for step in SETUP] if after_setup else []
    needs = ("venv",) if after_setup else ()
    unit, alone = stage("unit")
    beside = [replace(step, needs=needs) for step in LINT]
    return [
        *beside,
        replace(unit, needs=needs),
        replace(alone, needs=needs, follows=(*setup, unit.name, *(step.name for step in beside))),
    ]


def test() -> list[Step]:
    """Return the steps of `make test`: set-up, `check`, then the component and the system tests where that has passed."""
    steps = [*SETUP, *check(after_setup=True)]
    needs = tuple(step.name for step in steps)
    for step in (*stage("component"), *stage("system")):
        before = tuple(other.name for other in steps if other.live)
        steps.append(replace(step, needs=needs, follows=before))
    return steps
