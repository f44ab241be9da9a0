"""Controllers that die at a chosen moment, and the two fake QEMUs of `qemu_pair`, which do not care.

Every outward effect of a controller (a record in the journal, a command to a QEMU, a script on a host, taking the locks)
goes through its `Life`, before it is done and after it. At the chosen one the controller dies: what it was about to do is
not done, or is done and nobody hears of it; from that instant nothing of it reaches anything, its connections are closed,
and its locks are free. It unwinds by `Died`, which no code of ours catches, and whatever it tries on the way is refused.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from qmp_migrate.errors import MonitorLost
from qmp_migrate.hosts import process_scripts
from qmp_migrate.hosts.base import Completed
from qmp_migrate.migration.endpoint import guest_locks, launch
from qmp_migrate.migration.endpoint.endpoint import Side
from qmp_migrate.migration.journal.store import Journal
from qmp_migrate.migration.transport import setup
from qmp_migrate.settings import HostSettings
from tests.support.fakes.fake_qemu_pair import ARGV, SOURCE, Held, PairHost, QemuPair, _Qemu
from tests.support.fakes.fake_qemu_pair_with_disks import IMAGE_SCRIPTS, Disks
from tests.support.virtual_time import VirtualJournal


class Died(BaseException):
    """The controller is no more."""


@dataclass(eq=False)
class Life:
    """One controller's life.

    Attributes:
        until: It dies at the moment of that number, counted from 1; 0: it lives on.
        passed: The moments that have passed, by name.
        dead: It has died.
        connections: What is closed when it dies.
    """

    until: int = 0
    passed: list[str] = field(default_factory=list)
    dead: bool = False
    connections: list[Callable[[], None]] = field(default_factory=list)

    def moment(self, name: str) -> None:
        """Pass a moment, or die in it.

        Raises:
            Died: Now, or before.
        """
        self.lives()
        self.passed.append(name)
        if len(self.passed) == self.until:
            self.dead = True
            for close in self.connections:
                close()
            raise Died(name)

    def lives(self) -> None:
        """Do nothing more when dead.

        Raises:
            Died: It is.
        """
        if self.dead:
            raise Died

    @contextlib.contextmanager
    def effect(self, name: str) -> Iterator[None]:
        """Something that is noticed outside: it may die right before it, and right after it."""
        self.moment(f"before {name}")
        yield
        self.moment(f"after {name}")


class MortalJournal(VirtualJournal):
    """A controller's own view of a journal that outlives it: what it has not written yet dies with it."""

    def __init__(self, journal: Journal, life: Life) -> None:
        super().__init__(journal._engine, journal._executor, journal._url)
        self._life = life

    async def _write_with(self, rows: list[dict[str, Any]], *rest: Any, **named: Any) -> None:
        if not rows:  # `entries` writes what is pending
            self._life.lives()
            return await super()._write_with(rows, *rest, **named)
        with self._life.effect(f"writing {rows[0]['kind']} {rows[0]['act']}"):
            await super()._write_with(rows, *rest, **named)
        return None


class MortalQemu(_Qemu):
    """A QEMU whose clients may die while it answers them."""

    def _answer(self, session: Any, name: str, message: dict[str, Any]) -> None:
        life: Life | None = session.owner
        if life is None or name == "qmp_capabilities":
            return super()._answer(session, name, message)
        where = "a" if self is self.pair.source else "b"
        try:
            if name.startswith("query-"):
                life.moment(f"{name} at {where}")
                return super()._answer(session, name, message)
            life.moment(f"before {name} at {where}")
            after = "after " + name + " at " + where
            if len(life.passed) + 1 == life.until:
                # It is done, and the answer finds nobody: the connection goes before it is written.
                self._do(name, message)
                life.moment(after)
            super()._answer(session, name, message)
            life.moment(after)
        except Died:
            return None
        return None

    def _do(self, name: str, message: dict[str, Any]) -> None:
        reply = self._replies.get(name, [{}])[0]
        if callable(reply):
            reply(message.get("arguments", {}))


@dataclass
class MortalPair(QemuPair):
    """A pair with files on its hosts, and a number that rises with every controller.

    Attributes:
        files: What of the guest is on which host.
        carries: Its disks are carried along.
    """

    files: dict[str, set[str]] = field(default_factory=lambda: {"a": {"directory"}, "b": set()})
    carries: bool = False
    disks: Disks | None = None
    qemu_class = MortalQemu

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.carries:
            self.disks = Disks(self)

    def side_of(self, name: str, life: Life, *, known: bool) -> Side:
        """Return a side as a controller sees it.

        Args:
            name: ``a`` or ``b``.
            life: The controller's.
            known: It knows the QEMU's process: the one of ``a`` is found by preflight.
        """
        qemu = self.source if name == "a" else self.destination
        settings = HostSettings(address=f"192.0.2.{ord(name)}", run_dir="/run/q")
        return Side(MortalHost(name, qemu, self, life), settings, "web1", process=SOURCE if known else None)


EFFECTS: Final = {
    setup._PLACE_KEYS: "placing keys",
    setup._REMOVE_KEYS: "removing keys",
    guest_locks._BUMP: "raising the epoch",
    process_scripts.DISCARD: "cleaning up",
    process_scripts.LAUNCH: "launching",
    process_scripts.KILL: "killing",
    process_scripts.KILL_CLOSED: "killing",
}
"""What of a host's scripts is noticed outside, beside what is done to image files."""


class MortalHost(PairHost):
    """A host as one controller reaches it."""

    def __init__(self, name: str, qemu: _Qemu, pair: MortalPair, life: Life) -> None:
        super().__init__(name, qemu)
        self.pair = pair
        self.life = life

    async def connect(self) -> None:
        self.life.lives()

    async def open_unix(self, path: str, *, timeout: float = 5.0) -> Any:
        self.life.lives()
        if not self.qemu.alive:
            raise MonitorLost("connection refused", host=self.name)
        client = await self.qemu.client(self.life)
        self.life.connections.append(lambda: self.qemu.drop(self.life))
        return client

    async def script(self, source: str, args: Sequence[str] = (), **named: Any) -> Completed:
        self.life.lives()
        return await super().script(source, args, **named)

    def _do(self, source: str, args: Sequence[str]) -> bytes:
        files, disks = self.pair.files[self.name], self.pair.disks
        is_of_images = disks is not None and source in IMAGE_SCRIPTS
        if not is_of_images and source not in EFFECTS:
            if source == launch._LAUNCHING:
                return b"idle\n" if "directory" in files else b"absent\n"
            return super()._do(source, args)
        with self.life.effect(f"{EFFECTS.get(source, 'image files')} on {self.name}"):
            match source:
                case setup._PLACE_KEYS:
                    files.add("keys")
                case setup._REMOVE_KEYS:
                    files.discard("keys")
                case process_scripts.DISCARD:
                    files.clear()
                case process_scripts.LAUNCH:
                    files.add("directory")
            if disks is not None:
                disks.script(source, args)
            return super()._do(source, args)

    async def hold_lock(self, path: str, *, owner: str) -> Held:
        """Give the lock: who had it before is dead."""
        with self.life.effect(f"taking the lock on {self.name}"):
            return await super().hold_lock(path, owner=owner)

    async def read_file(self, path: str, *, limit: int = 0, offset: int = 0) -> bytes:
        self.life.lives()
        return json.dumps(ARGV).encode() if path.endswith("/argv.json") else b""
