"""Save a guest to a file on its host: stop it, have QEMU write its state, prove the file, and only then end the QEMU.

The file is written under a working name in the same directory, put onto the disk, read back for its checksum, completed with
the document that it is restored from, and renamed. The renaming is the hand-over (`ownership`): whatever fails before it,
a full disk above all, the guest goes on where it is.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from typing import Any, Final

from qmp_migrate.errors import CommandFailed, Fenced, FileFailed, MigrationFailed, QmpMigrateError
from qmp_migrate.migration.savefile import scripts
from qmp_migrate.migration.savefile.file_format import CHUNK_BYTES, ZERO_CHUNK, Document
from qmp_migrate.migration.savefile.image_stamps import open_images, take_stamps
from qmp_migrate.migration.savefile.save_completion import POLL_S, SaveEnding
from qmp_migrate.qemu import features
from qmp_migrate.qemu import migration as qmp

STALL_S: Final = 120.0
"""Without a byte of progress for this long, storage that hangs is no longer waited for."""

SLOWEST_BYTES_PER_S: Final = 20 << 20
"""Time limits for reading a state file back count on no less than this."""

CONSOLE_BYTES: Final = 1 << 20
WRITER_TENTHS: Final = 600


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
class Saving(SaveEnding):
    """One save under way; see `SaveEnding`."""

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
            self.tell(ended.message)
            raise cancelled
        return ended

    async def _forward(self, plan: SavePlan) -> None:
        monitor = await self.side.attach()
        self.before = dict((await features.probe(monitor)).parameters)
        await self.enter("stopping", before=self.restorable())
        begun = time.monotonic()
        if self.was_running:
            await monitor.execute("stop")
        self.result.stop_ms = _ms_since(begun)
        self.tell(f"{self.request.vm} is stopped on {self.side.name}")
        await self.enter("writing")
        begun = time.monotonic()
        await self._write(plan)
        self.result.write_ms = _ms_since(begun)
        self.tell(f"the state is written ({self.result.write_ms / 1000:.1f} s); checksum and fsync")
        await self._prove(plan)
        await self.enter("renaming")
        await self.side.host.script(scripts.RENAME, [self.request.part, self.request.path], timeout=60)
        await self.enter("renamed")
        self.tell(f"{self.request.path} is complete ({self.result.prove_ms / 1000:.1f} s for checksum and fsync)")

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
            told = (
                await side.host.script(scripts.PROVE, [part, "-", str(CHUNK_BYTES), ZERO_CHUNK], timeout=limit)
            ).text.split()
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
        await self.enter("sealed", stamp=self.stamp)


def _ms_since(begun: float) -> int:
    return round((time.monotonic() - begun) * 1000)
