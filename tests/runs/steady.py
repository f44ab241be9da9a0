"""`make steady`: the same tests many times while one core is kept busy; a table of every failure; goes on where it stopped.

Variables: `N` rounds; `TEST`, ids or paths, quoted as in a shell; `K`, pytest's `-k`. Without `TEST` and `K` these are the
component and system stages of `make test`.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

from tests.runs import plan, results, shards
from tests.runs.busy import busy_core
from tests.runs.steps import Interrupted, Step, duration


@dataclass(frozen=True)
class Wanted:
    """What is asked for.

    Attributes:
        rounds: How often.
        tests: Ids or paths; empty: the stages.
        expression: For pytest's `-k`.
    """

    rounds: int
    tests: tuple[str, ...] = ()
    expression: str = ""

    @classmethod
    def of(cls, variables: Mapping[str, str]) -> Wanted:
        """Read the variables.

        Raises:
            ValueError: One of them cannot be used; says which, and why.
        """
        rounds = variables.get("N") or "5"
        if not rounds.isdigit() or rounds == "0":
            raise ValueError(f"N={rounds} is not a number of rounds: use N=5")
        try:
            tests = tuple(shlex.split(variables.get("TEST", "")))
        except ValueError as error:
            raise ValueError(f"TEST cannot be read: {error}; quote each id as in a shell") from None
        for test in tests:
            path = test.partition("::")[0]
            if not (plan.ROOT / path).exists():
                raise ValueError(f"TEST names {path}, which does not exist: name tests as pytest does")
        return cls(int(rounds), tests, variables.get("K", ""))

    @property
    def key(self) -> str:
        """A name of what is run, apart from how often."""
        if not self.tests and not self.expression:
            return "stages"
        return sha256(json.dumps([self.tests, self.expression]).encode()).hexdigest()[:12]

    def steps(self) -> list[Step]:
        """Return one round."""
        if not self.tests and not self.expression:
            return [*plan.stage("component"), *plan.stage("system")]
        words = [
            *(self.tests or ("tests/component", "tests/system")),
            *(["-k", self.expression] if self.expression else []),
        ]
        # By themselves: a test beside another is what the stages try.
        return [Step("tests", plan.pytest(*words), tests=True)]


def rounds(wanted: Wanted, seeds: Mapping[str, int]) -> list[Step]:
    """Return the steps of all rounds, in order, each with its seed."""
    steps: list[Step] = []
    for number in range(1, wanted.rounds + 1):
        for step in wanted.steps():
            name = f"round {number}: {step.name}"
            seed = seeds[name]
            steps.append(
                replace(
                    step,
                    name=name,
                    argv=(*step.argv, f"--hypothesis-seed={seed}"),
                    env={"PYTHONHASHSEED": str(seed)},
                    follows=tuple(other.name for other in steps),
                )
            )
    return steps


def with_seeds(wanted: Wanted, seeds: dict[str, int]) -> dict[str, int]:
    """Return a seed for each step, the known ones and new ones."""
    names = [f"round {number}: {step.name}" for number in range(1, wanted.rounds + 1) for step in wanted.steps()]
    return {**seeds, **{name: secrets.randbelow(2**32) for name in names if name not in seeds}}


def main() -> int:
    """Run it; return the exit status: 0 no failure, 1 failures, 2 it cannot be run so, 130 interrupted."""
    try:
        wanted = Wanted.of(os.environ)
        at = shards.commit()
        state = shards.State.open(shards.BUILD / "steady" / at / wanted.key)
    except (ValueError, shards.Busy) as error:
        return shards.fail(f"make steady: {error}")
    state.facts.setdefault("tests", [*wanted.tests, *(["-k", wanted.expression] if wanted.expression else [])])
    state.facts["seeds"] = seeds = with_seeds(wanted, state.facts.get("seeds", {}))
    state.save()
    steps = rounds(wanted, seeds)
    interrupted = False
    try:
        with busy_core() as core:
            print(
                f"make steady: {wanted.rounds} rounds at {at}, core {core} kept busy; state: {state.directory}",
                flush=True,
            )
            shards.go(steps, state)
    except Interrupted:
        interrupted = True
    return closing(state, steps, seeds, at, interrupted=interrupted)


def closing(state: shards.State, steps: Sequence[Step], seeds: dict[str, int], at: str, *, interrupted: bool) -> int:
    """Print the table and the last line; return the exit status."""
    found = state.failures(steps, seeds)
    ended = sum(step.name in state.ended for step in steps)
    total = results.counts(result for step in steps for result in state.results_of(step))
    nothing = not interrupted and not any(state.results_of(step) for step in steps)
    print(f"\n{results.table(found)}")
    if nothing and not found:
        print("no test was run: TEST or K name none")
    verdict = "interrupted, `make steady` goes on" if interrupted else "FAILED" if found or nothing else "passed"
    print(
        f"make steady: {verdict}, commit {at}: {ended} of {len(steps)} stages in {duration(state.seconds)}: {total}",
        flush=True,
    )
    return 130 if interrupted else 1 if found or nothing else 0
