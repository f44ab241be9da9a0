"""`make test-full`: all of `make test`, what is too slow for it, and a clean Debian 13; goes on where it stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tests.runs import plan, results, shards
from tests.runs.steps import Interrupted, Run, Step, duration

DEBIAN: Final = "13"

# What is otherwise run by hand.
PROGRAMS: Final = (
    Step("seeded bugs", (plan.PYTHON, "-m", "tests.faults.selftest")),
    Step("lost acknowledgements", (plan.PYTHON, "-m", "tests.faults.lost_ack", "--runs", "10")),
)


def steps(at: str = "") -> list[Step]:
    """Return the shards for a commit; the set-up is none: it is done in each go."""
    of_test = [*plan.LINT, *plan.stage("unit"), *plan.stage("component"), *plan.stage("system")]
    debian = [
        Step(f"Debian {DEBIAN}: root", ("contrib/debian.sh", "make", DEBIAN), env={"COMMIT": at}),
        Step(f"Debian {DEBIAN}: make demo", ("contrib/debian.sh", "run", DEBIAN, "make", "demo")),
        Step(f"Debian {DEBIAN}: make test", ("contrib/debian.sh", "run", DEBIAN, "make", "test")),
    ]
    light = [step.name for step in plan.LINT]
    return shards.in_order([*of_test, *plan.full_stages(), *PROGRAMS, *debian], beside=light)


def is_root_of(place: Path, at: str) -> bool:
    """Say whether the Debian that is there holds this commit: another run may have replaced it."""
    told = place / "commit"
    return told.exists() and told.read_text().strip() == at


def main() -> int:
    """Run it; return the exit status: 0 all passed, 1 failures, 2 it cannot be run so, 130 interrupted."""
    try:
        at = shards.commit()
        state = shards.State.open(shards.BUILD / "test-full" / at)
    except shards.Busy as error:
        return shards.fail(f"make test-full: {error}")
    print(f"make test-full at {at}; state: {state.directory}", flush=True)
    every = steps(at)
    if not is_root_of(shards.BUILD / f"debian-{DEBIAN}", at):
        state.ended.pop(f"Debian {DEBIAN}: root", None)
    interrupted = False
    try:
        setup = Run(list(plan.SETUP))
        setup()
        if not setup.passed:
            return shards.fail(f"make test-full: the set-up failed: {setup.failed[0]}")
        shards.go(every, state)
    except Interrupted:
        interrupted = True
    return closing(state, every, at, interrupted=interrupted)


def closing(state: shards.State, every: list[Step], at: str, *, interrupted: bool) -> int:
    """Print each shard's time, the failures and the last line; return the exit status."""
    print()
    for step in every:
        how = state.ended.get(step.name, shards.UNSTARTED)
        counted = f": {results.counts(state.results_of(step))}" if step.tests else ""
        print(f"{step.name:<28} {how.outcome:<8} {duration(how.seconds):>13}{counted}")
    found = state.failures(every, {})
    print(results.table(found))
    ended = sum(step.name in state.ended for step in every)
    total = results.counts(result for step in every for result in state.results_of(step))
    verdict = "interrupted, it goes on when called again" if interrupted else "FAILED" if found else "passed"
    print(
        f"make test-full: {verdict}, commit {at}: {ended} of {len(every)} shards in {duration(state.seconds)}: {total}",
        flush=True,
    )
    return 130 if interrupted else 1 if found else 0
