"""Save a guest to a file on its host: stop it, have QEMU write its state, prove the file, and only then end the QEMU.

The file is written under a working name in the same directory, put onto the disk, read back for its checksum, completed with
the document that it is restored from, and renamed. The renaming is the hand-over (`state_owner`): whatever fails before it,
a full disk above all, the guest goes on where it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import posixpath
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Literal

from qmp_migrate.errors import (
    CommandFailed,
    Fenced,
    FileFailed,
    MigrationFailed,
    OutcomeUnknown,
    QmpMigrateError,
    TransportError,
    UsageError,
)
from qmp_migrate.hosts.process import wait_gone
from qmp_migrate.migration import rollback, state_owner
from qmp_migrate.migration import state_scripts as scripts
from qmp_migrate.migration.image_stamps import open_images, take_stamps
from qmp_migrate.migration.locks import GuestLock
from qmp_migrate.migration.operations import DONE, Operations
from qmp_migrate.migration.request import new_id
from qmp_migrate.migration.side import Side
from qmp_migrate.migration.state_file import CHUNK_BYTES, ZERO_CHUNK, Document, Format
from qmp_migrate.migration.state_owner import Act, Name
from qmp_migrate.qemu import features
from qmp_migrate.qemu import migration as qmp
from qmp_migrate.vm.names import validate_name

POLL_S: Final = 0.1
STALL_S: Final = 120.0
"""Without a byte of progress for this long, storage that hangs is no longer waited for."""

SLOWEST_BYTES_PER_S: Final = 20 << 20
"""Time limits for reading a state file back count on no less than this."""

QUIT_S: Final = 20.0
SETTLE_S: Final = 30.0
CONSOLE_BYTES: Final = 1 << 20
WRITER_TENTHS: Final = 600
CHANNELS: Final = 2

SEALED: Final = frozenset({"sealed", "renaming", "renamed"})
RENAMING: Final = frozenset({"renaming", "renamed"})

FormatChoice = Literal["auto", "mapped-ram", "stream"]


def check_path(path: str) -> str:
    """Return an absolute path of a file on a host.

    Raises:
        UsageError: It is none.
    """
    bad = not path.startswith("/") or path.endswith("/") or any(c in path for c in "\0\n")
    if bad or posixpath.basename(path) in {".", ".."}:
        raise UsageError(
            f"{path!r} is not the absolute path of a file",
            hint="the file is on the guest's host: for example /srv/states/web1.state",
        )
    return path


@dataclass(frozen=True, slots=True)
class SaveRequest:
    """A save that somebody wants.

    Attributes:
        vm: The guest.
        path: The file, absolute, on the guest's host. Must not be there.
        format: ``auto``: ``mapped-ram`` where this QEMU has it, else a ``stream``. A stream can be read by every QEMU.
        channels: Threads that write RAM (multifd), with ``mapped-ram``; 0: without multifd.
        id: Made here.

    Raises:
        UsageError, InvalidName: See `qmp_migrate.errors`.
    """

    vm: str
    path: str
    format: FormatChoice = "auto"
    channels: int = CHANNELS
    id: str = field(default_factory=lambda: "s" + new_id()[1:])

    def __post_init__(self) -> None:
        validate_name(self.vm, "guest name")
        check_path(self.path)
        if self.format not in {"auto", "mapped-ram", "stream"}:
            raise UsageError(f"there is no format {self.format!r}", hint="auto, mapped-ram or stream")
        if not 0 <= self.channels <= 255:
            raise UsageError(f"{self.channels} channels are not possible", hint="0 to 255, for example --channels 4")

    @property
    def part(self) -> str:
        """The working name of the file."""
        return f"{self.path}.part-{self.id}"


@dataclass(slots=True)
class SaveResult:
    """``save.result/1``: how a save ended. Milliseconds and bytes as the names say.

    Attributes:
        owner: ``file``: the guest is in it; ``source``: it goes on at its host; ``none``, ``unknown``.
        bytes: The file's length; of ``mapped-ram`` much of it may be holes.
        stored_bytes: What it takes on the disk.
        stop_ms, write_ms, prove_ms: Until the guest stood still; while QEMU wrote; fsync, reading back and checksum.
    """

    id: str
    vm: str
    host: str
    file: str
    outcome: str = "failed"
    owner: str = "source"
    format: str = ""
    channels: int = 0
    direct_io: bool = False
    bytes: int = 0
    stored_bytes: int = 0
    checksum: str = ""
    stop_ms: int = 0
    write_ms: int = 0
    prove_ms: int = 0
    total_ms: int = 0
    warnings: list[str] = field(default_factory=list)
    error: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the document."""
        return {"schema": "save.result/1", **asdict(self)}


