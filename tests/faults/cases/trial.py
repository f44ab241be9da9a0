"""What a case is, what a fault can act on while a case runs, and what comes of it."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil

from tests.faults.cases.phases import Phase
from tests.faults.lab.spy import Watch
from tests.faults.lab.stand import ControllerProcess, Stand, qemus
from tests.support.real.lab import Guest, wait_for

PROVEN_S: Final = 60.0
"""No case may take longer to a proven state."""

COMMAND_S: Final = 75.0

RECOVERY_S: Final = 5.0
"""A restarted controller's way to a proven state, where the hosts answer."""

HOSTS: Final = {"source": "a", "destination": "b"}


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


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A phase, a fault, and what must come of it.

    Attributes:
        phase, fault: What happens, and when.
        owners: Where the guest may be in the end: ``source``, ``destination``, ``none`` (it ran nowhere any more).
        codes: Exit codes that ``migrate`` may end with; empty: it is killed.
        told: What a person says to ``recover --owner``: nothing can prove the owner, so `recover` must park it first.
        hangs: The destination's QEMU may answer nobody any more: where `migrate` and `recover` say so (5), a person ends
            it, as their hint tells.
        limit_s: Seconds to a proven state.
        settings: Sections of the settings that differ; ``guest``: keys of its spec.
    """

    phase: Phase
    fault: Fault
    owners: frozenset[str]
    codes: frozenset[int]
    told: str | None = None
    hangs: bool = False
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
    first_log: Path = Path()
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

    def cli(self, *words: str, timeout: float = COMMAND_S) -> Any:
        """Run a command with the case's settings."""
        return self.stand.lab.cli(*words, code=None, config=self.settings, timeout=timeout)
