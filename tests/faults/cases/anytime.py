"""The faults that can come in any phase: processes killed and frozen, links cut and damaged."""

from __future__ import annotations

import signal
import socket
import time
from typing import Final

from tests.faults.cases.trial import HOSTS, Fault, Trial
from tests.faults.lab.spy import OPEN_S
from tests.support.real.lab import wait_for

AWAY_S: Final = 4.0
"""How long something that comes back by itself is away. Longer than the guardian's limit."""

HANDED_OVER_S: Final = 5.0
"""How long a guest may stand still whose controller was killed, where both hosts have agents."""

SLOW_BITS_PER_S: Final = 1e6


def _signal(side: str, number: signal.Signals) -> Fault:
    verb = "kill" if number is signal.SIGKILL else "freeze"

    def heal(trial: Trial) -> None:
        if number is signal.SIGSTOP and trial.guest.pid(HOSTS[side]) is not None:
            trial.signal(side, signal.SIGCONT)

    return Fault(f"{verb}-{side}", lambda trial: trial.signal(side, number), heal)


def _kill_controller() -> Fault:
    return Fault("kill-controller", lambda trial: trial.at_controller(signal.SIGKILL), lasting=True)


def _freeze_controller() -> Fault:
    def thaw(trial: Trial) -> None:
        time.sleep(AWAY_S)  # the fault's own length
        trial.at_controller(signal.SIGCONT)

    return Fault("freeze-controller", lambda trial: trial.at_controller(signal.SIGSTOP), meanwhile=thaw)


def _guardian() -> Fault:
    """Nobody recovers: the agent alone takes the guest back."""

    def taken_back(trial: Trial) -> None:
        def again() -> bool:
            intervals = trial.watch.source.intervals
            return len(intervals) > 1 and intervals[-1].end == OPEN_S

        wait_for(again, 20, lambda: f"the guest is still paused: {trial.watch.source.run_state()}")

    return Fault(
        "kill-controller-guardian",
        lambda trial: trial.at_controller(signal.SIGKILL),
        meanwhile=taken_back,
        lasting=True,
    )


def _handed_over() -> Fault:
    """Nobody recovers: the two agents hand the guest over, in time."""
    began: dict[int, float] = {}

    def inject(trial: Trial) -> None:
        trial.at_controller(signal.SIGKILL)
        began[id(trial)] = time.monotonic()

    def runs(trial: Trial) -> None:
        def there() -> bool:
            intervals = trial.watch.destination.intervals
            return bool(intervals) and intervals[-1].end == OPEN_S

        wait_for(there, 30, lambda: f"the guest stands still: {trial.watch.destination.run_state()}")
        taken_s = time.monotonic() - began.pop(id(trial))
        trial.notes.append(f"it ran again {taken_s:.2f} s after the controller was killed")
        assert taken_s <= HANDED_OVER_S, trial.notes[-1]

    return Fault("kill-controller-agents", inject, meanwhile=runs, lasting=True)


def _taken_over() -> Fault:
    """The controller is frozen for good; another one takes the guest over, then it wakes up and must do nothing."""

    def wake(trial: Trial) -> None:
        assert trial.controller is not None
        trial.at_controller(signal.SIGCONT)
        code, out = trial.controller.end(60)
        trial.notes.append(f"the frozen controller woke up and ended with {code}: {out}")
        assert code not in {None, 0}, f"the frozen controller went on: exit code {code}"

    return Fault(
        "freeze-controller-for-good",
        lambda trial: trial.at_controller(signal.SIGSTOP),
        lasting=True,
        afterwards=wake,
    )


def _kill_both() -> Fault:
    """The controller and the destination die together: nobody can tell any more whether the guest ran there."""

    def inject(trial: Trial) -> None:
        trial.at_controller(signal.SIGKILL)
        trial.signal("destination", signal.SIGKILL)

    return Fault("kill-controller-and-destination", inject, lasting=True)


def _part(part: str, verb: str) -> Fault:
    def inject(trial: Trial) -> None:
        trial.stand.kill(part) if verb == "kill" else trial.stand.freeze(part)

    return Fault(f"{verb}-{part}", inject, lambda trial: trial.stand.heal())


