"""The oracle: what is, held against what was said, and both against what must be."""

from __future__ import annotations

from typing import Final

from qmp_migrate.rig.guest.disk_journal import check_journal
from qmp_migrate.rig.guest.oracle import Verdict
from qmp_migrate.rig.guest.oracle import judge as judge_logs
from tests.faults.cases.trial import HOSTS, Result, Trial
from tests.faults.lab.spy import Spy
from tests.faults.lab.stand import qemus
from tests.support.real.lab import wait_for

GUARDED_S: Final = 4.0
"""The guardian's limit and one second: so long a guest may be paused once its controller is gone at pre-switchover."""

BY_DEFAULT: Final = frozenset({"events"})
"""Capabilities that may be on when nobody migrates."""


def judge(trial: Trial, result: Result) -> None:
    """Hold what is against what was said, and both against what must be."""
    guest, watch = trial.guest, trial.watch
    if result.owner not in trial.case.owners:
        result.problems.append(f"the guest is at {result.owner!r}, not {sorted(trial.case.owners)}: {result.said}")
    alive = qemus(guest.name)
    if result.owner in HOSTS:
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
    alone = trial.case.fault.name.startswith(("kill-controller", "freeze-controller", "control-a"))
    if trial.case.phase.name == "pre-switchover" and alone and result.paused_s > GUARDED_S:
        result.problems.append(
            f"the guest was paused for {result.paused_s} s, not {GUARDED_S:g}, with nobody at work on it"
        )


def _check_guest(trial: Trial, result: Result, host: str) -> None:
    """The guest goes on, with its memory and its disk as they were."""
    guest = trial.guest
    other = guest.directory("b" if host == "a" else "a")
    if other.exists():
        result.problems.append(f"left behind: {sorted(str(p) for p in other.iterdir()) or other}")
    if keys := list(guest.directory(host).glob("tls-*")):
        result.problems.append(f"left behind: {keys}")
    if host == "b":
        # The harness' own link to what it wrote at the source: the oracle must not depend on what the product carries over.
        logs = (trial.first_log, guest.directory("b") / "serial.log")
        verdict = wait_for(
            lambda: (v := judge_logs([log.read_bytes() for log in logs])) and _enough(v) and v,
            60,
            lambda: str(judge_logs([log.read_bytes() for log in logs]).reasons),
            every=0.3,
        )
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


def _enough(verdict: Verdict) -> bool:
    broken = bool(verdict.tick_faults or verdict.corruption)
    return broken or (verdict.sweeps_ok_after_handover >= 1 and verdict.ticks_after_handover > 20)


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


def leftovers(trial: Trial, result: Result) -> None:
    """Nothing of the guest is left once it was stopped."""
    if result.owner in HOSTS and not result.problems:
        try:
            trial.stand.lab.assert_nothing_left(trial.guest.name)
        except AssertionError as error:
            result.problems.append(f"left behind: {error}")
