"""Restore a guest from a state file: check the file, start a QEMU that waits, let it read, mark the file as used, `cont`.

Before anything is started the whole file is read and its checksum compared. The renaming to the used name is the hand-over
(`ownership`), and it is on the disk before the guest executes anything: so that no file is restored twice. Once the guest
is seen to run, the file is removed: its disks go on, and a state that is older than its disks is only good to do harm.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from qmp_migrate.errors import CommandFailed, Fenced, FileFailed, LaunchFailed, MigrationFailed, QmpMigrateError
from qmp_migrate.hosts.process import launch
from qmp_migrate.migration.savefile import scripts
from qmp_migrate.migration.savefile.file_format import CHUNK_BYTES, ZERO_CHUNK
from qmp_migrate.migration.savefile.restore_completion import RestoreEnding
from qmp_migrate.migration.savefile.restore_plan import RestorePlan
from qmp_migrate.migration.savefile.save import SLOWEST_BYTES_PER_S, STALL_S
from qmp_migrate.migration.savefile.save_completion import POLL_S
from qmp_migrate.migration.savefile.save_plan import knows_file_uri
from qmp_migrate.qemu import features
from qmp_migrate.qemu import migration as qmp


@dataclass(slots=True)
class Restoring(RestoreEnding):
    """One restore under way; see `RestoreEnding`."""

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
            self.tell(ended.message)
            raise cancelled
        return ended

    async def _forward(self, plan: RestorePlan) -> None:
        side, request, document = self.side, self.request, plan.document
        await self.enter("launching", argv=list(plan.argv))
        side.process = await launch(side.host, directory=side.directory, argv=plan.argv, timeout=side.launch_limit_s)
        await self.enter("loading", process=side.process.words)
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
        await self.enter("marking")
        await side.host.script(scripts.RENAME, [request.path, request.used], timeout=60)
        await self.enter("marked")
        if self.wants_running:
            await self.let_run()

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


def _ms_since(begun: float) -> int:
    return round((time.monotonic() - begun) * 1000)
