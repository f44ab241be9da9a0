"""A dozen cases of the fault suite that touch every phase; all of them: ``make faults``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.cases.catalogue import CASES, QUICK
from tests.faults.execution.running import run
from tests.faults.lab.stand import Stand, stand


@pytest.fixture(scope="module")
def place() -> Iterator[Stand]:
    with stand(5) as up:
        yield up


@pytest.mark.parametrize("name", QUICK)
def test_fault(name: str, place: Stand, tmp_path: Path) -> None:
    result = run(place, CASES[name], seed=1, logs=tmp_path)
    assert result.passed, (result.problems, result.said, sorted(tmp_path.iterdir()))


def test_every_case_has_a_name_of_its_own_and_names_an_end() -> None:
    assert len(CASES) >= 150
    for name, case in CASES.items():
        assert name == case.name
        assert case.owners
        assert case.codes or case.fault.lasting, name
