"""How a save ends, whatever happened: the guest goes on where it was, or the file is complete and the QEMU gone.

Used by the save itself after its last step and after any failure, and by `recover`. All decisions are `ownership`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from qmp_migrate.errors import Fenced, MigrationFailed, OutcomeUnknown, QmpMigrateError
from qmp_migrate.hosts.process import wait_gone
from qmp_migrate.hosts.scripts import script
from qmp_migrate.migration.endpoint import cleanup
from qmp_migrate.migration.endpoint.endpoint import Side
from qmp_migrate.migration.endpoint.guest_locks import GuestLock
from qmp_migrate.migration.journal.operations import DONE, Operations
from qmp_migrate.migration.precopy import failures
from qmp_migrate.migration.savefile import ownership, scripts
from qmp_migrate.migration.savefile.ownership import Act, Name
from qmp_migrate.migration.savefile.save_request import SaveRequest, SaveResult
from qmp_migrate.qemu import features
from qmp_migrate.qemu import migration as qmp

POLL_S: Final = 0.1
QUIT_S: Final = 20.0
SETTLE_S: Final = 30.0

SEALED: Final = frozenset({"sealed", "renaming", "renamed"})
RENAMING: Final = frozenset({"renaming", "renamed"})
"""Steps at which the file is complete, and at which it may have its final name."""

_STORED: Final = script("savefile/stored")


@dataclass(slots=True)
class SaveEnding:
    """One save: what is known and held of it, and how it is brought to its end.

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

    async def enter(self, step: str, **data: Any) -> None:
        """Write down what is about to be done, and what was learnt before it. Raises as `Operations.enter` does."""
        await self.operations.enter(self.request.id, step, epoch=self.lock.epoch, **data)
        self.step = step

    def restorable(self) -> dict[str, Any]:
        """Return the migration parameters that a save changes, as they were: what is put back."""
        names = ("max-bandwidth", "multifd-channels", "direct-io")
        return {name: self.before[name] for name in names if name in self.before}

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
                final = await self._ended(failure, why)
                await self._tidy_back()
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

    async def _ended(self, failure: QmpMigrateError | None, why: str) -> MigrationFailed:
        side = self.side
        shutdown = await side.last_words()
        if shutdown is not None:
            return failures.ended(shutdown, side.name, doing="saved")
        return MigrationFailed(
            f"{failure.message if failure else 'the save did not happen'}; {why}",
            safe_at_source=False,
            code="guest_lost",
            hint=f"see {side.directory}/qemu.log on {side.name}, then start the guest again",
            host=side.name,
        )

    async def _end(self) -> None:
        try:
            await self.enter(DONE, outcome=self.result.outcome, result=self.result.to_dict())
        except Fenced:
            raise
        except QmpMigrateError as error:
            self.result.warnings.append(f"the end of this save is not in the journal: {error}")

    async def settle(self) -> tuple[Act, str]:
        """Look, ask `ownership.after_save`, do what it says, and again, until an end is proven."""
        deadline = time.monotonic() + SETTLE_S
        while True:
            final, part = await self._names()
            observed = await self.side.observe()
            qemu = ownership.classify(alive=observed.alive, run_state=observed.run_state, status=observed.status)
            act, why = ownership.after_save(
                qemu,
                final,
                part,
                sealed=self.step in SEALED,
                renaming=self.step in RENAMING,
                renamed=self.step == "renamed",
                was_running=self.was_running,
            )
            late = time.monotonic() > deadline
            if act in ownership.ENDS and (act is not Act.PARK or late):
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
            await self.enter(step)
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
            before = self.restorable()
            if before:
                await qmp.set_parameters(monitor, before)
            await qmp.set_capabilities(monitor, known, {})

    async def _state_now(self) -> str:
        observed = await self.side.observe()
        return "runs" if observed.run_state == "running" else f"is {observed.run_state or 'there'}"

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
            await cleanup.remove_guest_directory(side)
        except Fenced:
            raise
        except QmpMigrateError as error:
            self.result.warnings.append(f"{side.directory} on {side.name} could not be removed: {error}")
