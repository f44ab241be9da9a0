"""A guest's disks between the two QEMUs of a migration: from nothing, over copies in step, to copies that are proven whole.

``begin`` opens each new image a second time in the destination's QEMU, beside the guest's own node, which is inactive while
it waits for the guest and reads everything anew when it takes over: it is as if both QEMUs stood on shared storage. What
is opened for the copy punches holes, whatever the guest's own node is set to, so sparse images stay sparse; and it is gone
before the guest runs.

From ``in step`` on, what the guest writes is on both sides before its write is done. So at ``pre-switchover`` next to
nothing is left, and ``finish`` proves it: each job must end without an error, after a flush over there.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from qmp_migrate.aio import gather_all
from qmp_migrate.errors import (
    CommandFailed,
    MigrationFailed,
    MonitorError,
    MonitorTimeout,
    QmpCommandFailed,
    QmpMigrateError,
)
from qmp_migrate.hosts.scripts import script
from qmp_migrate.migration.endpoint.endpoint import Side
from qmp_migrate.migration.model.request import MigrationRequest
from qmp_migrate.migration.model.watchdog import DiskWatchdog
from qmp_migrate.migration.storage.disk_plan import DiskCopy
from qmp_migrate.migration.transport.setup import Wires
from qmp_migrate.qemu import encryption, images, storage
from qmp_migrate.qemu.images import Target
from qmp_migrate.qemu.monitor import Monitor
from qmp_migrate.qemu.storage import Mirror

POLL_S: Final = 0.25
WATCH_S: Final = 1.0
"""How often the copies are looked at while they are made, and while they are in step and memory is copied."""

REACH_S: Final = 5.0


class DiskStopped(Exception):
    """Somebody asked for a cancel while the disks were copied."""


@dataclass(frozen=True, slots=True)
class DiskProgress:
    """How far the copies are, bytes; both grow while the guest writes."""

    done: int
    total: int


@dataclass(slots=True)
class Mirroring:
    """The copies of one migration.

    Attributes:
        source, destination: The two sides.
        request: What is wanted.
        copies: Which disks.
        begun: Something of it may exist in the QEMUs.
        proven: Every copy has ended without an error: all that the guest has written is over there.
        done_bytes: What was copied so far.
    """

    source: Side
    destination: Side
    request: MigrationRequest
    copies: tuple[DiskCopy, ...]
    begun: bool = False
    proven: bool = False
    done_bytes: int = 0
    _closing: bool = False
    _later: bool = False
    _asked: set[str] = field(default_factory=set)
    _ended: dict[str, int] = field(default_factory=dict)

    # -- names: nothing has to be remembered to find everything again ------------------------------------------------

    @property
    def credentials(self) -> str:
        """Id of the TLS object for disks, on both sides."""
        return f"tls-{self.request.id}nbd"

    def job(self, copy: DiskCopy) -> str:
        """Id of the block job at the source."""
        return f"{self.request.id}-j{copy.index}"

    def node(self, copy: DiskCopy) -> str:
        """Name of the source's node that is the connection."""
        return f"{self.request.id}-n{copy.index}"

    def target(self, copy: DiskCopy) -> Target:
        """The image at the destination, as it is opened for the copy."""
        protocol = "file" if copy.makes else "host_device"
        return Target(f"{self.request.id}-t{copy.index}", copy.path, copy.format, protocol, direct=copy.direct)

    # -- the way forward ---------------------------------------------------------------------------------------------

    async def begin(self, wires: Wires) -> None:
        """Open the images at the destination, connect, and begin to copy.

        Args:
            wires: Of this migration, wired: its key, and the port that memory goes to.

        Raises:
            MonitorError: A QEMU refused something.
            MigrationFailed: The source cannot reach the destination; nothing was asked of its QEMU.
        """
        self.begun = True
        tls = self.credentials if self.request.encrypt else None
        destination = await self.destination.attach()
        if tls is not None:
            await encryption.add_credentials(destination, tls, wires.key_directory(self.destination), "server")
        listen, ports = self.destination.migration_listen, self.destination.settings.ports
        port = await storage.serve(destination, listen, ports, tls=tls, avoid=(wires.port,))
        for copy in self.copies:
            await images.add_node(destination, self.target(copy))
            await storage.export(destination, self.target(copy).node)
        await self._reach(port)
        source, address = await self.source.attach(), self.destination.migration_address
        if tls is not None:
            await encryption.add_credentials(source, tls, wires.key_directory(self.source), "client")
            await storage.refuses_plain(
                source, self.node(self.copies[0]), self.target(self.copies[0]).node, address=address, port=port
            )
        self._later = await storage.can_change_mode(source)
        devices = {device.key: device for device in await images.devices(source)}
        for copy in self.copies:
            name = self.target(copy).node
            await storage.connect(source, self.node(copy), address=address, port=port, export_name=name, tls=tls)
            if copy.key not in devices:
                raise MigrationFailed(
                    f"disk {copy.key} is not there any more", safe_at_source=True, host=self.source.name
                )
            await storage.mirror(
                source,
                self.job(copy),
                device=devices[copy.key].node,
                target=self.node(copy),
                sync=copy.sync,
                in_step=not self._later,
                speed=self._share(len(self.copies)),
            )

    async def _reach(self, port: int) -> None:
        """See from the source's shell that the port answers: QEMU would try in its main loop, and the guest would wait."""
        try:
            await self.source.host.script(
                _REACH, [self.destination.migration_address, str(port), f"{REACH_S:g}"], timeout=REACH_S + 10
            )
        except CommandFailed as error:
            raise MigrationFailed(
                f"{self.source.name} cannot reach {self.destination.migration_address} port {port}, where the disks go",
                safe_at_source=True,
                code="not_connected",
                hint="does a firewall drop it? set migration_ports of the host and open them from the source",
                host=self.source.name,
            ) from error

    def _share(self, jobs: int) -> int:
        """Return what each of some jobs may send, bytes per second; 0: as fast as it goes."""
        limit = self.request.bandwidth_bytes_per_s
        return max(1, limit // max(1, jobs)) if limit else 0

    async def until_in_step(self, cancel: asyncio.Event, on_progress: Callable[[DiskProgress], None]) -> None:
        """Return once every copy is in step with its disk, and every medium is over there as a whole.

        May be called again after a monitor was lost.

        Args:
            cancel: Set it to give up.
            on_progress: Told how far it is.

        Raises:
            DiskStopped: `cancel` was set.
            MigrationFailed: A copy failed, or nothing moves any more.
            MonitorLost: The source's monitor is gone; QEMU copies on.
        """
        watchdog = DiskWatchdog(self.request, self.source.name, time.monotonic())
        shared = 0
        while True:
            if cancel.is_set():
                raise DiskStopped
            waiting, progress = await self._look()
            on_progress(progress)
            if not waiting:
                return
            failure = watchdog.look(time.monotonic(), done=progress.done, total=progress.total)
            if failure is not None:
                raise failure
            behind = [copy for copy, state in waiting if not (state and state.ready)]
            if len(behind) != shared:
                shared = len(behind)
                await self._share_again(behind)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await cancel.wait()

    async def _share_again(self, behind: Sequence[DiskCopy]) -> None:
        """Divide the bandwidth between the copies that are not complete."""
        if self.request.bandwidth_bytes_per_s:
            monitor = await self.source.attach()
            for copy in behind:
                with contextlib.suppress(QmpCommandFailed):  # it has ended: the next look tells
                    await storage.set_speed(monitor, self.job(copy), self._share(len(behind)))

    async def _look(self) -> tuple[list[tuple[DiskCopy, Mirror | None]], DiskProgress]:
        """Look at all copies, and do for each what is next.

        Returns:
            Those that are not where they should be, and the sums.
        """
        monitor = await self.source.attach()
        states = await storage.mirrors(monitor)
        known = await images.jobs(monitor)
        waiting: list[tuple[DiskCopy, Mirror | None]] = []
        done = total = 0
        for copy in self.copies:
            name = self.job(copy)
            if name in self._ended:
                done, total = done + self._ended[name], total + self._ended[name]
                continue
            state, job = states.get(name), known.get(name)
            if _whole(copy, job):
                continue
            if job is None or job.concluded:
                raise self._failed(copy, job)
            done += state.done if state else job.done
            total += max(state.total if state else job.total, copy.expected_bytes if not (state and state.ready) else 0)
            if not await self._advance(monitor, copy, state):
                waiting.append((copy, state))
        self.done_bytes = done
        return waiting, DiskProgress(done, total)

    async def _advance(self, monitor: Monitor, copy: DiskCopy, state: Mirror | None) -> bool:
        """Do what is next for one copy; True: it is where it should be before memory is copied."""
        if state is None or not state.ready:
            return False
        name = self.job(copy)
        if not copy.writable:  # nobody writes to it: what is ready is whole
            self._ended[name] = (await storage.finish(monitor, name)).done
            return True
        if not self._later:
            return True
        if name not in self._asked:
            await storage.hold_in_step(monitor, name)
            self._asked.add(name)
            return False
        return bool(state.in_step)

    def _failed(self, copy: DiskCopy, job: images.Job | None) -> MigrationFailed:
        why = job.error if job and job.error else "its job has ended, and not by this controller"
        return MigrationFailed(
            f"the copy of {copy.source_path} to {copy.path} on {self.destination.name} failed: {why}",
            safe_at_source=True,
            code="disk_copy_failed",
            hint="is the disk over there full or broken, or the network between the hosts? the guest has not seen it",
            host=self.destination.name,
        )

    async def watch(self) -> MigrationFailed | None:
        """Return what has failed, once something has; None where nobody can be asked any more.

        For the time that memory is copied; end it before `finish`.
        """
        while True:
            await asyncio.sleep(WATCH_S)
            try:
                known = await images.jobs(await self.source.attach())
            except MonitorTimeout:
                continue  # unknown; who copies memory watches the time
            except QmpMigrateError:
                return None
            if self._closing:
                return None
            for copy in self.copies:
                job = known.get(self.job(copy))
                if (job is None or job.concluded) and not _whole(copy, job):
                    return self._failed(copy, job)

    async def finish(self) -> None:
        """Prove that all that the guest has written is over there, and leave its images to the destination alone.

        For a source that is stopped at ``pre-switchover``. May be called again: until the source's QEMU ends, it knows how
        each copy has ended.

        Raises:
            MonitorError: It is not proven: the hand-over must not go on.
        """
        self._closing = True
        source, destination = await self.source.attach(), await self.destination.attach()
        proofs = await gather_all(*(storage.finish(source, self.job(copy)) for copy in self.copies))
        self.done_bytes = sum(proof.done for proof in proofs)
        # In this order on the one monitor: no export, then no node, so that nobody writes when the guest takes over.
        await gather_all(
            storage.stop_serving(destination),
            *(images.remove_target(destination, self.target(copy)) for copy in self.copies),
            *(storage.disconnect(source, self.node(copy)) for copy in self.copies),
        )
        self.proven = True

    # -- the way back, and the end -----------------------------------------------------------------------------------

    async def cut(self) -> None:
        """Cut the connections, out of band: a source that waits for them is free again. Never raises."""
        with contextlib.suppress(QmpMigrateError):
            monitor = await self.source.attach()
            for copy in self.copies:
                await storage.yank(monitor, self.node(copy))

    async def let_go(self) -> list[str]:
        """Take everything of the copies away from the source's QEMU; its guest goes on with its own disks.

        May be called again, and where nothing is there.

        Returns:
            One line for each thing that could not be taken away.
        """
        if not self.begun:
            return []
        try:
            monitor = await self.source.attach()
            await self.cut()
            for copy in self.copies:
                await storage.abort(monitor, self.job(copy), node=self.node(copy))
                await storage.disconnect(monitor, self.node(copy))
            await _delete_credentials(monitor, self.credentials)
        except MonitorError as error:
            return [f"copies of disks may be left in the source's QEMU: {error}"]
        except QmpMigrateError as error:
            return [f"the source cannot be asked whether copies of disks are left in its QEMU: {error}"]
        return []

    async def leave_destination(self) -> None:
        """Take the key away from the destination's QEMU, which runs the guest now.

        Raises:
            MonitorError, TransportError: It could not be.
        """
        await _delete_credentials(await self.destination.attach(), self.credentials)


def _whole(copy: DiskCopy, job: images.Job | None) -> bool:
    """Tell whether a medium has arrived: nobody writes to it, so its copy may have ended long ago."""
    return not copy.writable and job is not None and job.concluded and not job.error


async def _delete_credentials(monitor: Monitor, name: str) -> None:
    try:
        await monitor.execute("object-del", {"id": name})
    except QmpCommandFailed as error:
        if "not found" not in error.desc:
            raise


_REACH: Final = script("storage/reach")
