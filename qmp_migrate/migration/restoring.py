"""Restore a guest from a state file: check the file, start a QEMU that waits, let it read, mark the file as used, `cont`.

Before anything is started the whole file is read and its checksum compared. The renaming to the used name is the hand-over
(`state_owner`), and it is on the disk before the guest executes anything: so that no file is restored twice. Once the guest
is seen to run, the file is removed: its disks go on, and a state that is older than its disks is only good to do harm.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from qmp_migrate.errors import (
    CommandFailed,
    Fenced,
    FileFailed,
    LaunchFailed,
    MigrationFailed,
    OutcomeUnknown,
    QmpMigrateError,
)
from qmp_migrate.hosts.process import ProcessId, launch
from qmp_migrate.migration import rollback, state_owner
from qmp_migrate.migration import state_scripts as scripts
from qmp_migrate.migration.locks import GuestLock
from qmp_migrate.migration.operations import DONE, Operations
from qmp_migrate.migration.request import new_id
from qmp_migrate.migration.restore_plan import RestorePlan
from qmp_migrate.migration.save_plan import knows_file_uri
from qmp_migrate.migration.saving import POLL_S, SETTLE_S, SLOWEST_BYTES_PER_S, STALL_S, check_path
from qmp_migrate.migration.side import Side
from qmp_migrate.migration.state_file import CHUNK_BYTES, ZERO_CHUNK
from qmp_migrate.migration.state_owner import Act, Name
from qmp_migrate.qemu import features
from qmp_migrate.qemu import migration as qmp

VERIFY_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class RestoreRequest:
    """A restore that somebody wants.

    Attributes:
        path: The file, absolute, on `host`.
        host: Where the guest is to be.
        paused: It does not go on by itself, also if it ran when it was saved.
        force: Restore although its disks have changed since.
        keep: Keep the file, under its used name.
        id: Made here.
    """

    path: str
    host: str
    paused: bool = False
    force: bool = False
    keep: bool = False
    id: str = field(default_factory=lambda: "r" + new_id()[1:])

    def __post_init__(self) -> None:
        check_path(self.path)

    @property
    def used(self) -> str:
        """The name of a file that was used."""
        return f"{self.path}.used-{self.id}"


@dataclass(slots=True)
class RestoreResult:
    """``restore.result/1``: how a restore ended. Milliseconds and bytes as the names say.

    Attributes:
        owner: ``destination``: the guest is on the host; ``file``: the file has it, as before; ``none``, ``unknown``.
        state: The guest's run state in the end.
        verify_ms, load_ms: For the checksum; for QEMU to read the state.
        kept: The name that the used file has now; None: it is removed.
    """

    id: str
    vm: str
    host: str
    file: str
    outcome: str = "failed"
    owner: str = "file"
    state: str = ""
    bytes: int = 0
    verify_ms: int = 0
    load_ms: int = 0
    total_ms: int = 0
    kept: str | None = None
    warnings: list[str] = field(default_factory=list)
    error: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the document."""
        return {"schema": "restore.result/1", **asdict(self)}


