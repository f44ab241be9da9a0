"""What a migration does about disks that are carried along, step by step: written down, done, and taken back.

Nothing here happens in a migration without copies.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from typing import Final

from qmp_migrate.errors import Fenced, MigrationFailed, QmpMigrateError
from qmp_migrate.migration.journal.store import Entry
from qmp_migrate.migration.lifecycle.context import Course
from qmp_migrate.migration.model.phases import Phase
from qmp_migrate.migration.precopy.runner import CancelRequested, Copying
from qmp_migrate.migration.storage import images
from qmp_migrate.migration.storage.disk_plan import DiskCopy
from qmp_migrate.migration.storage.mirror import DiskProgress, DiskStopped, Mirroring

MAKE: Final = "make-images"
MIRROR: Final = "mirror-disks"
PROVEN: Final = "disks-proven"
"""What the journal calls these acts."""


async def make_images(course: Course) -> None:
    """Make the empty images at the destination.

    Raises:
        FileFailed, LaunchFailed, MonitorError: They could not be made.
    """
    if not course.copies:
        return
    side, chronicle = course.destination, course.chronicle
    await chronicle.intent(MAKE, host=side.name, disks=[copy.to_dict() for copy in course.copies])
    await images.make(side, course.request.id, course.copies)
    if images.needs_maker(course.copies):
        # Whoever finds this QEMU after a crash takes it for a destination that waits: it is ended, as that would be.
        await chronicle.intent("launch-destination", host=side.name, argv=images.maker_argv(side))
        await images.fill(side, course.request.id, course.copies)
    chronicle.did(MAKE)


async def begin(course: Course, cancel: asyncio.Event) -> None:
    """Begin to copy the disks."""
    if not course.copies:
        return
    if cancel.is_set():
        raise CancelRequested
    course.mirroring = Mirroring(course.source, course.destination, course.request, course.copies)
    await course.chronicle.intent(MIRROR)
    await course.chronicle.enter(Phase.DISKS_MIRRORING)
    await course.mirroring.begin(course.wires)


async def until_in_step(course: Course, cancel: asyncio.Event) -> None:
    """Return once the copies are in step with the disks.

    Raises:
        CancelRequested: `cancel` was set.
        MigrationFailed: A copy failed.
        MonitorLost: The source's monitor is gone; QEMU copies on.
    """
    mirroring = course.mirroring
    if mirroring is None:
        return
    begun = time.monotonic()

    def tell(progress: DiskProgress) -> None:
        elapsed_ms = int((time.monotonic() - begun) * 1000)
        course.chronicle.reporter.progress(
            course.meter.read_disks(progress.done, progress.total, elapsed_ms=elapsed_ms)
        )

    try:
        await mirroring.until_in_step(cancel, tell)
    except DiskStopped:
        raise CancelRequested from None
    course.chronicle.result.disk_bytes = mirroring.done_bytes


@contextlib.asynccontextmanager
async def watched(course: Course, copying: Copying) -> AsyncIterator[None]:
    """While memory is copied, let the copying fail as soon as a disk's copy has."""
    mirroring = course.mirroring
    if mirroring is None:
        yield
        return

    async def watch() -> None:
        failure = await mirroring.watch()
        if failure is not None:
            copying.fail(failure)

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def prove(course: Course) -> None:
    """At ``pre-switchover``: prove that the copies are whole; only then may the source go on.

    Raises:
        MigrationFailed: They are not.
    """
    mirroring = course.mirroring
    if mirroring is None:
        return
    try:
        await mirroring.finish()
    except Fenced:
        raise
    except QmpMigrateError as error:
        raise MigrationFailed(
            f"the disks at {course.destination.name} are not proven to be whole: {error.message}",
            safe_at_source=True,
            code="disk_copy_failed",
            hint=error.hint,
            host=course.destination.name,
        ) from error
    course.chronicle.result.disk_bytes = mirroring.done_bytes
    course.chronicle.did(PROVEN, disk_bytes=mirroring.done_bytes)


def found(course: Course, entries: Sequence[Entry]) -> None:
    """Take in what another controller has written down about disks."""
    made = next((entry.data for entry in reversed(entries) if (entry.kind, entry.act) == ("intent", MAKE)), None)
    if made is None:
        return
    course.copies = tuple(DiskCopy.of(data) for data in made["disks"])
    mirroring = Mirroring(course.source, course.destination, course.request, course.copies)
    mirroring.begun = any((entry.kind, entry.act) == ("intent", MIRROR) for entry in entries)
    proven = next((entry.data for entry in reversed(entries) if (entry.kind, entry.act) == ("result", PROVEN)), None)
    if proven is not None:
        course.chronicle.result.disk_bytes = mirroring.done_bytes = int(proven["disk_bytes"])
    course.mirroring = mirroring


async def free_source(course: Course) -> None:
    """Before anything else on the way back: what the guest writes must not wait for the destination any more."""
    if course.mirroring is not None:
        await course.mirroring.let_go()


async def take_back(course: Course, *, never_ran: bool) -> list[str]:
    """After the guest is proven not to be the destination's, and its QEMU there gone: leave nothing of the copies.

    Args:
        course: The migration.
        never_ran: The destination has surely not run the guest. If it may have, its images may be the newer ones, and stay.

    Returns:
        One line for each thing that is left.
    """
    if not course.copies:
        return []
    left = await course.mirroring.let_go() if course.mirroring is not None else []
    if course.destination.fenced or not never_ran:
        why = "nobody can look there" if course.destination.fenced else "the guest may have run there"
        names = ", ".join(copy.path for copy in course.copies)
        return [*left, f"copies of disks stay on {course.destination.name}, {why}: {names}"]
    return left + await images.remove(course.destination, course.request.id, course.copies)


async def conclude(course: Course) -> list[str]:
    """After the guest is proven to run at the destination, and the source's QEMU gone: the copies are the disks now.

    Returns:
        One line for each thing that is not done yet.
    """
    if not course.copies:
        return []
    source, destination, request = course.source, course.destination, course.request
    try:
        if course.mirroring is not None and (await destination.observe()).run_state is not None:
            await course.mirroring.leave_destination()
        await images.keep(destination, request.id, course.copies)
        if course.held_by_others or (source.fenced and request.source_images != "keep"):
            course.chronicle.warn(f"the disks' images stay on {source.name}, as they are")
        elif not source.fenced:
            for line in await images.put_away(source, request.id, course.copies, request.source_images):
                course.chronicle.warn(line)
    except Fenced:
        raise
    except QmpMigrateError as error:
        return [f"the disks' images could not be tidied up: {error}"]
    return []