def _sshd(host: str, verb: str) -> Fault:
    """An sshd that is away for some seconds, with its sessions."""

    def inject(trial: Trial) -> None:
        match verb:
            case "drop":
                trial.stand.kill(f"sshd-{host}", sessions_only=True)
            case "kill":
                trial.stand.kill(f"sshd-{host}")
            case _:
                trial.stand.freeze(f"sshd-{host}")

    def back(trial: Trial) -> None:
        if verb != "drop":
            time.sleep(AWAY_S)  # the fault's own length
            trial.stand.heal_part(f"sshd-{host}")

    return Fault(f"{verb}-sshd-{host}", inject, lambda trial: trial.stand.heal(), meanwhile=back)


def _link(damage: str) -> Fault:
    def inject(trial: Trial) -> None:
        cable = trial.stand.migration
        match damage:
            case "down":
                cable.down()
            case "black-hole":
                cable.swallow()
            case "mute":
                cable.hold()
            case "reset":
                cable.up()
                cable.reset()
            case "acks-lost":
                cable.up()
                cable.drop("back")
            case "data-lost":
                cable.up()
                cable.drop("there")
            case "1mbit":
                cable.up()
                cable.limit(SLOW_BITS_PER_S)

    def heal(trial: Trial) -> None:
        trial.stand.migration.up()

    def widened(trial: Trial) -> None:
        time.sleep(AWAY_S)  # slow for so long; then the copy ends in reasonable time
        trial.stand.migration.limit(0)

    return Fault(f"link-{damage}", inject, heal, meanwhile=widened if damage == "1mbit" else None)


def _control(hosts: str, damage: str) -> Fault:
    """The network between the controller and one or both hosts, for as long as the controller lives."""

    def inject(trial: Trial) -> None:
        for host in hosts:
            cable = trial.stand.control[host]
            cable.down() if damage == "down" else cable.swallow()

    def heal(trial: Trial) -> None:
        for host in hosts:
            trial.stand.control[host].up()

    return Fault(f"control-{hosts}-{damage}", inject, heal)


def _blink(hosts: str) -> Fault:
    """The control network is away for some seconds and comes back."""
    down = _control(hosts, "down")

    def back(trial: Trial) -> None:
        time.sleep(AWAY_S)  # the fault's own length
        for host in hosts:
            trial.stand.control[host].up()

    return Fault(f"control-{hosts}-blink", down.inject, down.heal, meanwhile=back)


def _answer_lost() -> Fault:
    """``cont`` reaches the destination, its answer never reaches the controller."""

    def inject(trial: Trial) -> None:
        trial.stand.control["b"].drop("back")

    def cut(trial: Trial) -> None:
        trial.watch.destination.wait_event("RESUME", 20)
        trial.stand.control["b"].down()

    return Fault("answer-lost", inject, lambda trial: trial.stand.control["b"].up(), meanwhile=cut)


def _second_client(side: str) -> Fault:
    """Somebody else holds the monitor that the controller needs."""
    held: list[socket.socket] = []

    def inject(trial: Trial) -> None:
        sock = socket.socket(socket.AF_UNIX)
        wait_for(lambda: trial.guest.directory(HOSTS[side]).joinpath("qmp.sock").exists(), 10)
        sock.connect(str(trial.guest.directory(HOSTS[side]) / "qmp.sock"))
        held.append(sock)

    def heal(trial: Trial) -> None:
        while held:
            held.pop().close()

    if side == "source":
        return Fault("second-client-source", lambda trial: None, heal, prepare=inject)
    return Fault("second-client-destination", inject, heal)


ANYTIME: Final = {
    fault.name: fault
    for fault in (
        _signal("source", signal.SIGKILL),
        _signal("source", signal.SIGSTOP),
        _signal("destination", signal.SIGKILL),
        _signal("destination", signal.SIGSTOP),
        _kill_controller(),
        _guardian(),
        _handed_over(),
        _freeze_controller(),
        _taken_over(),
        _kill_both(),
        *(_part(part, verb) for part in ("agent-a", "agent-b", "broker") for verb in ("kill", "freeze")),
        *(_sshd(host, verb) for host in ("a", "b") for verb in ("drop", "kill", "freeze")),
        *(_link(damage) for damage in ("down", "black-hole", "mute", "reset", "acks-lost", "data-lost", "1mbit")),
        *(_control(hosts, "down") for hosts in ("a", "b", "ab")),
        *(_control(hosts, "black-hole") for hosts in ("a", "b", "ab")),
        *(_blink(hosts) for hosts in ("a", "b", "ab")),
        _answer_lost(),
        _second_client("source"),
        _second_client("destination"),
    )
}
