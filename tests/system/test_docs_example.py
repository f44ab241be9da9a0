"""The examples of the documentation run, as they stand, against the lab."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests import ROOT
from tests.support.real.lab import Guest, Lab, wait_for

EXAMPLES = ROOT / "docs/examples"


@pytest.mark.timeout(300)
def test_the_test_that_moves_a_guest_passes(lab: Lab, tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(EXAMPLES / "test_move_guest.py")],
        cwd=tmp_path,  # as a user has it: none of this project's pytest configuration
        env=os.environ
        | {"QMP_MIGRATE_CONFIG": str(lab.settings), "GUEST_SPEC": str(lab.spec("example", append="qm.rate=4 qm.ws=8"))},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "3 passed" in ran.stdout


def test_the_subscriber_tells_where_a_guest_goes(lab: Lab, guest: Guest, tmp_path: Path) -> None:
    host, _, port = tomllib.loads(lab.settings.read_text())["mqtt"]["url"].removeprefix("mqtt://").partition(":")
    told = tmp_path / "told"
    with told.open("w") as out:
        subscriber = subprocess.Popen([sys.executable, EXAMPLES / "where_guests_are.py", host, port], stdout=out)
    try:
        wait_for(lambda: f"{guest.name}: running on a (idle)" in told.read_text(), 20, told.read_text)
        lab.cli("migrate", guest.name, "--to", "b")
        for line in ("running on a (source)", "gone from a", "running on b (idle)"):
            wait_for(lambda line=line: f"{guest.name}: {line}\n" in told.read_text(), 20, told.read_text)
    finally:
        subscriber.terminate()
        subscriber.wait(10)
