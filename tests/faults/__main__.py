"""``python -m tests.faults [CASE…]``: run cases, print a table, write ``build/faults.json`` and ``build/faults.html``."""

from __future__ import annotations

import argparse
import fnmatch
import multiprocessing
import os
import queue
import signal
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests import ROOT
from tests.faults.cases.catalogue import CASES, QUICK
from tests.faults.cases.trial import Case, Result
from tests.faults.execution import report, worker


def main() -> int:
    """Run it; returns the exit code: 1 where a case failed."""
    options = _options()
    os.chdir(ROOT)
    cases = _chosen(options)
    if options.list:
        for case in cases:
            codes = " ".join(map(str, sorted(case.codes))) or "killed"
            print(f"{case.name:<45} {'|'.join(sorted(case.owners)):<20} exit {codes}")
        print(f"{len(cases)} cases", file=sys.stderr)
        return 0
    runs = [(case, number) for number in range(options.repeats) for case in cases]
    results, complete = _run_all(runs, options)
    report.write(options.output, results, complete=complete)
    report.show(results)
    return 0 if complete and all(result.passed for result in results) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description="Bring faults at each phase.")
    parser.add_argument("cases", nargs="*", metavar="CASE", help="PHASE/FAULT; * and ? match; default: all")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="runs of each case (default: 3)")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="rigs at a time (default: 2)")
    parser.add_argument("--seed", type=int, help="the seed of a run to repeat; default: by case and number")
    parser.add_argument("--quick", action="store_true", help="only a dozen that touch every phase")
    parser.add_argument("--list", action="store_true", help="list the cases")
    parser.add_argument(
        "--bug", default="", help="seed a bug into the controller (see tests/faults/seeded_bugs/bugs.py)"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "build/faults", metavar="DIR")
    return parser.parse_args()


def _chosen(options: argparse.Namespace) -> list[Case]:
    patterns: Sequence[str] = options.cases or (QUICK if options.quick else ("*",))
    chosen = list(dict.fromkeys(c for p in patterns for c in CASES.values() if fnmatch.fnmatch(c.name, p)))
    if not chosen:
        sys.exit(f"no case is called {' or '.join(patterns)}; see --list")
    return chosen


def seed_of(case: Case, number: int) -> int:
    """Return the seed of a run: the same one every time."""
    return zlib.crc32(f"{case.name} {number}".encode()) & 0xFFFF


def _run_all(runs: list[tuple[Case, int]], options: argparse.Namespace) -> tuple[list[Result], bool]:
    """Run them on several rigs at a time, each in a process of its own. Returns what was got, and whether it is all."""
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    context = multiprocessing.get_context("spawn")
    todo: Any = context.SimpleQueue()
    done: Any = context.Queue()
    for case, number in runs:
        seed = options.seed if options.seed is not None else seed_of(case, number)
        todo.put((case.name, seed, options.output / case.name.replace("/", ".") / str(number), options.bug))
    for _ in range(options.jobs):
        todo.put(None)
    jobs = [context.Process(target=worker.work, args=(job, todo, done)) for job in range(options.jobs)]
    for job in jobs:
        job.start()
    results: list[Result] = []
    while any(job.is_alive() for job in jobs) or not done.empty():
        if stopped and not todo.empty():
            while not todo.empty():
                todo.get()
            for _ in jobs:
                todo.put(None)
        try:
            results.append(done.get(timeout=0.5))
        except queue.Empty:
            continue
        report.tell(results[-1], len(results), len(runs))
        if len(results) % 20 == 0:
            report.write(options.output, results, complete=False)
    for job in jobs:
        job.join()
    return results, len(results) == len(runs) and all(job.exitcode == 0 for job in jobs)


if __name__ == "__main__":
    sys.exit(main())
