"""Post-copy: the guest runs at the destination before all of its memory is there, and must not be lost on the way.

What is done is `decision.decide`'s word, as everywhere; this is how it is done. `reconciliation.settle` follows a migration
in post-copy until the source is completed, however long that takes, and calls what is here:

* `hand_over`: ``cont`` to the destination once its devices are loaded. The only thing in the blackout that is ours.
* `pause`: QEMU has no keep-alive on its stream. What has stood still for long is given up on both sides, out of band.
* `recover`: a new connection. The destination's main loop may hang, because it touched a page that has not come; so all that
  it is asked is out of band (``migrate-recover``), with a port that was chosen before: it could not be asked for one.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from dataclasses import dataclass, field
from typing import Final

from qmp_migrate.errors import MigrationFailed, MonitorError, QmpCommandFailed, QmpMigrateError
from qmp_migrate.migration.endpoint.endpoint import Observation, Side
from qmp_migrate.migration.lifecycle.context import Course
from qmp_migrate.migration.lifecycle.hooks import Point
from qmp_migrate.migration.ownership.decision import Source
from qmp_migrate.qemu import migration as qmp
from qmp_migrate.qemu import states
from qmp_migrate.qemu.monitor import Monitor

LOADING_S: Final = 10.0
"""How long the destination may take to load the guest's devices, before both sides are looked at closely."""

LOADING_LOOK_S: Final = 0.005
"""How often it is asked meanwhile: the guest stands still."""

RECOVER_FOR_S: Final = 120.0
"""How long a new connection is tried for, before a person is asked."""

RECOVER_PAUSE_S: Final = 2.0
CONNECT_S: Final = 5.0
"""How long one try may take."""

CONNECT_LOOK_S: Final = 0.1
GONE_S: Final = 10.0
"""How long what lives is waited for where the other QEMU is gone."""

ANY_PORT: Final = (49152, 65535)
"""Where the host's settings name no ports: those that the system gives to nobody in particular."""

PORTS_TRIED: Final = 8
PAUSED_AFTER_S: Final = 5.0


@dataclass(slots=True)
class Follow:
    """How a migration in post-copy goes on: whether anything moves, and what is told of it.

    Attributes:
        course: The migration.
    """

    course: Course
    _seen: tuple[object, ...] = ()
    _moved: float = field(default_factory=time.monotonic)
    _lost: float | None = None

    def look(self, source: Observation, source_state: Source, destination: Observation) -> bool:
        """Take in one look at both; return whether there is reason to be patient.

        Args:
            source: What was seen of it.
            source_state: The same, sorted.
            destination: What was seen of it.
        """
        now = time.monotonic()
        ram = source.info.ram if source.info else None
        seen = (source_state, ram.transferred if ram else 0, str(destination))
        if seen != self._seen:
            self._seen, self._moved = seen, now
        if source_state is Source.INTERRUPTED:
            self._lost = self._lost or now
            return now - self._lost < RECOVER_FOR_S
        if source_state is Source.POSTCOPY and source.status == "postcopy-active":
            self._lost = None
            self._tell(source)
        limit = GONE_S if source_state is Source.DEAD else self.course.request.limits.stall_s
        return now - self._moved < limit

    def _tell(self, source: Observation) -> None:
        copying = self.course.copying
        if source.info is None:
            return
        began = copying.timeline.started if copying is not None else self._moved
        report = self.course.meter.read(source.info, elapsed_ms=int((time.monotonic() - began) * 1000))
        self.course.chronicle.reporter.progress(report)


async def hand_over(course: Course) -> None:
    """Continue the destination as soon as its devices are loaded; the source has said ``postcopy-active``.

    Returns without having done so where something else is seen: `reconciliation.settle` decides then.

    Raises:
        JournalError: The commit could not be written.
        Fenced: Another controller has the guest.
        MigrationFailed: The lock is lost.
        MonitorError, TransportError: One of the two does not answer.
    """
    source, destination = await course.source.attach(), await course.destination.attach()
    deadline = time.monotonic() + LOADING_S
    while time.monotonic() < deadline:
        # The source's word in the same breath: one that still could take the guest back must not be overtaken.
        info, status = await asyncio.gather(qmp.query(source), qmp.run_status(destination))
        if info.status != "postcopy-active" and not (info.status in states.SWITCHING or info.status in states.PASSES):
            return
        if info.status == "postcopy-active" and status.status != "inmigrate":
            await continue_destination(course)
            return
        await asyncio.sleep(LOADING_LOOK_S)


