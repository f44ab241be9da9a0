"""`make test-ids BEFORE=FILE`: no test of a recorded list is gone.

A list is made by the same command without `BEFORE`, on another commit. All that is collected is run by `make test` or
`make test-full`: their stages divide the tests by marker, and a unit test shows that they leave none out.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from tests.runs import plan


def missing(before: Iterable[str], now: Iterable[str]) -> list[str]:
    """Return the ids that were there before and are not now, in order."""
    present = set(now)
    return [test for test in before if test not in present]


def ids(text: str) -> list[str]:
    """Return the ids in what `pytest --collect-only -q` prints: paths from the checkout, with `::`."""
    return [line for line in text.splitlines() if line.startswith("tests/") and "::" in line]


def main() -> int:
    """Print what is missing, or without `BEFORE` the list of now; return the exit status: 1 something is missing."""
    argv = [plan.PYTHON, "-m", "pytest", "--collect-only", "-q", "tests"]
    done = subprocess.run(argv, cwd=plan.ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stdout[-2000:], done.stderr[-2000:], file=sys.stderr)
        return 2
    now = ids(done.stdout)
    name = os.environ.get("BEFORE", "")
    if not name:
        print("\n".join(now))
        return 0
    if not Path(name).is_file():
        print(f"make test-ids: BEFORE={name} is not a file: make one with `make -s test-ids > FILE`", file=sys.stderr)
        return 2
    before = ids(Path(name).read_text())
    gone = missing(before, now)
    for test in gone:
        print(f"missing: {test}")
    print(f"make test-ids: {len(before)} before, {len(now)} now, {len(gone)} missing")
    return 1 if gone or not before else 0