@dataclass(frozen=True, slots=True)
class SavePlan:
    """What a save needs to know beforehand; made by `save_plan.look`.

    Attributes:
        document: All of the state file's document that is known before.
        file_uri: This QEMU knows ``file:``.
        direct: The file system takes direct I/O, and QEMU has it.
        warnings: What is to be told.
    """

    document: Document
    file_uri: bool
    direct: bool
    warnings: tuple[str, ...] = ()


@dataclass(slots=True)
class Saving:
    """One save under way, or one that is being settled.

    Attributes:
        request: What is wanted.
        side: The guest's.
        operations: Its row is there.
        lock: Held.
        result: Grows.
        step: The last step that was entered.
        was_running: The guest ran when it began.
        stamp: ``device:inode:size`` of the sealed file.
        before: Migration parameters as they were.
        tell: Called with one line for each thing that happens.
    """

    request: SaveRequest
    side: Side
    operations: Operations
    lock: GuestLock
    result: SaveResult
    tell: Callable[[str], None]
    was_running: bool = True
    step: str = "begun"
    stamp: str = ""
    before: dict[str, Any] = field(default_factory=dict)

    async def _enter(self, step: str, **data: Any) -> None:
        await self.operations.enter(self.request.id, step, epoch=self.lock.epoch, **data)
        self.step = step

    # -- the way forward --------------------------------------------------------------------------------------------

    async def run(self, plan: SavePlan) -> QmpMigrateError | None:
        """Save. Returns None once the guest is in the file and its QEMU gone; else what is to be told.

        Raises:
            asyncio.CancelledError: The caller was cancelled; the guest was brought to a proven state first.
        """
        task = asyncio.create_task(self._forward(plan), name=f"save {self.request.id}")
        cancelled: asyncio.CancelledError | None = None
        try:
            await asyncio.shield(task)
            await self.settle_and_end(None)
            return None
        except asyncio.CancelledError as error:
            cancelled = error
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            failure: QmpMigrateError = MigrationFailed("the save was cancelled", safe_at_source=True, code="cancelled")
        except Fenced:
            raise
        except QmpMigrateError as error:
            failure = error
        ended = await asyncio.shield(self.settle_and_end(failure))
        if cancelled is not None and ended is not None:
            raise cancelled
        return ended

    async def _forward(self, plan: SavePlan) -> None:
        monitor = await self.side.attach()
        self.before = dict((await features.probe(monitor)).parameters)
        await self._enter("stopping", before=self._restorable())
        begun = time.monotonic()
        if self.was_running:
            await monitor.execute("stop")
        self.result.stop_ms = _ms_since(begun)
        self.tell(f"{self.request.vm} is stopped on {self.side.name}")
        await self._enter("writing")
        begun = time.monotonic()
        await self._write(plan)
        self.result.write_ms = _ms_since(begun)
        self.tell(f"the state is written ({self.result.write_ms / 1000:.1f} s); checksum and fsync")
        await self._prove(plan)
        await self._enter("renaming")
        await self.side.host.script(scripts.RENAME, [self.request.part, self.request.path], timeout=60)
        await self._enter("renamed")
        self.tell(f"{self.request.path} is complete ({self.result.prove_ms / 1000:.1f} s for checksum and fsync)")

    def _restorable(self) -> dict[str, Any]:
        names = ("max-bandwidth", "multifd-channels", "direct-io")
        return {name: self.before[name] for name in names if name in self.before}

    async def _write(self, plan: SavePlan) -> None:
        side, document = self.side, plan.document
        monitor = await side.attach()
        link = scripts.link_path(side.directory, side.name)
        await side.host.script(scripts.BEGIN, [self.request.part, link])
        known = await features.probe(monitor)
        wanted = {"events": True}
        parameters: dict[str, Any] = {"max-bandwidth": 0}
        if document.format == "mapped-ram":
            wanted["mapped-ram"] = True
            if document.channels:
                wanted["multifd"] = True
                parameters["multifd-channels"] = document.channels
            if plan.direct and document.channels:
                parameters["direct-io"] = True
        await qmp.set_capabilities(monitor, known, wanted)
        await qmp.set_parameters(monitor, parameters)
        uri = scripts.write_uri(link, file_uri=plan.file_uri)
        await monitor.execute("migrate", {"uri": uri})
        await self._written()
        if not plan.file_uri:
            try:
                await side.host.script(scripts.WHOLE, [link, str(WRITER_TENTHS)], timeout=WRITER_TENTHS / 10 + 10)
            except CommandFailed as error:
                raise await self._not_written(error.stderr.strip()) from error

    async def _written(self) -> None:
        """Wait until QEMU says that it has written everything."""
        moved, since = -1, time.monotonic()
        while True:
            info = await qmp.query(await self.side.attach())
            if info.status == "completed":
                return
            if info.status in {"failed", "cancelled"}:
                raise await self._not_written(info.error_desc or "")
            transferred = info.ram.transferred if info.ram else 0
            if transferred != moved:
                moved, since = transferred, time.monotonic()
            if time.monotonic() - since > STALL_S:
                raise await self._not_written(f"nothing was written for {STALL_S:g} s")
            await asyncio.sleep(POLL_S)

    async def _not_written(self, why: str) -> MigrationFailed:
        said = await self.side.stderr_tail()
        lines = said.splitlines()[-5:]
        # Behind `exec:` QEMU itself only sees a broken pipe.
        full = next((line for line in lines if "No space left" in line), "")
        reason = full or why or (lines[-1] if lines else "it gives no reason")
        return MigrationFailed(
            f"QEMU could not write its state: {reason}",
            safe_at_source=True,
            code="not_written",
            stderr=said,
            hint="is the disk full, or its file system read-only?",
            host=self.side.name,
        )

    async def _prove(self, plan: SavePlan) -> None:
        """Put the file onto the disk, read it back, complete it."""
        side, result, part = self.side, self.result, self.request.part
        begun = time.monotonic()
        limit = 120.0 + plan.document.memory_bytes / SLOWEST_BYTES_PER_S
        try:
            told = (await side.host.script(scripts.PROVE, [part, "-", *_chunks()], timeout=limit)).text.split()
            console = (await side.host.script(scripts.CONSOLE, [part, side.directory, str(CONSOLE_BYTES)])).text.split()
            # Only now: QEMU has given the images up, nothing is written to them any more.
            images = await take_stamps(side.host, await open_images(await side.attach()))
            document = replace(
                plan.document,
                state_bytes=int(told[0]),
                state_sum=told[1],
                console_bytes=int(console[0]),
                console_sum=console[1],
                images=images,
            )
            seal = document.sealed()
            whole = document.state_bytes + document.console_bytes + len(seal)
            done = await side.host.script(scripts.SEAL, [part, str(whole)], input=seal, timeout=60)
            self.stamp = done.text
        except (CommandFailed, ValueError, IndexError) as error:
            raise FileFailed(
                f"{part} could not be completed: {getattr(error, 'stderr', '').strip() or error}",
                hint="is the disk full?",
                host=side.name,
            ) from error
        result.bytes, result.checksum = whole, document.state_sum
        result.prove_ms = _ms_since(begun)
        await self._enter("sealed", stamp=self.stamp)

    # -- to a proven end, whatever happened -------------------------------------------------------------------------

    async def settle_and_end(
        self, failure: QmpMigrateError | None, *, recovering: bool = False
    ) -> QmpMigrateError | None:
        """Act until either the guest goes on or the file is complete and the QEMU gone; write that down.

        Args:
            failure: What happened; None: nothing, or nobody knows.
            recovering: Another controller began it, and is gone.

        Returns:
            What is to be told; None: the guest is in the file.

        Raises:
            Fenced: Another controller has the guest.
        """
        if recovering:
            failure = MigrationFailed(
                f"the controller of this save is gone (it was at: {self.step})",
                safe_at_source=True,
                code="controller_gone",
                hint="save it again when you like",
            )
        act, why = await self.settle()
        result, side, request = self.result, self.side, self.request
        match act:
            case Act.IN_FILE:
                result.outcome, result.owner = "completed", "file"
                if failure is not None:
                    result.warnings.append(f"went on after: {failure.message}")
                await self._tidy_after()
                final: QmpMigrateError | None = None
            case Act.AT_QEMU:
                result.outcome, result.owner = "rolled_back", "source"
                await self._tidy_back()
                state = await self._state_now()
                cause = failure or MigrationFailed("the save did not happen", safe_at_source=True)
                final = MigrationFailed(
                    f"{cause.message}; {request.vm} {state} on {side.name}",
                    safe_at_source=True,
                    code=cause.code,
                    stderr=getattr(cause, "stderr", ""),
                    hint=cause.hint,
                    host=side.name,
                )
            case Act.GUEST_GONE:
                result.outcome, result.owner = "failed", "none"
                await self._tidy_back()
                final = MigrationFailed(
                    f"{failure.message if failure else 'the save did not happen'}; {why}",
                    safe_at_source=False,
                    code="guest_lost",
                    hint=f"see {side.directory}/qemu.log on {side.name}, then start the guest again",
                    host=side.name,
                )
            case _:
                result.outcome, result.owner = "unknown", "unknown"
                final = OutcomeUnknown(
                    f"{failure.message if failure else 'the save did not happen'}; {why}",
                    hint=f"when {side.name} answers: qmp-migrate recover {request.id}\n  look at {request.path} and "
                    f"{request.part} there before you continue or end anything by hand",
                    host=side.name,
                )
        if final is not None:
            result.error = final.to_dict()
        if act is not Act.PARK:
            await self._end()
        return final

    async def _end(self) -> None:
        try:
            await self._enter(DONE, outcome=self.result.outcome, result=self.result.to_dict())
        except Fenced:
            raise
        except QmpMigrateError as error:
            self.result.warnings.append(f"the end of this save is not in the journal: {error}")

    async def settle(self) -> tuple[Act, str]:
        """Look, ask `state_owner.after_save`, do what it says, and again, until an end is proven."""
        deadline = time.monotonic() + SETTLE_S
        while True:
            final, part = await self._names()
            observed = await self.side.observe()
            qemu = state_owner.classify(alive=observed.alive, run_state=observed.run_state, status=observed.status)
            act, why = state_owner.after_save(
                qemu,
                final,
                part,
                sealed=self.step in SEALED,
                renaming=self.step in RENAMING,
                renamed=self.step == "renamed",
                was_running=self.was_running,
            )
            late = time.monotonic() > deadline
            if act in state_owner.ENDS and (act is not Act.PARK or late):
                return act, why
            if late and act is Act.CONTINUE:
                return Act.AT_QEMU, "the guest could not be continued"
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
            words = [self.stamp, self.request.path, self.request.part]
            lines = (await self.side.host.script(scripts.LOOK, words, timeout=60)).text.split()
            final, part = Name(lines[0]), Name(lines[1])
        except Fenced:
            raise
        except (QmpMigrateError, ValueError, IndexError):
            return Name.UNKNOWN, Name.UNKNOWN
        # Without a stamp nothing was sealed, so that nothing can have been renamed.
        return (final if self.stamp else Name.ABSENT), part

    async def _act(self, act: Act) -> None:
        side, request = self.side, self.request
        match act:
            case Act.CANCEL:
                await self._enter_leniently("back")
                await qmp.cancel(await side.attach())
            case Act.CONTINUE:
                await self._enter_leniently("back")
                await self._unset()
                await (await side.attach()).execute("cont")
            case Act.QUIT:
                await self._quit()
            case Act.RENAME:
                await side.host.script(scripts.RENAME, [request.part, request.path], timeout=60)
            case Act.VOID:
                self.result.warnings.append(f"{request.path} was stale and is removed")
                await side.host.script(scripts.RENAME, [request.path, request.part], timeout=60)
            case _:  # pragma: no cover
                raise AssertionError(act)

    async def _enter_leniently(self, step: str) -> None:
        """The way back is taken even where the journal's disk is full, unless another controller has the guest."""
        self.step = step
        try:
            await self._enter(step)
        except Fenced:
            raise
        except QmpMigrateError as error:
            self.result.warnings.append(str(error))

    async def _quit(self) -> None:
        side = self.side
        assert side.process is not None
        with contextlib.suppress(QmpMigrateError):
            await (await side.attach()).execute("quit")
        await side.detach()
        if not await wait_gone(side.host, side.process, QUIT_S):
            await side.kill()

    async def _unset(self) -> None:
        """Put capabilities and parameters back: what stays would break the next migration."""
        with contextlib.suppress(QmpMigrateError):
            monitor = await self.side.attach()
            known = await features.probe(monitor)
            before = self._restorable()
            if before:
                await qmp.set_parameters(monitor, before)
            await qmp.set_capabilities(monitor, known, {})

    async def _state_now(self) -> str:
        observed = await self.side.observe()
        return "runs on" if observed.run_state == "running" else f"is {observed.run_state or 'there'}"

    async def _tidy_back(self) -> None:
        """Remove the working file and the link; put QEMU's settings back."""
        await self._unset()
        link = f"{self.side.directory}/{scripts.LINK}"
        try:
            await self.side.host.script(scripts.CLEAN, [link, self.request.part], timeout=60)
        except Fenced:
            raise
        except QmpMigrateError as error:
            self.result.warnings.append(f"{self.request.part} on {self.side.name} could not be removed: {error}")

    async def _tidy_after(self) -> None:
        side, link = self.side, f"{self.side.directory}/{scripts.LINK}"
        try:
            stored = (await side.host.script(_STORED, [self.request.path], check=False)).text
            self.result.stored_bytes = int(stored) if stored.isdigit() else 0
            await side.host.script(scripts.CLEAN, [link])
            await side.detach()
            await rollback.remove_guest_directory(side)
        except Fenced:
            raise
        except (QmpMigrateError, TransportError) as error:
            self.result.warnings.append(f"{side.directory} on {side.name} could not be removed: {error}")


_STORED: Final = 'echo $(($(stat -c %b -- "$1") * 512))'


def _chunks() -> list[str]:
    return [str(CHUNK_BYTES), ZERO_CHUNK]


def _ms_since(begun: float) -> int:
    return round((time.monotonic() - begun) * 1000)


def chosen_format(choice: FormatChoice, *, has_mapped_ram: bool) -> Format | None:
    """Return the format to write; None: this QEMU does not have the one that is wanted."""
    if choice == "stream" or (choice == "auto" and not has_mapped_ram):
        return "stream"
    return "mapped-ram" if has_mapped_ram else None