async def continue_destination(course: Course) -> None:
    """Send ``cont``, and write down that it was answered; a guest that was paused stays so. Raises as `hand_over`."""
    if not course.running:
        return
    await course.be_armed()
    await course.still_ours()
    destination = await course.destination.attach()
    course.chronicle.lenient = True  # the guest may be the destination's, whatever the journal can take
    course.cont_sent, course.cont_refused = True, False
    try:
        await destination.execute("cont")
    except QmpCommandFailed:
        course.cont_refused = True
        raise
    await course.was_continued()
    course.chronicle.event("committed", owner="destination")
    if course.copying is not None and course.copying.timeline.blackout_ms:
        course.chronicle.event("switchover", blackout_ms=course.copying.timeline.blackout_ms)
    with course.chronicle.tolerate("the guest's network addresses were not announced"):
        await qmp.announce(destination, *course.request.announce)
    # Beside what follows: a connection that is lost just now must not wait for a switch to be told.
    course.hooks.begin(Point.AFTER_COMMIT, course)


async def pause(course: Course) -> str:
    """Have both sides give a connection up that stands still, out of band. Returns a word for the journal."""
    words = await asyncio.gather(*(_pause(side) for side in (course.source, course.destination)))
    return "; ".join(words)


async def _pause(side: Side) -> str:
    try:
        await (await side.attach()).execute("migrate-pause", oob=True)
    except QmpMigrateError as error:
        return f"{side.name}: {error.message}"  # it may have noticed by itself
    return f"{side.name} has given it up"


async def recover(course: Course, tried: int) -> str:
    """Make a new connection.

    Args:
        course: The migration; both sides are interrupted, or the destination has not noticed yet.
        tried: How often it was tried before: each way between the two hosts has its turn.

    Returns:
        A word for the journal: what came of it is seen at the next look.

    Raises:
        QmpMigrateError: It could not even be begun.
    """
    ways = _ways(course.destination)
    listen, address = ways[tried % len(ways)]
    source, destination = await course.source.attach(), await course.destination.attach()
    with contextlib.suppress(QmpCommandFailed):  # refused: it has noticed by itself
        await destination.execute("migrate-pause", oob=True)
    port = await _listen_again(course.destination, destination, listen)
    await source.execute("migrate", {"uri": qmp.uri(address, port), "resume": True})
    reached = await _connected(source)
    step = f"post-copy: a new connection to {address} port {port}: {reached}"
    course.chronicle.event("step", reason=step)
    if course.copying is not None:
        course.copying.steps.append(step)
    return f"{address} port {port}: {reached}"


def _ways(destination: Side) -> list[tuple[str, str]]:
    """Return the ways to a host: what QEMU binds to there, and where the source finds it.

    The first is the usual one, with what the settings say now, which may be something else than when it began. The other is
    the address by which the controller reaches the host.
    """
    ways = [(destination.migration_listen, destination.migration_address)]
    other = destination.settings.address.strip("[]")
    if other != destination.migration_address:
        ways.append((other, other))
    return ways


async def _listen_again(side: Side, monitor: Monitor, address: str) -> int:
    """Have the destination listen for the new connection; return the port."""
    first, last = side.settings.ports or ANY_PORT
    ports = random.sample(range(first, last + 1), min(PORTS_TRIED, last + 1 - first))
    refused: QmpCommandFailed | None = None
    deadline = time.monotonic() + PAUSED_AFTER_S
    while ports and time.monotonic() < deadline:
        try:
            await monitor.execute("migrate-recover", {"uri": qmp.uri(address, ports[-1])}, oob=True)
        except QmpCommandFailed as error:
            refused = error
            if "paused" in error.desc:
                await asyncio.sleep(CONNECT_LOOK_S)  # it has not got so far yet
            else:
                ports.pop()  # taken
            continue
        return ports[-1]
    raise MigrationFailed(
        f"the destination cannot listen on {address} for a new connection" + (f": {refused.desc}" if refused else ""),
        safe_at_source=False,
        code="not_recovered",
        host=side.name,
    )


async def _connected(source: Monitor) -> str:
    """Wait until the source is in post-copy again, or has given the new connection up."""
    deadline, begun = time.monotonic() + CONNECT_S, False
    status = states.INTERRUPTED
    while time.monotonic() < deadline:
        with contextlib.suppress(MonitorError):
            status = (await qmp.query(source)).status
        if status not in {states.INTERRUPTED, *AFTER_PAUSE}:
            return status
        if status in AFTER_PAUSE:
            begun = True
        elif begun:
            return "not accepted"  # 9.1 and later say so; before, nothing tells it from one that is under way
        await asyncio.sleep(CONNECT_LOOK_S)
    return f"no answer within {CONNECT_S:g} s"


AFTER_PAUSE: Final = frozenset({"postcopy-recover", "postcopy-recover-setup"})
