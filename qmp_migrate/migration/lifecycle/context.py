"""What is known and held of one migration, shared by its way forward, its way back and its recovery."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Final, Literal

from qmp_migrate.errors import (
    Fenced,
    JournalError,
    LaunchFailed,
    LockBusy,
    MigrationFailed,
    QmpMigrateError,
    TransportError,
)
from qmp_migrate.migration.endpoint.endpoint import Side
from qmp_migrate.migration.endpoint.guest_locks import GuestLock
from qmp_migrate.migration.lifecycle.hooks import Hooks
from qmp_migrate.migration.lifecycle.recorder import Chronicle
from qmp_migrate.migration.model.phases import AFTER_COMMIT, Phase
from qmp_migrate.migration.model.progress import ProgressMeter
from qmp_migrate.migration.model.request import MigrationRequest
from qmp_migrate.migration.ownership.decision import Facts
from qmp_migrate.migration.precopy.runner import Copying
from qmp_migrate.migration.storage.disk_plan import DiskCopy
from qmp_migrate.migration.storage.mirror import Mirroring
from qmp_migrate.migration.transport.negotiation import Profile
from qmp_migrate.migration.transport.setup import Wires

RENEW_S: Final = 8.0
"""How long taking a lost lock again may take before an act on the other host goes ahead without."""


@dataclass(slots=True)
class Course:
    """One migration.

    Attributes:
        request: What is wanted.
        source, destination: The two sides.
        chronicle: Written before each act, and told of everything.
        profile: How its memory travels.
        running: The guest ran when it began; one that was paused arrives paused.
        one_pass: See `Copying.one_pass`.
        stopped_by_us: We have stopped the guest for its migration, or were about to; in the journal before it is done.
        postcopy: Post-copy was asked for, or was about to be, and not refused: only forward from here (DESIGN rule 6).
        lost_with: Host whose QEMU has ended in post-copy, and with it memory that exists nowhere else; ``""``: none.
        continued: The destination has acknowledged a ``cont`` in post-copy; in the journal, too.
        witnessed: This controller has driven it from its beginning, so it knows whether ``cont`` was sent.
        lock: The guest's locks, once they are held.
        wires: What was set up between the two QEMUs.
        copying: The passes, once they have begun.
        armed: The journal says that the destination may run the guest, or is about to.
        mandated: The hosts' agents may have been told to hand the guest over, should this controller be gone.
        agents_released: The source's agent has proven that the source had completed (`delegation.Records`).
        completed: The journal says that the guest was handed over: the source had completed and ``cont`` was acknowledged.
        cont_sent: This controller has sent ``cont`` to the destination, or was about to.
        cont_refused: QEMU refused it, or it surely never reached QEMU.
        held_by_others: Another controller has held the guest since this migration began.
        split_brain: Both copies were seen to run, once.
        told: A person has said which copy is to be the guest.
        copies: Disks that are carried along.
        mirroring: Their copies, once they have begun.
        meter: Makes reports of numbers.
        hooks: The user's commands, and which of them have run.
    """

    request: MigrationRequest
    source: Side
    destination: Side
    chronicle: Chronicle
    running: bool
    profile: Profile = field(default_factory=Profile)
    one_pass: bool = False
    stopped_by_us: bool = False
    postcopy: bool = False
    lost_with: str = ""
    continued: bool = False
    witnessed: bool = True
    lock: GuestLock | None = None
    wires: Wires = field(default_factory=Wires)
    copying: Copying | None = None
    armed: bool = False
    mandated: bool = False
    agents_released: bool = False
    completed: bool = False
    cont_sent: bool = False
    cont_refused: bool = False
    held_by_others: bool = False
    split_brain: bool = False
    told: Literal["source", "destination"] | None = None
    copies: tuple[DiskCopy, ...] = ()
    mirroring: Mirroring | None = None
    meter: ProgressMeter = field(init=False)
    hooks: Hooks = field(default_factory=Hooks)
    _arming: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        self.meter = ProgressMeter(self.request.id)

    @contextlib.asynccontextmanager
    async def holding(self, lock: GuestLock) -> AsyncIterator[GuestLock]:
        """Act under a lock: while it lasts, the hosts refuse what this controller asks once another one has the guest."""
        self.lock = lock
        bare = self.source.host, self.destination.host
        self.source.host, self.destination.host = lock.fence(self.source), lock.fence(self.destination)
        try:
            yield lock
        finally:
            self.source.host, self.destination.host = bare
            await lock.release()

    @property
    def committed(self) -> bool:
        """``cont`` was sent and not refused: forward is the only safe way (DESIGN rule 4)."""
        return self.cont_sent and not self.cont_refused

    @property
    def disks_behind(self) -> bool:
        """Disks are copied along, and it is not proven that all that the guest has written is over there."""
        return bool(self.copies) and not (self.mirroring is not None and self.mirroring.proven)

    def facts(self, patience: bool) -> Facts:
        """Return what `decision.decide` is told beside the two QEMUs' states."""
        return Facts(
            may_have_run=self.armed,
            never_ran=self.witnessed and not self.committed,
            source_completed=self.completed
            or self.agents_released
            or (self.copying is not None and self.copying.timeline.completed is not None),
            was_running=self.running,
            stopped_by_us=self.stopped_by_us,
            patience=patience,
            ran=self.running and (self.completed or self.continued or self.chronicle.phase in AFTER_COMMIT),
            postcopy=self.postcopy,
            split_brain=self.split_brain,
            told=self.told,
        )

    async def will_stop(self, reason: str) -> None:
        """Write down that the guest is about to be stopped for its migration: whatever comes, it must run again.

        Raises:
            JournalError: It could not be written: it must not be stopped.
        """
        self.stopped_by_us = True
        await self.chronicle.journal.intent(self.request.id, "stop-guest", reason=reason)

    async def will_start_postcopy(self, reason: str) -> None:
        """Write down that the point of no return comes: post-copy is about to be asked for.

        Raises:
            JournalError: It could not be written: it must not be asked for.
        """
        await self.finish_arming()
        await self.chronicle.journal.intent(self.request.id, "start-postcopy", reason=reason)
        if not self.witnessed or self.held_by_others:
            await self.chronicle.enter(Phase.POSTCOPY)
        else:
            # The commit may be written already, for an ordinary end that seemed near. It is written anew once the source has
            # stopped: if post-copy fails before that, the journal shows that the destination has never run.
            await self.chronicle.enter(Phase.POSTCOPY, may_have_run=False)
            self.armed, self._arming = False, None
        self.postcopy = True

    async def no_postcopy(self) -> None:
        """QEMU has refused post-copy: there is a way back again."""
        self.postcopy = False
        with contextlib.suppress(JournalError):
            await self.chronicle.journal.intent(self.request.id, "no-postcopy")

    async def was_continued(self) -> None:
        """Write down that the destination runs the guest in post-copy: nobody need continue it again."""
        self.continued = True
        with contextlib.suppress(JournalError):
            await self.chronicle.journal.intent(self.request.id, "continued")

    def arm(self) -> None:
        """Begin to write the commit down, while the last pass runs: the fsync is off the blackout (rule 4).

        Not of a paused guest: nothing hurries there, and nobody sends it ``cont``.
        """
        if self.running:
            self._arm()

    def _arm(self) -> None:
        if self._arming is None:
            self.armed = True
            self._arming = asyncio.create_task(self.chronicle.journal.arm_commit(self.request.id))
            # Who waits for it sees its error; if nobody does any more, nobody minds.
            self._arming.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def be_armed(self) -> None:
        """Return once the commit is written down.

        Raises:
            JournalError: It could not be: ``cont`` must not be sent.
        """
        self._arm()
        assert self._arming is not None
        await asyncio.shield(self._arming)  # who waits may be given up; the write may not

    async def finish_arming(self) -> None:
        """Wait for a write that is under way, whatever comes of it: the way back must not be overtaken by it."""
        if self._arming is not None:
            with contextlib.suppress(QmpMigrateError):
                await asyncio.shield(self._arming)

    async def disarm(self) -> None:
        """Write down that the destination has surely not run: it is about to be ended, and then nobody can ask it.

        Without this, a controller that dies between the destination's end and the source's resume would leave a guest
        that nobody may resume.
        """
        if self.armed and self.facts(patience=True).never_ran:
            with contextlib.suppress(JournalError):
                await self.chronicle.journal.disarm_commit(self.request.id)

    async def still_ours(self) -> None:
        """Prove that the guest is still this controller's to act on; take a lost lock again where nobody else has.

        Raises:
            Fenced: Another controller has the guest, or has had it since: do nothing more.
            MigrationFailed: The lock is lost and cannot be taken again now.
        """
        if self.lock is None or not self.lock.lost:
            return
        try:
            async with asyncio.timeout(RENEW_S):
                await self.lock.renew()
        except Fenced:
            raise
        except LockBusy as error:
            raise Fenced(error.message, hint=error.hint, host=error.host) from error
        except (TransportError, TimeoutError) as error:
            raise MigrationFailed(
                f"the guest's lock was lost: another controller may hold it ({error or 'no answer'})",
                safe_at_source=False,
                code="lock_lost",
                hint="the connection to a host was cut; when it is back: qmp-migrate recover " + self.request.id,
                host=getattr(error, "host", None),
            ) from error

    async def with_stderr(self, error: QmpMigrateError) -> QmpMigrateError:
        """Return what a destination that died wrote to its standard error, instead of the error: people need that."""
        observed = await self.destination.observe()
        text = await self.destination.stderr_tail()
        if observed.alive is False and text:
            return LaunchFailed(
                f"the destination QEMU ended: {text.splitlines()[-1]}",
                stderr=text,
                hint="QEMU's own words say what it did not like",
                host=self.destination.name,
            )
        return error
