"""The QEMUs that tests move guests between: the machine's own, and those that ``make qemus`` unpacks beside it."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from typing import Final

import pytest

from tests import ROOT

UNPACKED: Final = ROOT / "build" / "qemus"
VERSIONS: Final = ("7.2", "10.0", "11.1")
"""Those between which guests are moved; on Debian 12 the first is the machine's own, on Debian 13 the second."""


@cache
def known() -> dict[str, str]:
    """Return the QEMUs that are there: major and minor version to the program."""
    found = {}
    own = shutil.which("qemu-system-x86_64")
    if own is not None:
        said = subprocess.run([own, "--version"], capture_output=True, text=True, check=True).stdout
        found[".".join(said.split("version ")[1].split(".")[:2])] = own
    for version in VERSIONS:
        if (UNPACKED / version / "complete").exists():
            found.setdefault(version, str(UNPACKED / version / "qemu-system-x86_64"))
    return found


def why_missing(version: str) -> str:
    """Return why a QEMU is not there."""
    told = UNPACKED / f"{version}.missing"
    return told.read_text().strip() if told.exists() else f"no QEMU {version}: make qemus"


def program(version: str) -> str:
    """Return the QEMU of a version; the test is skipped where there is none."""
    if version not in known():
        pytest.skip(why_missing(version))
    return known()[version]


def every_pair(versions: list[str]) -> list[str]:
    """Return a round trip through versions in which each ordered pair, also of a version with itself, comes exactly once.

    It is the shortest: one guest that takes it has been moved between all of them. It ends where it began.
    """
    left = {(a, b) for a in versions for b in versions}
    trip, here = [versions[0]], versions[0]
    while left:
        # Itself first, then the last of those that are left: the first one, where the trip began, must stay open longest.
        there = next(b for b in [here, *reversed(versions)] if (here, b) in left)
        left.remove((here, there))
        trip.append(there)
        here = there
    return trip
