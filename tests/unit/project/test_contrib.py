"""The scripts that set up a machine: which QEMUs are fetched, what is refused before anything is done."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import ROOT

CONTRIB = ROOT / "contrib"


def run(*argv: str | Path, path: Path) -> subprocess.CompletedProcess[str]:
    env = {"PATH": f"{path}:{os.environ['PATH']}", "HOME": str(path)}
    return subprocess.run(argv, capture_output=True, text=True, env=env, check=False)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout in which all QEMUs have been fetched."""
    shutil.copytree(CONTRIB, tmp_path / "contrib")
    for version in ("7.2", "10.0", "11.1"):
        (tmp_path / "build/qemus" / version).mkdir(parents=True)
        (tmp_path / "build/qemus" / version / "complete").write_text(f"1 {version}.9\n")
    return tmp_path


@pytest.mark.parametrize(
    ("own", "fetched"),
    [("7.2.22", ["10.0", "11.1"]), ("10.0.2", ["7.2", "11.1"]), ("8.2.0", ["7.2", "10.0", "11.1"])],
)
def test_the_qemus_that_are_not_the_machines_own_are_fetched(checkout: Path, own: str, fetched: list[str]) -> None:
    program = checkout / "bin/qemu-system-x86_64"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho 'QEMU emulator version {own} (Debian)'\n")
    program.chmod(0o755)
    done = run(checkout / "contrib/qemus.sh", path=program.parent)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == [f"build/qemus/{version}" for version in fetched]


def test_a_qemu_that_nobody_offers_is_refused(checkout: Path) -> None:
    done = run(checkout / "contrib/qemus.sh", "9.9", path=checkout)
    assert done.returncode == 1
    assert "9.9" in done.stderr


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        ((), 2, "contrib/debian.sh make 13"),
        (("make",), 2, "contrib/debian.sh make 13"),
        (("make", "11"), 1, "use 12 or 13"),
        (("run", "13"), 2, "contrib/debian.sh run 13 COMMAND"),
        (("run", "13", "true"), 1, "contrib/debian.sh make 13"),
    ],
)
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_what_the_clean_debian_is_asked_for_is_checked_first(
    checkout: Path, words: tuple[str, ...], status: int, says: str
) -> None:
    done = run(checkout / "contrib/debian.sh", *words, path=checkout)
    assert done.returncode == status, done
    assert says in done.stderr
    assert not (checkout / "build/debian-13").exists()


def test_a_machine_without_apt_has_no_mirror(tmp_path: Path) -> None:
    for name in ("sh", "awk"):
        program = shutil.which(name)
        assert program
        (tmp_path / name).symlink_to(program)
    argv = [str(tmp_path / "sh"), str(CONTRIB / "mirror.sh")]
    done = subprocess.run(argv, capture_output=True, text=True, env={"PATH": str(tmp_path)}, check=False)
    assert done.returncode == 1
    assert done.stderr == "apt-get is not there; use a Debian machine\n"
