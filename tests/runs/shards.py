"""A long run in shards that goes on where it stopped: what has ended is written down, also within a shard of tests.

A shard that failed is not run again when the run goes on: a test that fails once is a fault. To begin anew, remove the
directory.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import IO, Any, Final

from tests.runs import plan, results
from tests.runs.steps import Ended, Run, Step

BUILD: Final = plan.ROOT / "build"
UNSTARTED: Final = Ended("not run")


class Busy(Exception):
    """Another run uses the directory."""


def commit() -> str:
    """Return what is run: the commit, and a mark made of the changes where the working tree has some."""
    head = _git("rev-parse", "HEAD").strip()
    changes = _git("status", "--porcelain")
    if not changes:
        return head
    untracked = _git("ls-files", "--others", "--exclude-standard", "-z").split("\0")
    digest = sha256(_git("diff", "HEAD", "--binary").encode())
    for name in filter(None, untracked):
        digest.update(name.encode() + b"\0" + (plan.ROOT / name).read_bytes())
    return f"{head}-changed-{digest.hexdigest()[:8]}"


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=plan.ROOT, capture_output=True, text=True, check=True).stdout


@dataclass
class State:
    """How far a run has come; a file.

    Attributes:
        directory: Where it, the logs and the records are.
        ended: The shards that have ended.
        spent: Seconds in goes that were interrupted, by shard.
        facts: What else is kept (seeds).
    """

    directory: Path
    ended: dict[str, Ended] = field(default_factory=dict)
    spent: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    _lock: IO[str] | None = None

    @classmethod
    def open(cls, directory: Path) -> State:
        """Read it, or begin one; no other process has it then.

        Raises:
            Busy: Another process has it.
        """
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / "lock").open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            pid = lock.read().strip()
            lock.close()
            raise Busy(f"another run uses {directory} (pid {pid or 'unknown'}): wait for it, or end it") from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        state = cls(directory, _lock=lock)
        if (path := directory / "state.json").exists():
            document = json.loads(path.read_text())
            state.ended = {name: Ended(**how) for name, how in document["ended"].items()}
            state.spent = document["spent"]
            state.facts = document["facts"]
        return state

    def save(self) -> None:
        """Write it; a reader sees the old one or the new one, whenever the machine stops."""
        document = {
            "ended": {name: vars(how) for name, how in self.ended.items()},
            "spent": self.spent,
            "facts": self.facts,
        }
        new = self.directory / "state.json.new"
        with new.open("w") as file:
            json.dump(document, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        new.rename(self.directory / "state.json")

    def close(self) -> None:
        """Let others have it."""
        if self._lock:
            self._lock.close()

    def note(self, step: Step, how: Ended) -> Ended:
        """Write down how a step ended; return it with the failures and the time of earlier goes."""
        seconds = how.seconds + self.spent.get(step.name, 0.0)
        failed = step.tests and any(result.outcome == "failed" for result in self.results_of(step))
        if how.outcome == "interrupted" or how.outcome == "not run":
            self.spent[step.name] = seconds
        else:
            self.spent.pop(step.name, None)
            how = replace(how, seconds=seconds, outcome="failed" if failed else how.outcome)
            self.ended[step.name] = how
        self.save()
        return how

    def results_of(self, step: Step) -> list[results.Result]:
        """Return the results of a shard so far."""
        return results.read(plan.record_of(step.name, self.directory))

    def failures(self, steps: Sequence[Step], seeds: dict[str, int]) -> list[results.Failure]:
        """Return all failures so far: tests, and shards that failed without a failed test."""
        found = []
        for step in steps:
            seed = seeds.get(step.name)
            tests = results.failures(step.name, plan.record_of(step.name, self.directory), seed) if step.tests else []
            how = self.ended.get(step.name, UNSTARTED)
            if how.outcome == "failed" and not tests:
                reason = f"exit status {how.status}"
                tests = [
                    results.Failure(step.name, "no test: the command", reason, seed, log_of(step.name, self.directory))
                ]
            found += tests
        return found

    @property
    def seconds(self) -> float:
        """How long all shards took, also in goes that were interrupted."""
        return sum(how.seconds for how in self.ended.values()) + sum(self.spent.values())


def log_of(name: str, directory: Path) -> Path:
    """Return the path of what a shard says."""
    return plan.record_of(name, directory).with_suffix(".log")


def prepared(steps: Sequence[Step], state: State) -> list[Step]:
    """Return the steps that are left, ready to be run: with a log, one after the other.

    A step whose `follows` names others is run after those only (beside what comes before them). `needs` are kept.
    """
    left: list[Step] = []
    for step in steps:
        if step.name in state.ended:
            continue
        record = plan.record_of(step.name, state.directory)
        snapshot = None
        if step.tests:
            results.keep_whole_lines(record)
            snapshot = record.with_suffix(".before")
            snapshot.write_text(record.read_text() if record.exists() else "")
            step = plan.recorded(step, state.directory, snapshot=snapshot)
        names = {other.name for other in left}
        left.append(
            replace(
                step,
                live=False,
                log=log_of(step.name, state.directory),
                needs=tuple(name for name in step.needs if name in names),
                follows=tuple(name for name in step.follows if name in names),
            )
        )
    return left


def go(steps: Sequence[Step], state: State) -> None:
    """Run what is left of the steps.

    Raises:
        Interrupted: Before all have ended; calling it again goes on.
    """
    done = [step.name for step in steps if step.name in state.ended]
    if done:
        print(f"goes on after: {', '.join(done)}", flush=True)
    Run(prepared(steps, state), ended=state.note)()


def in_order(steps: Sequence[Step], *, beside: Sequence[str] = ()) -> list[Step]:
    """Return the steps so that each one follows all before it, but for those that run beside the next ones.

    Args:
        steps: In order.
        beside: Names of steps that need not be waited for by the next step that has tests, but by the one after.
    """
    ordered: list[Step] = []
    for number, step in enumerate(steps):
        before = [other.name for other in steps[:number]]
        if step.name in beside or (number and all(name in beside for name in before)):
            before = []
        ordered.append(replace(step, follows=tuple(before)))
    return ordered


def fail(message: str) -> int:
    """Print an error; return the exit status."""
    print(message, file=sys.stderr)
    return 2
