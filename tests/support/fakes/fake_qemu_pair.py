"""Two fake QEMUs that migrate into each other, on fake hosts, for the engine: with one fault at a chosen moment.

The pair does what 7.2 does, and keeps count of the truth (who runs, who has ever run), so that a test can compare what the
engine says with what is the case.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Literal, TypeAlias

from qmp_migrate.errors import MonitorLost
from qmp_migrate.hosts import fenced, process_scripts
from qmp_migrate.hosts.base import Completed
from qmp_migrate.hosts.process import ProcessId
from qmp_migrate.migration.endpoint import guest_locks
from qmp_migrate.migration.endpoint.endpoint import Side
from qmp_migrate.settings import HostSettings
from tests.support.data.recorded_replies import COMPLETED_10_0, LISTENING
from tests.support.fakes.fake_endpoints import FakeHost
from tests.support.fakes.fake_qemu import Fails, FakeQemu, HangUp, Reply, Silence

ARGV: Final = ("/usr/bin/qemu-system-x86_64", "-name", "web1", "-S", "-incoming", "defer")
"""The destination's command line."""

SOURCE: Final = ProcessId(17, 1234, "boot")
DESTINATION: Final = ProcessId(18, 5678, "boot")

Fault: TypeAlias = Literal["refused", "unanswered", "answer lost", "cut off", "cut off afterwards"]
"""What happens to one command: QEMU refuses it; never sees it; does it, but nobody hears; and the same two with the
connection cut."""


class _Qemu(FakeQemu):
    """One QEMU of the pair: a run state, a migration status, and whether it lives."""

    def __init__(self, pair: QemuPair, run_state: str) -> None:
        super().__init__()
        self.pair = pair
        self.run_state = run_state
        self.status = "none"
        self.alive = True
        self.objects: set[str] = set()
        self.greeted: object = None
        self.on("query-status", lambda _: {"status": self.run_state, "running": self.run_state == "running"})
        self.on("query-migrate", lambda _: self._numbers())
        self.on("object-add", lambda arguments: self.objects.add(arguments["id"]) or {})
        self.on("object-del", self._delete)
        self.on("announce-self", {})
        self.on("quit", lambda _: self.die())

    def _delete(self, arguments: dict[str, Any]) -> Reply:
        if arguments["id"] not in self.objects:
            return Fails(f"object '{arguments['id']}' not found")
        self.objects.discard(arguments["id"])
        return {}

    @property
    def running(self) -> bool:
        return self.alive and self.run_state == "running"

    def _numbers(self) -> dict[str, Any]:
        if self.status == "none":
            return {}
        if self is not self.pair.source:
            return LISTENING | {"status": self.status}
        passes = 1 if self.status == "active" and not self.pair.busy else COMPLETED_10_0["ram"]["dirty-sync-count"]
        ram = COMPLETED_10_0["ram"] | {"dirty-sync-count": passes}
        if self.status == "active" and self.pair.busy and self.capabilities["postcopy-ram"]:
            # Each pass sends all of it, and all of it is dirty again then.
            sent = self.pair.looks * ram["total"] // ram["page-size"]
            ram |= {"remaining": ram["total"], "normal": sent, "dirty-sync-count": self.pair.looks}
        return COMPLETED_10_0 | {"status": self.status, "ram": ram}

    def becomes(self, status: str) -> None:
        self.status = status
        self.pair.on_becoming(self, status)
        if self._session is not None:
            self.emit("MIGRATION", {"status": status})

    def goes(self, run_state: str) -> None:
        was_running = self.run_state == "running"
        self.run_state = run_state
        now_running = run_state == "running"
        if self._session is not None and was_running != now_running and run_state != "inmigrate":
            self.emit("RESUME" if now_running else "STOP")
        self.pair.look()

    def die(self) -> HangUp:
        self.alive = False
        if self._session is not None:
            self._session.writer.close()
        return HangUp()

    @property
    def hears(self) -> bool:
        """Whether there is a client that events are sent to: one that has negotiated."""
        return self._session is self.greeted is not None and not self._session.writer.is_closing()

    def _answer(self, session: Any, name: str, message: dict[str, Any]) -> None:
        if name == "qmp_capabilities":
            self.greeted = session
            return super()._answer(session, name, message)
        fault = self.pair.fault_of(self, name)
        if fault == "refused":
            self._replies, scripted = {name: [Fails("injected")]}, self._replies
            super()._answer(session, name, message)
            self._replies = scripted
        elif fault == "cut off":
            session.writer.close()
        elif fault in {"answer lost", "cut off afterwards"}:
            reply = self._replies.get(name, [Silence()])[0]
            if callable(reply):
                reply(message.get("arguments", {}))
            if fault == "cut off afterwards":
                session.writer.close()
        elif fault is None:
            super()._answer(session, name, message)
        return None


