"""One lab for all system tests of a run."""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.support import kvm
from tests.support.lab import Guest, Lab, rig


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    # Not pytest's tmp_path: sockets have short names.
    with tempfile.TemporaryDirectory(prefix="qm-") as base, rig(Path(base) / "rig") as up:
        yield up


@pytest.fixture
def guest(lab: Lab) -> Iterator[Guest]:
    with lab.guest() as started:
        yield started


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Have tests fail that need KVM and were skipped, where it is required."""
    return kvm.judged(item, (yield))
