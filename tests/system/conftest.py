"""One lab for all system tests of a run."""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.support.real import kvm
from tests.support.real.lab import Guest, Lab, rig

LOG_BYTES = 3000


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    # Not pytest's tmp_path: sockets have short names.
    with tempfile.TemporaryDirectory(prefix="qm-") as base, rig(Path(base) / "rig") as up:
        yield up


@pytest.fixture
def guest(lab: Lab) -> Iterator[Guest]:
    with lab.guest() as started:
        yield started


@pytest.fixture(autouse=True)
def nothing_runs_on(request: pytest.FixtureRequest) -> Iterator[None]:
    """End the commands that a test has left."""
    lab = request.getfixturevalue("lab") if "lab" in request.fixturenames else None
    yield
    if isinstance(lab, Lab):
        lab.commands.end()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Have tests fail that need KVM and were skipped, where it is required; show what the lab's programs said last."""
    report = kvm.judged(item, (yield))
    lab = getattr(item, "funcargs", {}).get("lab")
    if report.failed and isinstance(lab, Lab):
        for path in sorted((lab.directory / "parts").glob("*/log")):
            said = path.read_bytes()[-LOG_BYTES:].decode("utf-8", "replace")
            report.sections.append((f"end of the log of {path.parent.name}", said))
    return report
