"""Fuzz one target in this process: `python -m tests.fuzz.one NAME --inputs N`. One JSON line at the end.

With atheris (where it is installed) the inputs are led by the coverage of our code; without it they come from `mutate` alone.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import json
import os
import random
import resource
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Final

SLOW_S: Final = 5.0
"""An input that keeps a target busy for so long is a fault, too."""
TOLD_S: Final = 2.0


class Found(Exception):
    """A target has raised what it may not; the input is kept."""


class Trial:
    """Runs a target, counts, and keeps what breaks it.

    Args:
        name: Of the target.
        out: Where inputs that break it are kept.
    """

    def __init__(self, name: str, out: Path) -> None:
        from tests.fuzz.targets import TARGETS

        self.name, self.target, self._out = name, TARGETS[name], out
        self.inputs = self.refused = 0
        self.began = self._told = time.monotonic()
        self.rss_then = 0

    def __call__(self, data: bytes) -> None:
        """Give the target one input.

        Raises:
            Found: It did not like it.
        """
        self.inputs += 1
        began = time.monotonic()
        try:
            self.target.run(data)
        except self.target.may_raise:
            self.refused += 1
        except Exception as error:
            raise Found(self._keep(data, "".join(traceback.format_exception(error)))) from None
        now = time.monotonic()
        if now - began > SLOW_S:
            raise Found(self._keep(data, f"it took {now - began:.1f} s\n"))
        if self.inputs == 5000:
            self.rss_then = rss_bytes()  # by now everything is imported and every cache is warm
        if now - self._told > TOLD_S:
            self._told = now
            sys.stderr.write(f"{self.name}: {self.inputs}\n")
            sys.stderr.flush()

    def _keep(self, data: bytes, why: str) -> str:
        self._out.mkdir(parents=True, exist_ok=True)
        path = self._out / f"{self.name}-{abs(hash(data)) % 10**8:08d}"
        path.write_bytes(data)
        return f"{why}\ninput kept in {path}; again: python -m tests.fuzz.one {self.name} --again {path}"

    def report(self, engine: str, found: str = "") -> dict[str, Any]:
        """Return what is told at the end."""
        return {
            "target": self.name,
            "engine": engine,
            "inputs": self.inputs,
            "refused": self.refused,
            "seconds": round(time.monotonic() - self.began, 2),
            "rss_bytes": rss_bytes(),
            "grown_bytes": max(0, rss_bytes() - self.rss_then) if self.rss_then else 0,
            "found": found,
        }


def rss_bytes() -> int:
    """Return the memory of this process that is in use."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def by_mutation(trial: Trial, inputs: int, seed: int) -> None:
    """Run inputs that `mutate` makes: the same ones for the same seed.

    Raises:
        Found: One broke the target.
    """
    from tests.fuzz.mutate import mutate

    rng = random.Random(seed)
    seeds = trial.target.seeds
    for data in seeds:
        trial(data)
    recent = list(seeds)
    for _ in range(inputs - len(seeds)):
        data = mutate(rng.choice(recent), rng, seeds)
        trial(data)
        if rng.random() < 0.05:  # go on from what is wrong already
            recent[len(seeds) :] = [data, *recent[len(seeds) : len(seeds) + 30]]


def by_coverage(trial: Trial, inputs: int, seed: int, corpus: Path) -> None:
    """Run inputs that atheris chooses. Never returns: libFuzzer ends the process."""
    import atheris  # type: ignore[import-not-found]

    from tests.fuzz.mutate import mutate

    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(trial.target.seeds):
        (corpus / f"seed{number}").write_bytes(data)

    def one(data: bytes) -> None:
        try:
            trial(data)
        except Found as found:
            sys.stdout.write(json.dumps(trial.report("atheris", str(found))) + "\n")
            sys.stdout.flush()
            atexit._run_exitfuncs()
            os._exit(1)
        if trial.inputs >= inputs:
            sys.stdout.write(json.dumps(trial.report("atheris")) + "\n")
            sys.stdout.flush()
            atexit._run_exitfuncs()
            os._exit(0)

    def custom(data: bytes, size: int, number: int) -> bytes:
        rng = random.Random(number)
        if rng.random() < 0.5:
            changed: bytes = atheris.Mutate(data, size)
            return changed
        return mutate(data, rng, trial.target.seeds)[:size]

    argv = [sys.argv[0], "-max_len=66000", f"-seed={seed + 1}", "-verbosity=0", "-print_final_stats=0", str(corpus)]
    atheris.Setup(argv, one, custom_mutator=custom, enable_python_coverage=True)
    atheris.Fuzz()


def main() -> int:
    """Fuzz one target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("build/fuzz"))
    parser.add_argument("--engine", choices=("auto", "atheris", "mutate"), default="auto")
    parser.add_argument("--again", type=Path, help="Run one kept input.")
    options = parser.parse_args()
    sys.set_int_max_str_digits(4300)
    engine = options.engine if options.again is None else "mutate"
    if engine != "mutate":
        try:
            import atheris
        except ImportError:
            if engine == "atheris":
                raise
            engine = "mutate"
        else:
            engine = "atheris"
            with atheris.instrument_imports(include=["qmp_migrate", "hostagent"]):
                import tests.fuzz.targets  # noqa: F401
    trial = Trial(options.target, options.out)
    if options.again is not None:
        trial(options.again.read_bytes())
        return 0
    if engine == "atheris":
        by_coverage(trial, options.inputs, options.seed, options.out / "corpus" / options.target)
    try:
        by_mutation(trial, options.inputs, options.seed)
    except Found as found:
        sys.stdout.write(json.dumps(trial.report(engine, str(found))) + "\n")
        return 1
    sys.stdout.write(json.dumps(trial.report(engine)) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
