"""``python -m tests.faults.selftest``: seeds ten bugs, one after the other, and shows that each one is caught.

What catches a bug is first shown to pass without it: a test that always fails catches nothing.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.faults.cases.catalogue import CASES
from tests.faults.execution.running import run
from tests.faults.lab.stand import Stand, stand
from tests.faults.seeded_bugs.bugs import BUGS, Bug

TEST_S = 240


def main() -> int:
    """Run it; returns the exit code: 1 where a bug survives, or a test fails without one."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.selftest", description=__doc__)
    parser.add_argument("bugs", nargs="*", metavar="BUG", help=f"default: all of {', '.join(BUGS)}")
    wanted = parser.parse_args().bugs or list(BUGS)
    survived = []
    clean: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="qf-self-") as logs, stand() as place:
        for name in wanted:
            bug = BUGS[name]
            by = bug.case or bug.test
            if by not in clean:
                clean[by] = _try(place, bug, Path(logs) / f"clean-{name}", seeded=False)
            if clean[by]:
                print(f"{name:<24} NOT SHOWN: {by} fails without it: {clean[by]}", flush=True)
                survived.append(name)
                continue
            caught = _try(place, bug, Path(logs) / name, seeded=True)
            print(f"{name:<24} {f'caught by {by}: {caught}' if caught else f'SURVIVED {by}'}", flush=True)
            survived += [] if caught else [name]
    print(f"{len(wanted) - len(survived)} of {len(wanted)} caught")
    return 1 if survived else 0


def _try(place: Stand, bug: Bug, logs: Path, *, seeded: bool) -> str:
    """Run what is to catch a bug; return the first thing it found, ``""`` where all is well."""
    if bug.case:
        result = run(place, CASES[bug.case], 7, logs, bug=bug.name if seeded else "")
        return next((" ".join(problem.split())[:160] for problem in result.problems), "")
    words = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", bug.test]
    if seeded:
        words += ["-p", "tests.faults.seeded_bugs.plugin"]
    env = os.environ | {"QMP_MIGRATE_SEEDED_BUG": bug.name}
    done = subprocess.run(words, capture_output=True, text=True, timeout=TEST_S, env=env)
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return failed[0][:160] if failed else "" if done.returncode == 0 else done.stdout[-160:]


if __name__ == "__main__":
    sys.exit(main())
