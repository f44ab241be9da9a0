"""One run of one case: reach the phase, bring the fault, wait for a proven state, and have it judged."""

from __future__ import annotations

import json
import random
import signal
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import psutil

from qmp_migrate.errors import QmpMigrateError
from qmp_migrate.migration.model.phases import ENDS
from tests.faults.cases.trial import COMMAND_S, HOSTS, PROVEN_S, Case, Result, Skipped, Trial, Unreached
from tests.faults.execution import judging
from tests.faults.lab.spy import NoAnswer, Spy, Watch
from tests.faults.lab.stand import Stand
from tests.support.real.lab import wait_for

REACH_S: Final = 90.0

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


def run(stand: Stand, case: Case, seed: int, logs: Path, *, bug: str = "") -> Result:
    """Run a case once.

    Args:
        stand: Where.
        case: Which.
        seed: For the guest's memory pattern and the moment of the fault within a phase that goes on by itself.
        logs: Directory for everything that the run leaves to read.
        bug: A seeded bug of `tests.faults.seeded_bugs.bugs`.
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
                    trial.first_log = stand.lab.files / f"{guest.name}.serial"
                    trial.first_log.hardlink_to(guest.directory("a") / "serial.log")
                    trial.undo.append(trial.first_log.unlink)
                    _run(trial, result)
                finally:
                    _keep(trial, result)
                    stand.heal()
                    for undo in reversed(trial.undo):
                        undo()
                judging.leftovers(trial, result)
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
            result.code, out = controller.end(COMMAND_S)
            if result.code is None:
                result.problems.append(f"migrate did not end within {COMMAND_S:g} s")
        _settle(trial, result, out, fault_at)
        if case.fault.afterwards is not None:
            case.fault.afterwards(trial)
    finally:
        controller.close()
    judging.judge(trial, result)


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
        if wanted and (state := wait_for(spy.run_state, 5, lambda: "no QEMU to ask")) != wanted:
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
        _within(case, result)
        return
    began = time.monotonic()
    ran = trial.cli("-v", "recover", opened, "--json")
    while ran.code in {69, 75} and time.monotonic() - fault_at < PROVEN_S:
        result.retries += 1
        ran = trial.cli("-v", "recover", opened, "--json")
    if case.told is not None and ran.code == 5:
        trial.notes.append(f"parked, as it must be: {ran.err}")
        ran = trial.cli("-v", "recover", opened, "--owner", case.told, "--json")
    elif case.hangs and ran.code == 5:
        trial.notes.append(f"told to end the destination: {ran.err}")
        trial.signal("destination", signal.SIGKILL)
        ran = trial.cli("-v", "recover", opened, "--json")
    elif case.told is not None:
        result.problems.append(f"recover: exit code {ran.code}, and nothing can prove the owner")
    result.recover_s = round(time.monotonic() - began, 2)
    (trial.logs / "recover.log").write_text(ran.out + ran.err)
    if ran.code != 0:
        result.problems.append(f"recover: exit code {ran.code}: {ran.err[-600:]}")
    found = _document(ran.out)
    if found is not None and found.get("migrations"):
        last = found["migrations"][-1]
        if proven and result.owner != last["owner"]:
            result.problems.append(f"migrate said owner {result.owner}, recover says {last['owner']}")
        result.outcome, result.owner = last["outcome"], last["owner"]
        result.said = result.said or (last["error"] or {}).get("message", "")
    if not proven:
        result.proven_s = round(time.monotonic() - fault_at, 2)
    _within(case, result)


def _within(case: Case, result: Result) -> None:
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
    if trial.first_log.is_file():
        (logs / "first-serial.log").write_bytes(trial.first_log.read_bytes())
    if not result.passed and trial.settings.is_file():
        report = trial.cli("history", "--vm", guest.name, "--json")
        for record in _document(report.out)["migrations"] if report.out else []:
            (logs / f"journal-{record['id']}.txt").write_text(trial.cli("report", record["id"]).out)
