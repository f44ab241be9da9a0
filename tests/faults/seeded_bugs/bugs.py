"""Ten bugs that would lose a guest, seeded at run time, and what catches each one. Run by ``make faults-selftest``."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from qmp_migrate.errors import MigrationFailed, QmpMigrateError
from qmp_migrate.hosts import fenced
from qmp_migrate.hosts.ssh import host_keys
from qmp_migrate.migration.endpoint import endpoint
from qmp_migrate.migration.endpoint.endpoint import GONE, Side
from qmp_migrate.migration.journal.store import Journal
from qmp_migrate.migration.lifecycle.engine import Engine
from qmp_migrate.migration.lifecycle.recorder import Chronicle
from qmp_migrate.migration.model.phases import Phase
from qmp_migrate.migration.ownership import decision, decision_postcopy
from qmp_migrate.migration.precopy.runner import Copying
from qmp_migrate.migration.preflight import planner
from qmp_migrate.migration.transport import negotiation
from qmp_migrate.settings import load
from qmp_migrate.vm.commandline.command_line import CommandLine


@dataclass(frozen=True, slots=True)
class Bug:
    """A bug.

    Attributes:
        name: For ``--bug``.
        story: What it does.
        seed: Puts it into this process.
        case: The case of the fault suite that catches it, or ``""``.
        test: Else the test that does.
    """

    name: str
    story: str
    seed: Callable[[], None]
    case: str = ""
    test: str = ""


def _replace(owner: object, name: str, value: object) -> None:
    """Replace what is there: a name that has moved would seed nothing."""
    assert hasattr(owner, name), f"{owner} has no {name} any more"
    setattr(owner, name, value)


def _drop_s() -> None:
    derive = planner.derive_destination

    def without(*args: Any, **kwargs: Any) -> Any:
        derived = derive(*args, **kwargs)
        options = tuple(option for option in derived.command.options if option.name != "S")
        return dataclasses.replace(derived, command=CommandLine(derived.command.binary, options))

    _replace(planner, "derive_destination", without)


def _drop_return_path() -> None:
    init = negotiation._Table.__init__

    def without(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self.capabilities = self.capabilities - {"return-path"}

    _replace(negotiation._Table, "__init__", without)


def _timeout_is_dead() -> None:
    observe = Side.observe

    async def hasty(self: Side) -> Any:
        observed = await observe(self)
        return GONE if observed.run_state is None else observed

    _replace(Side, "observe", hasty)
    _replace(endpoint, "OBSERVE_S", 0.5)


def _skip_kill_confirmation() -> None:
    async def kill(self: Side) -> bool:
        with contextlib.suppress(QmpMigrateError):
            await (await self.attach()).execute("quit", timeout=1)
        await self.detach()
        return True

    async def gone(self: Side) -> bool:
        return False

    _replace(Side, "kill", kill)
    _replace(Side, "_alive", gone)


def _cont_before_completed() -> None:
    on_event = Copying._on_source_event

    def eager(self: Copying, event: Any) -> None:
        on_event(self, event)
        if event.name == "STOP":
            self.timeline.completed = self.timeline.loaded = event.at

    _replace(Copying, "_on_source_event", eager)


def _journal_after_act() -> None:
    arm = Journal.arm_commit
    enter = Chronicle.enter

    async def later(self: Journal, migration: str) -> None:
        """Not now."""

    async def entered(self: Chronicle, phase: Phase, **columns: Any) -> None:
        if phase is Phase.COMMITTED:
            await arm(self.journal, self.request.id)
        await enter(self, phase, **columns)

    _replace(Journal, "arm_commit", later)
    _replace(Chronicle, "enter", entered)


def _ignore_epoch() -> None:
    _replace(fenced, "FENCE", "shift 2\n")


def _cancel_in_postcopy() -> None:
    goes_on = decision_postcopy._goes_on

    def cancel(destination: Any, facts: Any) -> decision.Decision:
        found = goes_on(destination, facts)
        if found.action is decision.Action.PAUSE_POSTCOPY:
            return decision.Decision(decision.Action.CANCEL_SOURCE, "the source runs on after a cancel")
        return found

    _replace(decision_postcopy, "_goes_on", cancel)


def _believe_retained() -> None:
    look_again = Engine._look_again

    async def credulous(self: Engine) -> None:
        if _rolled_back_says_the_bus(self.course.request.vm):
            raise MigrationFailed("the bus says that it was rolled back", safe_at_source=True, host="a")
        await look_again(self)

    _replace(Engine, "_look_again", credulous)


def _rolled_back_says_the_bus(vm: str) -> bool:
    from paho.mqtt.client import CallbackAPIVersion, Client

    broker = urlsplit(load(Path(sys.argv[sys.argv.index("--config") + 1])).mqtt.url or "")
    heard: list[bytes] = []
    client = Client(CallbackAPIVersion.VERSION2)
    client.on_message = lambda _client, _data, message: heard.append(message.payload)
    client.connect(broker.hostname or "", broker.port or 0)
    client.subscribe("qmp-migrate/v1/migration/+/state")
    client.loop_start()
    time.sleep(1.0)
    client.loop_stop()
    return any(vm.encode() in payload and b"rolled-back" in payload for payload in heard)


def _any_host_key() -> None:
    _replace(host_keys.KnownKeys, "verify", lambda self, key, host: None)


BUGS: Final = {
    bug.name: bug
    for bug in (
        Bug("drop-S", "the destination starts as soon as it is loaded", _drop_s, case="switching/link-acks-lost"),
        Bug(
            "drop-return-path",
            "the source takes its last byte sent for loaded",
            _drop_return_path,
            case="switching/link-acks-lost",
        ),
        Bug(
            "timeout-is-dead",
            "who does not answer is taken for dead",
            _timeout_is_dead,
            case="first-pass/freeze-destination",
        ),
        Bug(
            "skip-kill-confirmation",
            "a destination is told to end, and believed",
            _skip_kill_confirmation,
            case="first-pass/freeze-destination",
        ),
        Bug(
            "cont-before-completed",
            "the destination is continued as soon as the source stops",
            _cont_before_completed,
            case="completed/kill-controller",
        ),
        Bug(
            "journal-after-act",
            "the commit is written down after cont",
            _journal_after_act,
            case="unacknowledged/kill-controller-and-destination",
        ),
        Bug(
            "ignore-epoch",
            "an older controller's commands are done",
            _ignore_epoch,
            test="tests/component/test_fenced_host.py",
        ),
        Bug(
            "cancel-in-postcopy",
            "a guest whose memory is on both hosts is cancelled",
            _cancel_in_postcopy,
            test="tests/unit/migration/ownership/test_decision_postcopy.py",
        ),
        Bug(
            "believe-retained",
            "a retained message decides about a guest",
            _believe_retained,
            case="first-pass/bus-retained",
        ),
        Bug(
            "accept-any-host-key",
            "whoever answers is taken for the host",
            _any_host_key,
            case="config/changed-host-key",
        ),
    )
}