@dataclass(slots=True)
class Restoring:
    """One restore under way, or one that is being settled.

    Attributes:
        request: What is wanted.
        side: Where the guest is to be; its process, once there is one.
        operations: Its row is there.
        lock: Held.
        result: Grows.
        stamp: ``device:inode:size`` of the file.
        wants_running: The guest is to run in the end.
        step: The last step that was entered.
        tell: Called with one line for each thing that happens.
    """

    request: RestoreRequest
    side: Side
    operations: Operations
    lock: GuestLock
    result: RestoreResult
    stamp: str
    wants_running: bool
    tell: Callable[[str], None]
    step: str = "begun"

    async def _enter(self, step: str, **data: Any) -> None:
        await self.operations.enter(self.request.id, step, epoch=self.lock.epoch, **data)
        self.step = step

    async def run(self, plan: RestorePlan) -> QmpMigrateError | None:
        """Restore. Returns None once the guest is the host's; else what is to be told.

        Raises:
            asyncio.CancelledError: The caller was cancelled; the guest was brought to a proven state first.
        """
        task = asyncio.create_task(self._forward(plan), name=f"restore {self.request.id}")
        cancelled: asyncio.CancelledError | None = None
        failure: QmpMigrateError | None = None
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            failure = MigrationFailed("the restore was cancelled", safe_at_source=False, code="cancelled")
        except Fenced:
            raise
        except QmpMigrateError as error:
            failure = error
        ended = await asyncio.shield(self.settle_and_end(failure))
        if cancelled is not None and ended is not None:
            raise cancelled
        return ended

    async def _forward(self, plan: RestorePlan) -> None:
        side, request, document = self.side, self.request, plan.document
        await self._enter("launching")
        side.process = await launch(side.host, directory=side.directory, argv=plan.argv)
        await self._enter("loading", process=side.process.words)
        begun = time.monotonic()
        await self._load(plan)
        self.result.load_ms = _ms_since(begun)
        self.tell(f"the state is read ({self.result.load_ms / 1000:.1f} s)")
        if document.console_bytes:
            words = [request.path, document.state_bytes, document.console_bytes, side.directory, document.console_sum]
            try:
                await side.host.script(scripts.TAKE_CONSOLE, [str(word) for word in words], timeout=60)
            except CommandFailed as error:
                self.result.warnings.append(f"the guest's serial log did not come along: {error.stderr.strip()}")
        await self._enter("marking")
        await side.host.script(scripts.RENAME, [request.path, request.used], timeout=60)
        await self._enter("marked")
        if self.wants_running:
            await self._continue()

    async def verify(self, plan: RestorePlan) -> None:
        """Read the whole state and compare its checksum. Comes before anything is written down or started.

        Raises:
            FileFailed: The file is damaged, or cannot be read.
        """
        document, path, begun = plan.document, self.request.path, time.monotonic()
        limit = 60.0 + document.state_bytes / SLOWEST_BYTES_PER_S
        words = [path, str(document.state_bytes), str(CHUNK_BYTES), ZERO_CHUNK]
        try:
            found = (await self.side.host.script(scripts.SUM, words, timeout=limit)).text
        except CommandFailed as error:
            raise FileFailed(f"{path} cannot be read: {error.stderr.strip()}", host=self.side.name) from error
        if found != document.state_sum:
            raise FileFailed(
                f"{path} is damaged: its checksum is {found[:12]}… and should be {document.state_sum[:12]}…",
                hint="nothing was started; copy it again from where it was saved",
                host=self.side.name,
            )
        self.result.verify_ms = _ms_since(begun)
        self.tell(f"the checksum of {path} is right ({self.result.verify_ms / 1000:.1f} s)")

    async def _load(self, plan: RestorePlan) -> None:
        side, document = self.side, plan.document
        monitor = await side.attach()
        known = await features.probe(monitor)
        wanted = {"events": True}
        parameters: dict[str, Any] = {}
        if document.format == "mapped-ram":
            if not known.has_capability("mapped-ram"):
                raise LaunchFailed(
                    f"QEMU {known.version} cannot read {self.request.path}: it has no mapped-ram (9.0 and later have)",
                    hint="restore it with a newer QEMU; `save --format stream` writes a file that every QEMU reads",
                    host=side.name,
                )
            wanted["mapped-ram"] = True
            if document.channels:
                wanted["multifd"] = True
                parameters["multifd-channels"] = document.channels
        if known.has_capability("late-block-activate"):
            wanted["late-block-activate"] = True
        await qmp.set_capabilities(monitor, known, wanted)
        if parameters:
            await qmp.set_parameters(monitor, parameters)
        link = scripts.link_path(side.directory, side.name)
        await side.host.script(scripts.LINK_TO, [self.request.path, link])
        file_uri = document.format == "mapped-ram" or knows_file_uri(await monitor.execute("query-qmp-schema"))
        uri = scripts.read_uri(link, file_uri=file_uri, state_bytes=document.state_bytes)
        try:
            await monitor.execute("migrate-incoming", {"uri": uri}, timeout=STALL_S)
            await self._loaded(document.state_bytes)
        except QmpMigrateError as error:
            raise await self._with_stderr(error) from error

    async def _loaded(self, state_bytes: int) -> None:
        deadline = time.monotonic() + STALL_S + state_bytes / SLOWEST_BYTES_PER_S
        while True:
            monitor = await self.side.attach()
            info, run = await qmp.query(monitor), await qmp.run_status(monitor)
            if info.status == "completed" and run.status != "inmigrate":
                return
            if info.status == "failed" or time.monotonic() > deadline:
                raise LaunchFailed(f"the state was not read: {info.error_desc or info.status}", host=self.side.name)
            await asyncio.sleep(POLL_S / 2)

    async def _with_stderr(self, error: QmpMigrateError) -> QmpMigrateError:
        observed, text = await self.side.observe(), await self.side.stderr_tail()
        if not text:
            return error
        what = "QEMU ended while it read the state" if observed.alive is False else error.message
        return LaunchFailed(
            f"{what}: {text.splitlines()[-1]}",
            stderr=text,
            hint="QEMU's own words say what it did not like; the file is as it was",
            host=self.side.name,
        )

    async def _continue(self) -> None:
        await self._enter("continuing")
        monitor = await self.side.attach()
        await monitor.execute("cont")
        deadline = time.monotonic() + VERIFY_S
        while not (status := await qmp.run_status(monitor)).running:
            if time.monotonic() > deadline or status.status in {"shutdown", "guest-panicked", "io-error"}:
                self.result.warnings.append(f"the guest is {status.status} after `cont`")
                return
            await asyncio.sleep(POLL_S / 5)
        with contextlib.suppress(QmpMigrateError):
            await qmp.announce(monitor)

    # -- to a proven end, whatever happened -------------------------------------------------------------------------

    async def settle_and_end(
        self, failure: QmpMigrateError | None, *, recovering: bool = False
    ) -> QmpMigrateError | None:
        """Act until either the QEMU or the file has the guest; write that down.

        Args:
            failure: What happened; None: nothing, or nobody knows.
            recovering: Another controller began it, and is gone.

        Returns:
            What is to be told; None: the QEMU has the guest.

        Raises:
            Fenced: Another controller has the guest.
        """
        if recovering:
            failure = MigrationFailed(
                f"the controller of this restore is gone (it was at: {self.step})",
                safe_at_source=False,
                code="controller_gone",
                hint="restore it again when you like",
            )
        act, why = await self.settle()
        result, side, request = self.result, self.side, self.request
        said = failure.message if failure else "the restore did not happen"
        final: QmpMigrateError | None = None
        match act:
            case Act.AT_QEMU:
                await self._at_qemu(failure)
            case Act.IN_FILE:
                result.outcome, result.owner = "rolled_back", "file"
                await self._discard()
                final = MigrationFailed(
                    f"{said}; the guest is in {request.path} on {side.name}, as before",
                    safe_at_source=True,
                    code=failure.code if failure else None,
                    stderr=getattr(failure, "stderr", ""),
                    hint=failure.hint if failure else None,
                    host=side.name,
                )
            case Act.GUEST_GONE:
                result.outcome, result.owner = "failed", "none"
                final = MigrationFailed(
                    f"{said}; {why}",
                    safe_at_source=False,
                    code="guest_lost",
                    stderr=await side.stderr_tail(),
                    hint=f"its disks are newer than its state ({request.used}) now: start it from its disks",
                    host=side.name,
                )
                await self._discard()
            case _:
                result.outcome, result.owner = "unknown", "unknown"
                final = OutcomeUnknown(
                    f"{said}; {why}",
                    hint=f"when {side.name} answers: qmp-migrate recover {request.id}\n  look at {request.path} and "
                    f"{request.used} there before you continue or restore anything by hand",
                    host=side.name,
                )
        if final is not None:
            result.error = final.to_dict()
        if act is not Act.PARK:
            try:
                await self._enter(DONE, outcome=result.outcome, result=result.to_dict())
            except Fenced:
                raise
            except QmpMigrateError as error:
                result.warnings.append(f"the end of this restore is not in the journal: {error}")
        return final

    async def _at_qemu(self, failure: QmpMigrateError | None) -> None:
        result, side, request = self.result, self.side, self.request
        result.outcome, result.owner = "completed", "destination"
        if failure is not None:
            result.warnings.append(f"went on after: {failure.message}")
        try:
            monitor = await side.attach()
            # `cont` may have been on its way when the controller died; there is only this copy, so once more harms nobody.
            if self.wants_running and (await qmp.run_status(monitor)).status == "paused":
                await self._continue()
            result.state = (await qmp.run_status(monitor)).status
            await qmp.set_capabilities(monitor, await features.probe(monitor), {})
            gone = [] if request.keep else [request.used]
            result.kept = request.used if request.keep else None
            await side.host.script(scripts.CLEAN, [f"{side.directory}/{scripts.LINK}", *gone], timeout=60)
        except Fenced:
            raise
        except QmpMigrateError as error:
            result.warnings.append(f"something is left to be done on {side.name}: {error}")

    async def _discard(self) -> None:
        with contextlib.suppress(QmpMigrateError):
            await self.side.detach()
        try:
            await rollback.remove_guest_directory(self.side)
        except Fenced:
            raise
        except QmpMigrateError as error:
            self.result.warnings.append(f"{self.side.directory} could not be removed: {error}")

    async def settle(self) -> tuple[Act, str]:
        """Look, ask `state_owner.after_restore`, do what it says, and again, until an end is proven."""
        deadline = time.monotonic() + SETTLE_S
        while True:
            final, used = await self._names()
            observed = await self.side.observe()
            qemu = state_owner.classify(alive=observed.alive, run_state=observed.run_state, status=observed.status)
            act, why = state_owner.after_restore(qemu, final, used, continuing=self.step == "continuing")
            late = time.monotonic() > deadline
            if act in state_owner.ENDS and (act is not Act.PARK or late):
                return act, why
            if late:
                return Act.PARK, f"not settled within {SETTLE_S:g} s; last: {why}"
            try:
                await self._act(act)
            except Fenced:
                raise
            except QmpMigrateError as error:
                self.tell(f"{act}: {error}")
            await asyncio.sleep(POLL_S)

    async def _names(self) -> tuple[Name, Name]:
        try:
            await self.side.host.connect()
            words = [self.stamp, self.request.path, self.request.used]
            lines = (await self.side.host.script(scripts.LOOK, words, timeout=60)).text.split()
            return Name(lines[0]), Name(lines[1])
        except Fenced:
            raise
        except (QmpMigrateError, ValueError, IndexError):
            return Name.UNKNOWN, Name.UNKNOWN

    async def _act(self, act: Act) -> None:
        side, request = self.side, self.request
        match act:
            case Act.KILL:
                await side.kill()
            case Act.MARK_USED:
                await side.host.script(scripts.RENAME, [request.path, request.used], timeout=60)
            case Act.MARK_UNUSED:
                await side.host.script(scripts.RENAME, [request.used, request.path], timeout=60)
            case _:  # pragma: no cover
                raise AssertionError(act)


def process_of(words: list[str] | None) -> ProcessId | None:
    """Return the process that an operation's row names, if any."""
    return ProcessId.of(words) if words else None


def _ms_since(begun: float) -> int:
    return round((time.monotonic() - begun) * 1000)