@dataclass
class QemuPair:
    """A running guest at ``a``, to be moved to ``b``.

    Attributes:
        busy: The guest dirties so much that no pass is the last one: it must be stopped, or turned to post-copy.
        cuts: So often the connection is lost in post-copy.
        fault, at: This happens to the command of that number, counted over both QEMUs from 1.
        commands: Who was asked what, in order.
        wrong: What must never happen and did.
        ran: The destination has run the guest.
        looks: How often QEMU has looked for dirty pages.
        time_factor: That of both hosts.
        epochs: On each host: the guest's epoch, since when nobody else has had it, and for what it was taken.
        on_command: Called before each command, with how many there were before.
        on_becoming: Called with a QEMU and its new migration status.
    """

    fault: Fault | None = None
    at: int = 0
    running: bool = True
    busy: bool = False
    cuts: int = 0
    commands: list[tuple[str, str]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    ran: bool = False
    looks: int = 1
    time_factor: float = 1.0
    epochs: dict[str, tuple[int, int, str]] = field(default_factory=lambda: {"a": (0, 0, ""), "b": (0, 0, "")})
    on_command: Callable[[int], None] = lambda _number: None
    on_becoming: Callable[[_Qemu, str], None] = lambda _qemu, _status: None
    source: _Qemu = field(init=False)
    destination: _Qemu = field(init=False)
    qemu_class: ClassVar[type[_Qemu]] = _Qemu
    _stood_still: bool = False
    _asked: bool = False
    _listens: bool = False
    _recovered: asyncio.Event = field(default_factory=asyncio.Event)
    _play: asyncio.Task[None] | None = None
    _let_go: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.source = self.qemu_class(self, "running" if self.running else "paused")
        self.destination = self.qemu_class(self, "inmigrate")
        self.destination.alive = False
        self.source.on("migrate", lambda arguments: self._begin(resume="resume" in arguments))
        self.source.on("migrate-start-postcopy", lambda _: self._ask())
        self.source.on(
            "migrate-pause", lambda _: Fails("migrate-pause is currently only supported during postcopy-active")
        )
        self.destination.on(
            "migrate-pause", lambda _: Fails("migrate-pause is currently only supported during postcopy")
        )
        self.destination.on("migrate-recover", lambda _: self._listen_again())
        self.source.on("migrate_cancel", lambda _: self._cancel())
        self.source.on("yank", lambda _: self._cancel())
        self.source.on("migrate-continue", lambda _: self._go_on())
        self.source.on("cont", lambda _: self._continue_source())
        self.source.on("stop", lambda _: self._stop_source())
        self.destination.on("migrate-incoming", lambda _: self.destination.becomes("setup") or {})
        self.destination.on("cont", lambda _: self._continue_destination())

    async def __aenter__(self) -> QemuPair:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._play is not None:
            self._play.cancel()
            await asyncio.gather(self._play, return_exceptions=True)
        await self.source.__aexit__()
        await self.destination.__aexit__()

    def fault_of(self, qemu: _Qemu, command: str) -> Fault | None:
        """Note a command; return what happens to it."""
        self.on_command(len(self.commands))
        self.commands.append(("a" if qemu is self.source else "b", command))
        return self.fault if len(self.commands) == self.at else None

    def look(self) -> None:
        """Note what must never be."""
        self.ran = self.ran or self.destination.running
        if self.source.running and self.destination.running:
            self.wrong.append("two copies run")
        if self.source.running and self.ran:
            self.wrong.append("the source runs after the destination has")

    # -- what QEMU does -------------------------------------------------------------------------------------------

    def _ask(self) -> Reply:
        if not self.source.capabilities["postcopy-ram"]:
            return Fails("Enable postcopy with migrate_set_capability before the start of migration")
        self._asked = True
        return {}

    def _listen_again(self) -> Reply:
        if self.destination.status != "postcopy-paused":
            return Fails("Migrate recover can only be run when postcopy is paused.")
        self._listens = True
        return {}

    def _begin(self, *, resume: bool) -> Reply:
        if resume:
            if self.source.status != "postcopy-paused":
                return Fails("Cannot resume if there is no paused migration")
            if self._listens:
                self._recovered.set()
            return {}
        if self._play is not None:
            return Fails("There's a migration process in progress")
        self._play = asyncio.create_task(self._copy())
        return {}

    async def _copy(self) -> None:
        source, destination = self.source, self.destination
        for step in itertools.count():
            await asyncio.sleep(0.003)
            if not source.alive:
                return
            if not destination.alive:
                self._fails("failed")
                return
            match step:
                case 0:
                    source.becomes("active")
                    destination.becomes("active")
                case 1:
                    await self._passes()
                    if self._asked and source.running:
                        return await self._postcopy()
                    self._stood_still = source.run_state != "running"
                    source.goes("finish-migrate")
                case 2 if source.capabilities["pause-before-switchover"]:
                    source.becomes("pre-switchover")
                    await self._let_go.wait()
                    source.becomes("device")
                case 3:
                    destination.run_state = "paused"
                    destination.becomes("completed")
                case 4:
                    source.run_state = "postmigrate"
                    source.becomes("completed")
                    return

    async def _passes(self) -> None:
        """Pass after pass, until the guest is stopped, post-copy is asked for, or the destination is gone."""
        while self.busy and self.source.running and not self._asked and self.destination.alive and self.source.alive:
            self.looks += 1
            if self.source.hears:
                self.source.emit("MIGRATION_PASS", {"pass": self.looks})
            await asyncio.sleep(0.003)

    async def _postcopy(self) -> None:
        """In the order of 7.2: the source says so, and stops the guest then."""
        source, destination = self.source, self.destination
        if source.capabilities["pause-before-switchover"]:
            source.goes("finish-migrate")
            self._stood_still = True  # a cancel here leaves it in `postmigrate`
            source.becomes("pre-switchover")
            await self._let_go.wait()
        source.becomes("postcopy-active")
        source.goes("finish-migrate")
        destination.becomes("postcopy-active")
        await asyncio.sleep(0.003)
        destination.run_state = "paused"
        sent = 0
        while sent < 5 or (self.cuts and destination.alive and source.alive):
            await asyncio.sleep(0.003)
            if not destination.alive or not source.alive or (self.cuts and destination.running):
                self.cuts -= self.cuts > 0
                self._listens = False
                for qemu in (source, destination):
                    if qemu.alive:
                        qemu.becomes("postcopy-paused")
                await self._recovered.wait()
                self._recovered.clear()
                source.becomes("postcopy-active")
                destination.becomes("postcopy-active")
            sent += 1
        destination.becomes("completed")
        source.run_state = "postmigrate"
        source.becomes("completed")

    def _cancel(self) -> Reply:
        if self.source.status in {"postcopy-active", "postcopy-paused"}:
            self.wrong.append("a cancel in post-copy")
        if self._play is not None and not self._play.done():
            self._play.cancel()
            self._fails("cancelled")
            if self.destination.status != "completed":
                self.destination.die()
        return {}

    def _fails(self, status: str) -> None:
        """End it; a guest that stood still before the switchover is left in `postmigrate`, as 7.2 does."""
        stood_still = self._stood_still if self.source.run_state == "finish-migrate" else not self.source.running
        self.source.becomes(status)
        self.source.goes("postmigrate" if stood_still else "running")

    def _stop_source(self) -> Reply:
        if self.source.running:
            self.source.goes("paused")
        return {}

    def _go_on(self) -> Reply:
        if self.source.status != "pre-switchover":
            return Fails(f"Migration not in expected state: {self.source.status}")
        self._let_go.set()
        return {}

    def _continue_source(self) -> Reply:
        if self.source.run_state == "finish-migrate":
            return Fails("Migration is not finalized yet")
        self.source.goes("running")
        return {}

    def _continue_destination(self) -> Reply:
        if self.destination.run_state == "inmigrate":
            self.wrong.append("`cont` during inmigrate")
        self.destination.goes("running")
        return {}

    # -- what the hosts do ----------------------------------------------------------------------------------------

    def side(self, name: str) -> Side:
        qemu = self.source if name == "a" else self.destination
        process = SOURCE if name == "a" else None
        return Side(PairHost(name, qemu), HostSettings(address=f"192.0.2.{ord(name)}"), "web1", process=process)


class PairHost(FakeHost):
    """A host of the pair: a QEMU that can be launched, found and killed, locks that nobody else holds, and an epoch."""

    qemu: _Qemu

    async def open_unix(self, path: str, *, timeout: float = 5.0) -> Any:
        if not self.qemu.alive:
            raise MonitorLost("connection refused", host=self.name)
        return await super().open_unix(path, timeout=timeout)

    async def script(self, source: str, args: Sequence[str] = (), **_: Any) -> Completed:
        """Do what a script of ours does, where its controller still has the guest."""
        if source.startswith(fenced.FENCE):
            now = str(self.qemu.pair.epochs[self.name][0])
            if args[1] != now:
                return Completed(fenced._STATUS, b"", f"{fenced._MARK}{now}".encode())
            source, args = source.removeprefix(fenced.FENCE), args[2:]
        return Completed(0, self._do(source, args), b"")

    def _do(self, source: str, args: Sequence[str]) -> bytes:
        match source:
            case process_scripts.LAUNCH:
                self.qemu.alive = True
            case process_scripts.KILL | process_scripts.KILL_CLOSED:
                self.qemu.die()
            case process_scripts.COMMAND_LINE:
                return base64.b64encode(b"".join(word.encode() + b"\0" for word in ARGV))
            case guest_locks._PLACE:
                return self.name.encode()
            case guest_locks._BUMP:
                return self._raise_epoch(int(args[1]), args[2])
        match source:
            case process_scripts.LAUNCH | process_scripts.IDENTIFY if self.qemu.alive:
                return " ".join(["live", *DESTINATION.words]).encode()
            case process_scripts.IS_ALIVE | process_scripts.WAIT_GONE if self.qemu.alive:
                return b"live"
            case process_scripts.IS_ALIVE | process_scripts.WAIT_GONE | process_scripts.IDENTIFY:
                return b"gone"
            case process_scripts.KILL | process_scripts.KILL_CLOSED:
                return b"gone"
        return b""

    def _raise_epoch(self, at_least: int, purpose: str) -> bytes:
        before, since, who = self.qemu.pair.epochs[self.name]
        epoch = max(before, at_least) + 1
        since = since if who == purpose else epoch
        self.qemu.pair.epochs[self.name] = (epoch, since, purpose)
        return f"{before} {epoch} {since}".encode()

    async def hold_lock(self, path: str, *, owner: str) -> Held:
        return Held()

    async def write_file(self, path: str, data: bytes, *, mode: int = 0o600) -> None: ...

    async def read_file(self, path: str, *, limit: int = 0, offset: int = 0) -> bytes:
        return b""


class Held:
    """A lock that is never lost."""

    def __init__(self) -> None:
        self.lost = asyncio.Event()

    async def release(self) -> None: ...
