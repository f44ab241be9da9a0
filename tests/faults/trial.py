"""One run of one case: reach the phase, bring the fault, wait for a proven state, and judge."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil

from qmp_migrate.errors import QmpMigrateError
from qmp_migrate.migration.phases import ENDS
from qmp_migrate.rig.disk_journal import check_journal
from tests.faults.phases import Phase
from tests.faults.spy import NoAnswer, Spy, Watch
from tests.faults.stand import ControllerProcess, Stand, qemus
from tests.support.lab import Guest, wait_for

PROVEN_S: Final = 60.0
"""No case may take longer to a proven state."""

END_S: Final = 75.0
REACH_S: Final = 40.0
RECOVERY_S: Final = 5.0
"""A restarted controller's way to a proven state, where the hosts answer."""

BY_DEFAULT: Final = frozenset({"events"})
"""Capabilities that may be on when nobody migrates."""

HOSTS: Final = {"source": "a", "destination": "b"}

OUTCOMES: Final = {
    0: {("completed", "destination")},
    1: {("failed", "none"), ("failed", "unknown"), ("failed", "source"), ("rolled_back", "source")},
    3: {("failed", "source")},
    4: {("rolled_back", "source"), ("failed", "source")},
    5: {("unknown", "unknown"), ("unknown", "source")},
    6: {("cancelled", "source"), ("rolled_back", "source")},
    69: {("failed", "source"), ("failed", "unknown")},
    75: {("failed", "source"), ("failed", "unknown")},
}
"""What a result document may say, by exit code (docs/reference)."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that breaks.

    Attributes:
        name: For case names.
        inject: Brings it about; it is in force on return.
        heal: Repairs it, once the controller has ended; ``None``: nothing to repair.
        meanwhile: Done after the controller was let go on, before its end is waited for.
        prepare: Done before the controller is started; may change its settings and words.
        lasting: The controller is gone or frozen for good: it is not waited for.
        afterwards: Done once the state is proven, before it is judged.
    """

    name: str
    inject: Callable[[Trial], None]
    heal: Callable[[Trial], None] | None = None
    meanwhile: Callable[[Trial], None] | None = None
    prepare: Callable[[Trial], None] | None = None
    lasting: bool = False
    afterwards: Callable[[Trial], None] | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """A phase, a fault, and what must come of it.

    Attributes:
        phase, fault: What happens, and when.
        owners: Where the guest may be in the end: ``source``, ``destination``, ``none`` (it ran nowhere any more).
        codes: Exit codes that ``migrate`` may end with; empty: it is killed.
        told: What a person says to ``recover --owner``: nothing can prove the owner, so `recover` must park it first.
        crashed: The guest had been handed over and its QEMU was killed then: its owner is told, and nothing runs.
        limit_s: Seconds to a proven state.
        settings: Sections of the settings that differ; ``guest``: keys of its spec.
    """

    phase: Phase
    fault: Fault
    owners: frozenset[str]
    codes: frozenset[int]
    told: str | None = None
    crashed: bool = False
    limit_s: float = PROVEN_S
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """``phase/fault``."""
        return f"{self.phase.name}/{self.fault.name}"


