"""Fuzz every target, side by side: `python -m tests.fuzz --inputs 1000000`. Exit 1 where one was broken."""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from tests.fuzz.targets import TARGETS, WEIGHTS

GROWTH_LIMIT: Final = 64 << 20
"""A target that has grown by more remembers what it should not."""


def run(name: str, inputs: int, options: argparse.Namespace) -> dict[str, Any]:
    """Fuzz one target in a process of its own."""
    argv = [sys.executable, "-m", "tests.fuzz.one", name, "--inputs", str(inputs), "--seed", str(options.seed)]
    argv += ["--out", str(options.out), "--engine", options.engine]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        return {
            "target": name,
            "inputs": 0,
            "found": f"it ended with {done.returncode}\n{done.stdout}\n{done.stderr[-4000:]}",
        }
    report: dict[str, Any] = json.loads(lines[-1])
    if not report["found"] and report["grown_bytes"] > GROWTH_LIMIT:
        report["found"] = f"it has grown by {report['grown_bytes'] >> 20} MiB"
    return report


def main() -> int:
    """Fuzz them all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000, help="In all.")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="The same inputs again (without atheris).")
    parser.add_argument("--engine", choices=("auto", "atheris", "mutate"), default="auto")
    parser.add_argument("--out", type=Path, default=Path("build/fuzz"))
    parser.add_argument("--target", action="append", choices=sorted(TARGETS))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    names = options.target or list(TARGETS)
    weights = sum(WEIGHTS.get(name, 1) for name in names)
    began = time.monotonic()
    sys.stdout.write(
        f"seed {options.seed}\n{'target':14} {'engine':8} {'inputs':>9} {'refused':>9} {'per s':>8} {'grown':>9}\n"
    )
    reports = []
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        waiting = [
            pool.submit(run, name, -(-options.inputs * WEIGHTS.get(name, 1) // weights), options)
            for name in sorted(names, key=lambda name: -WEIGHTS.get(name, 1))
        ]
        for future in concurrent.futures.as_completed(waiting):
            report = future.result()
            reports.append(report)
            if report["found"]:
                sys.stdout.write(f"{report['target']}: BROKEN after {report['inputs']} inputs\n{report['found']}\n")
            else:
                pace = report["inputs"] / max(report["seconds"], 0.01)
                sys.stdout.write(
                    f"{report['target']:14} {report['engine']:8} {report['inputs']:9,} {report['refused']:9,} "
                    f"{pace:8,.0f} {report['grown_bytes'] / 1e6:6.1f} MB\n"
                )
            sys.stdout.flush()
    broken = [report["target"] for report in reports if report["found"]]
    total = sum(report["inputs"] for report in reports)
    how = f"broken: {', '.join(sorted(broken))}" if broken else "nothing was raised that may not be"
    sys.stdout.write(f"{total:,} inputs in {time.monotonic() - began:.0f} s: {how}\n")
    return 1 if broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
