"""Run commands side by side as their order allows; show each one's output whole; say how long each took."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Final

POLL_S: Final = 0.05
END_S: Final = 30.0
TAIL: Final = 40
NOTHING_COLLECTED: Final = 5
PR_SET_PDEATHSIG: Final = 1


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: What it is called in the output; unique.
        argv: The command.
        needs: Steps that must have passed; when one has not, this one is not run.
        follows: Steps that must have ended, in whichever way, so that they do not disturb this one.
        live: Its output appears as it comes. One such step runs at a time; the output of others waits until it has ended.
        tests: It is a pytest, which can write a record.
        log: A file that its output is added to; only the end of it is shown, and only when it fails.
        fine: Exit statuses that mean success.
        env: Variables added to the environment.
        cwd: Working directory; default: the present one.
    """

    name: str
    argv: tuple[str, ...]
    needs: tuple[str, ...] = ()
    follows: tuple[str, ...] = ()
    live: bool = False
    tests: bool = False
    log: Path | None = None
    fine: tuple[int, ...] = (0,)
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None


@dataclass(frozen=True)
class Ended:
    """How a step ended.

    Attributes:
        outcome: `passed`, `failed`, `not run` (a step that it needs has not passed) or `interrupted`.
        status: Exit status; negative: the signal that ended it; `None`: it was not run.
        seconds: How long it ran.
    """

    outcome: str
    status: int | None = None
    seconds: float = 0.0


@dataclass
class _Running:
    process: subprocess.Popen[bytes]
    output: IO[bytes] | None
    began: float


class Interrupted(Exception):
    """A signal asked the run to stop; all its commands have ended."""


class Run:
    """The steps of one run."""

    def __init__(
        self,
        steps: Sequence[Step],
        *,
        ended: Callable[[Step, Ended], Ended] = lambda step, how: how,
    ) -> None:
        """Args:
        steps: In the order in which they are preferred.
        ended: Is told how each one ended, and may judge otherwise.
        """
        self.steps = list(steps)
        self.results: dict[str, Ended] = {}
        self._running: dict[str, _Running] = {}
        self._held: list[tuple[Step, Ended, bytes]] = []
        self._tell = ended
        names = [step.name for step in steps]
        assert len(set(names)) == len(names), f"two steps of one name: {names}"
        for step in steps:
            unknown = {*step.needs, *step.follows} - set(names)
            assert not unknown, f"{step.name} names steps that do not exist: {unknown}"

    def __call__(self) -> dict[str, Ended]:
        """Run all steps; return how each ended. Ctrl-C and SIGTERM end the commands first."""
        asked: list[int] = []

        def ask(number: int, frame: FrameType | None) -> None:
            asked.append(number)

        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        try:
            while len(self.results) < len(self.steps):
                self._collect()
                if asked:
                    self._stop()
                    raise Interrupted
                self._start()
                if self._running:
                    time.sleep(POLL_S)
                elif len(self.results) < len(self.steps) and not self._ready():
                    raise AssertionError("steps wait for each other")
            self._show()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return self.results

    @property
    def passed(self) -> bool:
        """Whether all steps have passed."""
        return all(how.outcome == "passed" for how in self.results.values())

    @property
    def failed(self) -> list[str]:
        """The steps that failed, in the order in which they did."""
        return [name for name, how in self.results.items() if how.outcome == "failed"]

    def _ready(self) -> list[Step]:
        """The steps that may start now, and those that need what has not passed."""
        return [
            step
            for step in self.steps
            if step.name not in self.results
            and step.name not in self._running
            and all(name in self.results for name in (*step.needs, *step.follows))
        ]

    def _start(self) -> None:
        for step in self._ready():
            missing = [name for name in step.needs if self.results[name].outcome != "passed"]
            if missing:
                self._end(step, Ended("not run"), f"not run: {missing[0]} has not passed\n".encode())
            elif not (step.live and any(self._by_name(name).live for name in self._running)):
                self._launch(step)

    def _launch(self, step: Step) -> None:
        output: IO[bytes] | None = None
        if step.log:
            output = step.log.open("ab+")
            print(f"== {step.name} runs; its output: {step.log}", flush=True)
        elif not step.live:
            output = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as its process)
        if step.live:
            self._show()
            print(f"\n== {step.name}", flush=True)
        # A session of its own: Ctrl-C reaches this program alone, which ends pytest in the way that pytest expects. A test
        # whose QEMU got the terminal's SIGINT would seem to fail.
        process = subprocess.Popen(
            step.argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if output else None,
            env=environment() | dict(step.env),
            cwd=step.cwd,
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
        self._running[step.name] = _Running(process, output, time.monotonic())

    def _collect(self) -> None:
        for name, running in list(self._running.items()):
            status = running.process.poll()
            if status is None:
                continue
            del self._running[name]
            step = self._by_name(name)
            seconds = time.monotonic() - running.began
            self._end(
                step, Ended("passed" if status in step.fine else "failed", status, seconds), _read(running.output)
            )

    def _end(self, step: Step, how: Ended, output: bytes) -> None:
        how = self.results[step.name] = self._tell(step, how)
        self._held.insert(0 if step.live else len(self._held), (step, how, output))
        if not any(self._by_name(name).live for name in self._running):
            self._show()

    def _show(self) -> None:
        for step, how, output in self._held:
            if step.log and how.outcome == "failed":
                output = b"\n".join(output.splitlines()[-TAIL:]) + b"\n"
            if not step.live and (how.outcome == "failed" or not step.log):
                print(f"\n== {step.name}", flush=True)
                sys.stdout.flush()
                os.write(sys.stdout.fileno(), output)
            status = f", exit status {how.status}" if how.outcome == "failed" else ""
            print(f"== {step.name}: {how.outcome}{status}, {duration(how.seconds)}", flush=True)
        self._held.clear()

    def _stop(self) -> None:
        for running in self._running.values():
            running.process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + END_S
        for name, running in self._running.items():
            try:
                running.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(running.process.pid, signal.SIGKILL)
                running.process.wait()
            how = Ended("interrupted", running.process.returncode, time.monotonic() - running.began)
            self.results[name] = self._tell(self._by_name(name), how)
            self._held.append((self._by_name(name), how, _read(running.output)))
        self._running.clear()
        self._show()

    def _by_name(self, name: str) -> Step:
        return next(step for step in self.steps if step.name == name)


def _end_with_parent() -> None:
    """See to it that a command does not outlive a run that was killed: the next run would share the machine with it."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGINT)


def _read(output: IO[bytes] | None) -> bytes:
    if output is None:
        return b""
    with output:
        output.seek(0)
        return output.read()


def environment() -> dict[str, str]:
    """Return the environment of the commands: this one, but compiled Python is kept.

    Many containers set `PYTHONDONTWRITEBYTECODE`. With it each of the hundreds of controllers that the tests start would
    compile all of the product again.
    """
    return {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}


def duration(seconds: float) -> str:
    """Return a duration as people read it: `0.4 s`, `42 s`, `2 min 5 s`, `1 h 3 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