@dataclass
class Result:
    """What came of one run.

    Attributes:
        problems: Why it failed; empty: it passed.
        code: What ``migrate`` ended with; None where it was killed.
        outcome, owner: The last word on the guest.
        proven_s: From the fault to a proven state.
        recover_s: What `recover` took of it; None where there was nothing to recover.
        paused_s: The longest time nobody ran the guest, between two times when somebody did.
        said: The error's code and message.
    """

    case: str
    seed: int
    problems: list[str] = field(default_factory=list)
    code: int | None = None
    outcome: str = ""
    owner: str = ""
    proven_s: float = 0.0
    recover_s: float | None = None
    paused_s: float = 0.0
    total_s: float = 0.0
    said: str = ""
    retries: int = 0

    @property
    def passed(self) -> bool:
        """Nothing speaks against it."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)


class Skipped(Exception):
    """This machine cannot bring this fault."""


class Unreached(Exception):
    """The phase was not reached: nothing can be said about the case."""


@dataclass
class Trial:
    """One run under way; what faults act on."""

    stand: Stand
    case: Case
    seed: int
    guest: Guest
    watch: Watch
    logs: Path
    words: list[str] = field(default_factory=list)
    sections: dict[str, Any] = field(default_factory=dict)
    controller: ControllerProcess | None = None
    settings: Path = Path()
    bug: str = ""
    notes: list[str] = field(default_factory=list)
    undo: list[Callable[[], None]] = field(default_factory=list)

    def pid(self, side: str) -> int:
        """Return the QEMU of a side; waits a moment for a pid file that is being written."""
        host = HOSTS[side]
        return int(wait_for(lambda: self.guest.pid(host), 5, lambda: f"no pid of {self.guest.name} on {host}"))

    def signal(self, side: str, number: signal.Signals) -> None:
        """Send a signal to a side's QEMU; SIGKILL: return once it is gone."""
        process = psutil.Process(self.pid(side))
        process.send_signal(number)
        if number is signal.SIGKILL:
            wait_for(lambda: self.pid(side) not in qemus(self.guest.name), 10, lambda: "QEMU does not die")

    def at_controller(self, number: signal.Signals) -> None:
        """Send a signal to the controller."""
        assert self.controller is not None
        self.controller.process.send_signal(number)
        if number is signal.SIGKILL:
            self.controller.process.wait(10)

    def cli(self, *words: str, timeout: float = END_S) -> Any:
        """Run a command with the case's settings."""
        return self.stand.lab.cli(*words, code=None, config=self.settings, timeout=timeout)


def run(stand: Stand, case: Case, seed: int, logs: Path, *, bug: str = "") -> Result:
    """Run a case once.

    Args:
        stand: Where.
        case: Which.
        seed: For the guest's memory pattern and the moment of the fault within a phase that goes on by itself.
        logs: Directory for everything that the run leaves to read.
        bug: A seeded bug of `tests.faults.bugs`.
    """
    logs.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    result = Result(case.name, seed)
    memory = case.settings.get("guest", {})
    try:
        with stand.guest(append=case.phase.append, seed=seed, **memory) as guest:
            spies = [Spy(host, stand.spies(host) / f"{guest.name}.sock") for host in ("a", "b")]
            with Watch(*spies) as watch:
                trial = Trial(stand, case, seed, guest, watch, logs, bug=bug)
                try:
                    guest.wait_ready("a")
                    _run(trial, result)
                finally:
                    _keep(trial, result)
                    stand.heal()
                    for undo in reversed(trial.undo):
                        undo()
                _leftovers(trial, result)
    except Skipped as why:
        result.outcome = f"skipped: {why}"
    except (AssertionError, QmpMigrateError, Unreached, NoAnswer, psutil.Error, OSError) as error:
        result.problems.append(f"{type(error).__name__}: {error}")
    result.total_s = round(time.monotonic() - begun, 2)
    (logs / "result.json").write_text(json.dumps(result.to_dict(), indent=1) + "\n")
    return result


def _run(trial: Trial, result: Result) -> None:
    case, stand = trial.case, trial.stand
    trial.sections = {key: dict(value) for key, value in case.settings.items() if key != "guest"}
    trial.words = ["migrate", trial.guest.name, "--to", "b", "--json", *case.phase.words]
    if case.fault.prepare is not None:
        case.fault.prepare(trial)
    trial.settings = stand.settings(**trial.sections)
    traps = list(case.phase.traps)
    controller = stand.controller(trial.settings, *trial.words, traps=traps, bug=trial.bug)
    trial.controller = controller
    try:
        _reach(trial, traps)
        fault_at = time.monotonic()
        case.fault.inject(trial)
        if case.phase.stalled and not case.fault.name.startswith("link"):
            stand.migration.up()
        controller.go()
        if case.fault.meanwhile is not None:
            case.fault.meanwhile(trial)
        out = ""
        if not case.fault.lasting:
            result.code, out = controller.end(END_S)
            if result.code is None:
                result.problems.append(f"migrate did not end within {END_S:g} s")
        _settle(trial, result, out, fault_at)
        if case.fault.afterwards is not None:
            case.fault.afterwards(trial)
    finally:
        controller.close()
    _judge(trial, result)


