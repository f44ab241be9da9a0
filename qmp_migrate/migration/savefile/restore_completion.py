"""How a restore ends, whatever happened: the QEMU has the guest and the file is used, or the file has it as before.

Used by the restore itself after its last step and after any failure, and by `recover`. All decisions are `ownership`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from qmp_migrate.errors import Fenced, MigrationFailed, OutcomeUnknown, QmpMigrateError
from qmp_migrate.migration.endpoint import cleanup
from qmp_migrate.migration.endpoint.endpoint import Side
from qmp_migrate.migration.endpoint.guest_locks import GuestLock
from qmp_migrate.migration.journal.operations import DONE, Operations
from qmp_migrate.migration.savefile import ownership, scripts
from qmp_migrate.migration.savefile.ownership import Act, Name
from qmp_migrate.migration.savefile.restore_request import RestoreRequest, RestoreResult
from qmp_migrate.migration.savefile.save_completion import POLL_S, SETTLE_S
from qmp_migrate.qemu import features
from qmp_migrate.qemu import migration as qmp

VERIFY_S: Final = 10.0


@dataclass(slots=True)
class RestoreEnding:
    """One restore: what is known and held of it, and how it is brought to its end.

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

    async def enter(self, step: str, **data: Any) -> None:
        """Write down what is about to be done, and what was learnt before it. Raises as `Operations.enter` does."""
        await self.operations.enter(self.request.id, step, epoch=self.lock.epoch, **data)
        self.step = step

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
                await self.enter(DONE, outcome=result.outcome, result=result.to_dict())
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
                await self.let_run()
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
            await cleanup.remove_guest_directory(self.side)
        except Fenced:
            raise
        except QmpMigrateError as error:
            self.result.warnings.append(f"{self.side.directory} could not be removed: {error}")

    async def settle(self) -> tuple[Act, str]:
        """Look, ask `ownership.after_restore`, do what it says, and again, until an end is proven."""
        deadline = time.monotonic() + SETTLE_S
        while True:
            final, used = await self._names()
            observed = await self.side.observe()
            qemu = ownership.classify(alive=observed.alive, run_state=observed.run_state, status=observed.status)
            act, why = ownership.after_restore(qemu, final, used, continuing=self.step == "continuing")
            late = time.monotonic() > deadline
            if act in ownership.ENDS and (act is not Act.PARK or late):
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

    async def let_run(self) -> None:
        """Send `cont`, after it is written down, and see the guest run."""
        await self.enter("continuing")
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
