"""``python -m tests.runs check|test|steady|full|ids``: what `make` calls; see `make help`."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence

from tests.runs import full, ids, plan, results, steady
from tests.runs.steps import Interrupted, Run, Step, duration


def main(argv: Sequence[str]) -> int:
    """Run what is named; return the exit status."""
    match list(argv):
        case ["check"]:
            return run("check", plan.check(after_setup=False))
        case ["test"]:
            return run("test", plan.test())
        case ["steady"]:
            return steady.main()
        case ["full"]:
            return full.main()
        case ["ids"]:
            return ids.main()
    print(__doc__, file=sys.stderr)
    return 2


def run(name: str, steps: Sequence[Step]) -> int:
    """Run steps; say at the end what failed first, and the totals."""
    directory = plan.ROOT / "build" / name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    began = time.monotonic()
    going = Run([plan.recorded(step, directory) for step in steps])
    try:
        going()
    except Interrupted:
        print(f"\nmake {name}: interrupted after {duration(time.monotonic() - began)}", flush=True)
        return 130
    print()
    for step_name in going.failed:
        print(f"failed: {step_name} (exit status {going.results[step_name].status})")
        for result in results.read(plan.record_of(step_name, directory)):
            if result.outcome == "failed":
                print(f"  {result.id}\n    {results.reason_of(result.text)[:200]}")
    times = ", ".join(f"{step} {duration(how.seconds)}" for step, how in going.results.items() if how.seconds)
    print(f"stages: {times}")
    if going.failed:
        print(f"first failure: {going.failed[0]}")
    total = results.counts(result for step in steps for result in results.read(plan.record_of(step.name, directory)))
    verdict = "passed" if going.passed else "FAILED"
    print(f"make {name}: {verdict} in {duration(time.monotonic() - began)}: {total}", flush=True)
    return 0 if going.passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