def _reach(trial: Trial, traps: list[str]) -> None:
    controller, phase = trial.controller, trial.case.phase
    assert controller is not None
    for number, trap in enumerate(traps):
        if not controller.reached(trap, REACH_S):
            raise Unreached(f"migrate ended before {trap}: {controller.log.read_text()[-500:]}")
        if number == 0 and phase.stalled:
            trial.stand.migration.hold()
        if number < len(traps) - 1:
            controller.go()
    for spy, wanted in zip((trial.watch.source, trial.watch.destination), phase.states, strict=True):
        if wanted and (state := spy.run_state()) != wanted:
            raise Unreached(f"in phase {phase.name} the QEMU on {spy.side} is {state}, not {wanted}")
    if phase.name in {"first-pass", "converging"}:
        time.sleep(
            random.Random(trial.seed).random() * 0.3
        )  # anywhere within it: this is the fault's moment, not a wait


def _settle(trial: Trial, result: Result, out: str, fault_at: float) -> None:
    """Take the controller's word, heal, recover what is open, and note when the state was proven."""
    case = trial.case
    document = _document(out)
    if document is not None:
        result.outcome, result.owner = document["outcome"], document["owner"]
        error = document["error"]
        result.said = f"{error['code']}: {error['message']}" if error else ""
        if (result.outcome, result.owner) not in OUTCOMES.get(result.code or 0, set()):
            result.problems.append(f"exit code {result.code} with outcome {result.outcome}, owner {result.owner}")
    elif result.code is not None:
        result.problems.append(f"no result document (exit code {result.code})")
    if result.code is not None and result.code not in case.codes:
        result.problems.append(f"exit code {result.code}, not {sorted(case.codes)}: {result.said}")
    result.proven_s = round(time.monotonic() - fault_at, 2)
    proven = result.owner in {"source", "destination", "none"} and result.code != 5
    if case.fault.heal is not None:
        case.fault.heal(trial)
    opened = _open(trial)
    if opened is None:
        if not proven and result.code is None:
            result.outcome, result.owner = "nothing begun", "source"
        result.owner = result.owner if proven else _found(trial)
        return
    began = time.monotonic()
    ran = trial.cli("-v", "recover", opened, "--json")
    while ran.code in {69, 75} and time.monotonic() - fault_at < PROVEN_S:
        result.retries += 1
        ran = trial.cli("-v", "recover", opened, "--json")
    if case.told is not None:
        if ran.code != 5:
            result.problems.append(f"recover: exit code {ran.code}, and nothing can prove the owner")
        trial.notes.append(f"parked as documented: {ran.err}")
        ran = trial.cli("-v", "recover", opened, "--owner", case.told, "--json")
    result.recover_s = round(time.monotonic() - began, 2)
    (trial.logs / "recover.log").write_text(ran.out + ran.err)
    if ran.code != 0:
        result.problems.append(f"recover: exit code {ran.code}: {ran.err[-600:]}")
    found = _document(ran.out)
    if found is not None and found["migrations"]:
        last = found["migrations"][-1]
        if proven and result.owner != last["owner"]:
            result.problems.append(f"migrate said owner {result.owner}, recover says {last['owner']}")
        result.outcome, result.owner = last["outcome"], last["owner"]
        result.said = result.said or (last["error"] or {}).get("message", "")
    if not proven:
        result.proven_s = round(time.monotonic() - fault_at, 2)
    if result.proven_s > case.limit_s:
        result.problems.append(f"{result.proven_s} s to a proven state, not {case.limit_s:g}")


def _document(out: str) -> Any:
    lines = out.strip().splitlines()
    try:
        return json.loads(lines[-1]) if lines else None
    except json.JSONDecodeError:
        return None


def _open(trial: Trial) -> str | None:
    """Return the id of this guest's migration that has not ended with one owner."""
    found = trial.stand.ask(trial.settings, lambda controller: controller.journal.migrations(vm=trial.guest.name))
    return next((record.id for record in found if record.phase not in ENDS), None)


def _found(trial: Trial) -> str:
    running = [
        side for side, spy in zip(HOSTS, (trial.watch.source, trial.watch.destination), strict=True) if spy.run_state()
    ]
    return running[0] if len(running) == 1 else "none" if not running else "both"


def _judge(trial: Trial, result: Result) -> None:
    """Hold what is against what was said, and both against what must be."""
    guest, watch = trial.guest, trial.watch
    if result.owner not in trial.case.owners:
        result.problems.append(f"the guest is at {result.owner!r}, not {sorted(trial.case.owners)}: {result.said}")
    alive = qemus(guest.name)
    if result.owner in HOSTS and not trial.case.crashed:
        host = HOSTS[result.owner]
        spy = watch.source if host == "a" else watch.destination
        if list(alive) != [guest.pid(host)]:
            result.problems.append(f"QEMUs {alive}, but the one on {host} is {guest.pid(host)}")
        elif (state := spy.run_state()) != "running":
            result.problems.append(f"the guest is {state} on {host}")
        else:
            _check_settings(spy, result)
            _check_guest(trial, result, host)
    elif alive:
        result.problems.append(f"owner {result.owner}, but QEMUs are there: {alive}")
    if found := watch.overlaps():
        result.problems += found
    result.paused_s = round(max(watch.pauses(), default=0.0), 3)


def _check_guest(trial: Trial, result: Result, host: str) -> None:
    """The guest goes on, with its memory and its disk as they were."""
    guest = trial.guest
    other = guest.directory("b" if host == "a" else "a")
    if other.exists():
        result.problems.append(f"left behind: {sorted(str(p) for p in other.iterdir()) or other}")
    if keys := list(guest.directory(host).glob("tls-*")):
        result.problems.append(f"left behind: {keys}")
    if host == "b":
        verdict = guest.wait_survived("b")
    else:
        before = guest.verdict("a")
        verdict = guest.wait(
            "a",
            lambda v: (
                bool(v.tick_faults or v.corruption)
                or (v.last_tick > before.last_tick + 20 and v.sweeps_ok > before.sweeps_ok + 1)
            ),
        )
    result.problems += [] if verdict.survived else list(verdict.reasons)
    trial.notes.append(f"ticks {verdict.first_tick} to {verdict.last_tick}, {verdict.sweeps_ok} sweeps")
    trial.stand.ask(trial.settings, lambda controller: controller.stop(guest.name, on=host, force=True))
    if guest.disk is not None:
        lost = check_journal(guest.disk.read_bytes(), verdict.journal).lost
        if lost:
            result.problems.append(f"acknowledged records are not on the disk: {lost[:5]}")
        elif not verdict.journal:
            result.problems.append("the guest acknowledged no disk record")


def _check_settings(spy: Spy, result: Result) -> None:
    """Nothing of the migration is still in force in the QEMU that has the guest."""
    if creds := spy.ask("query-migrate-parameters")["return"].get("tls-creds"):
        result.problems.append(f"left behind in QEMU: tls-creds {creds}")
    on = {entry["capability"] for entry in spy.ask("query-migrate-capabilities")["return"] if entry["state"]}
    if on - BY_DEFAULT:
        result.problems.append(f"left behind in QEMU: capabilities {sorted(on - BY_DEFAULT)}")
    objects = spy.ask("qom-list", {"path": "/objects"})["return"]
    if keys := [entry["name"] for entry in objects if entry["name"].startswith("tls-")]:
        result.problems.append(f"left behind in QEMU: objects {keys}")


def _leftovers(trial: Trial, result: Result) -> None:
    if result.owner in HOSTS and not result.problems and not trial.case.crashed:
        try:
            trial.stand.lab.assert_nothing_left(trial.guest.name)
        except AssertionError as error:
            result.problems.append(f"left behind: {error}")


def _keep(trial: Trial, result: Result) -> None:
    """Keep what is needed to understand the run."""
    logs, guest = trial.logs, trial.guest
    events = {spy.side: spy.events for spy in (trial.watch.source, trial.watch.destination)}
    intervals = [asdict(interval) for interval in trial.watch.intervals]
    story = {"case": trial.case.name, "seed": trial.seed, "words": trial.words, "notes": trial.notes}
    (logs / "story.json").write_text(json.dumps({**story, "events": events, "intervals": intervals}, indent=1) + "\n")
    if trial.controller is not None and trial.controller.log.exists():
        (logs / "controller.log").write_text(trial.controller.log.read_text())
    for host in ("a", "b"):
        for name in ("qemu.log", "serial.log", "serial.log.1"):
            path = guest.directory(host) / name
            if path.exists():
                (logs / f"{host}-{name}").write_bytes(path.read_bytes())
    if not result.passed and trial.settings.is_file():
        report = trial.cli("history", "--vm", guest.name, "--json")
        for record in _document(report.out)["migrations"] if report.out else []:
            (logs / f"journal-{record['id']}.txt").write_text(trial.cli("report", record["id"]).out)
