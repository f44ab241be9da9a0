"""The guardian: takes a guest back whose controller is gone while it stands still in ``pre-switchover``.

With ``pause-before-switchover`` QEMU stops the guest, says ``pre-switchover``, and waits for ``migrate-continue`` without
any limit of its own, also when the destination is dead. A controller that is gone there leaves the guest paused until
somebody acts. The guardian does: it sends ``migrate_cancel``, and QEMU lets the guest run on at the source. That is the only
command it ever sends which changes anything, and the only place where it sends it.

Why there, and nowhere else (`research/reliability.md` R3, §1.2, §2.3):

``pre-switchover``
    The destination cannot run: it lacks the device state, which leaves the source only after ``migrate-continue``. So
    what one host knows is enough to decide, and the guest runs in one place whatever the other one does. A wrong
    suspicion costs the migration, never the guest: a controller that comes back is refused its ``migrate-continue``. If that
    came between our last question and the cancel, QEMU is in ``device``: it either still cancels (the source does not
    become ``completed``, and without that nobody starts the destination) or has completed (the cancel does nothing).
``device``
    The guest's last bytes travel, and the destination may have them all. QEMU ends this by itself; where it does not,
    freeing it is for the controller, which can see both sides.
``completed``
    The guest may run at the destination. Only the controller's journal and the destination can prove that it does not.
``postcopy-*``
    Memory that the destination has written exists nowhere else. QEMU 7.2 would accept a cancel, and destroy the guest.
    From ``pre-switchover`` a post-copy migration goes on straight into ``postcopy-active``, so with the capability
    ``postcopy-ram`` the guardian does not even act in ``pre-switchover``: that step may come after its last question.
``active``, ``setup`` …
    The guest runs. Nobody needs us.
unknown statuses
    A newer QEMU goes on in a way that we do not know (DESIGN rule 8).

While a controller is at work all this costs the guest's monitor nothing: `pre-switchover` is learned from an event, and
from then on a small file is read four times a second (`heartbeat`). Only when that has been old for the whole limit,
*and was watched for all of it*, QEMU is asked. Watched, so that a host that was suspended, or an agent that was frozen or has
just been started, does not take its own absence for the controller's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import structlog

from hostagent.discovery.guests import Guest
from hostagent.guardian.heartbeat import LOOK_S, Beat, BeatWatch, beat_path
from hostagent.publisher import Publisher
from hostagent.qmp_state.replies import migration_status_of, runstate_of
from qmp_migrate.errors import MonitorError, MonitorLost
from qmp_migrate.qemu.migration import cancel
from qmp_migrate.qemu.monitor import Monitor

PRE_SWITCHOVER: Final = "pre-switchover"
FINISH_MIGRATE: Final = "finish-migrate"
SETTLE_S: Final = 5.0
SETTLE_LOOK_S: Final = 0.05
"""How long a cancelled migration may take to end, and how often it is asked for."""
SETTLING: Final = frozenset({PRE_SWITCHOVER, "cancelling", "device"})
"""Statuses that a cancelled migration still passes through."""
FIRST_RETRY_S: Final = 1.0
MAX_RETRY_S: Final = 30.0
"""How long it waits after a try that failed: twice as long each time."""

log = structlog.get_logger("hostagent")


@dataclass(frozen=True, slots=True)
class Look:
    """What is known of a guest at one moment.

    Attributes:
        run_state: QEMU's run state.
        status: QEMU's migration status, ``None`` where it has had none.
        postcopy: The migration may turn into post-copy; ``None``: QEMU did not say.
        beat: The controller's.
    """

    run_state: str
    status: str | None
    postcopy: bool | None
    beat: Beat


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether to act, and why (not)."""

    act: bool
    reason: str


def judge(beat: Beat, limit_s: float) -> Verdict:
    """Say whether the controller counts as gone.

    Args:
        beat: Its beat.
        limit_s: Seconds without a sign of life after which it does.
    """
    if beat.fault:
        return Verdict(False, "the controller's beat cannot be believed")
    if beat.age_s is None:
        return Verdict(False, "no controller of ours is at work")
    if beat.age_s <= limit_s:
        return Verdict(False, "the controller lives")
    if beat.watched_s < limit_s:
        return Verdict(False, "the beat is old, but was not watched for long enough")
    return Verdict(True, "the controller is gone")


def decide(look: Look, limit_s: float) -> Verdict:
    """Say whether to take a guest back: the whole rule, without clock or I/O.

    That the guest is the source, not a destination, is told by the run state and not by its command line: a guest that was
    migrated here has ``-incoming`` there for good. Only an outgoing migration makes a QEMU say ``finish-migrate``
    (a destination: ``inmigrate``, then ``paused``).

    Args:
        look: What is known.
        limit_s: Seconds without a sign of life after which the controller counts as gone.
    """
    if look.status != PRE_SWITCHOVER:
        return Verdict(False, "the migration is not in pre-switchover")
    if look.run_state != FINISH_MIGRATE:
        return Verdict(False, "the guest is not the source of a migration")
    if look.postcopy is not False:
        return Verdict(False, "the migration may turn into post-copy at any moment")
    return judge(look.beat, limit_s)


class Guardian:
    """Guards one guest.

    Args:
        guest: The guest.
        publisher: Where is told what was done.
        limit_s: Seconds without a sign of life after which a controller counts as gone.
    """

    def __init__(self, guest: Guest, publisher: Publisher, limit_s: float) -> None:
        self._guest = guest
        self._publisher = publisher
        self._limit_s = limit_s
        self._path = beat_path(guest.directory.parent, guest.name)
        self._held = asyncio.Event()
        self._held_since = 0.0
        self._said: set[str] = set()

    def notice(self, status: str | None) -> None:
        """Take note of a migration status, from an event or an answer. Returns at once."""
        if status != PRE_SWITCHOVER:
            self._held.clear()
        elif not self._held.is_set():
            self._held_since = time.monotonic()
            self._held.set()

    async def run(self, monitor: Monitor) -> None:
        """Guard for as long as a connection lasts.

        Args:
            monitor: The agent's own one to the guest's QEMU; its owner tells `notice` what it learns.

        Raises:
            MonitorLost: The connection has ended.
        """
        while True:
            await self._held.wait()
            self._said.clear()
            await self._watch(monitor)

    async def _watch(self, monitor: Monitor) -> None:
        """Watch the beat while the guest is held, and take the guest back when it is time."""
        watch = BeatWatch(self._path)
        retry_s, next_try = FIRST_RETRY_S, 0.0
        await asyncio.sleep(LOOK_S)  # a switchover that nothing holds up is over by then: it is left alone
        while self._held.is_set():
            beat = watch.look()
            verdict = judge(beat, self._limit_s)
            if not verdict.act:
                if beat.age_s is None:
                    self._say_once("guardian-stands-by", reason=verdict.reason, fault=beat.fault or None)
            elif time.monotonic() >= next_try and not await self._take_back(monitor, watch):
                next_try = time.monotonic() + retry_s
                retry_s = min(MAX_RETRY_S, retry_s * 2)
            await asyncio.sleep(LOOK_S)

    async def _take_back(self, monitor: Monitor, watch: BeatWatch) -> bool:
        """Ask QEMU, decide, cancel, and see what came of it; return whether there is nothing left to do."""
        try:
            postcopy = _capability(await monitor.execute("query-migrate-capabilities"), "postcopy-ram")
            run_state = runstate_of(await monitor.execute("query-status"))
            status = migration_status_of(await monitor.execute("query-migrate"))
            beat = watch.look()  # the last word before we act: it may have come back while QEMU answered
            verdict = decide(Look(run_state, status, postcopy, beat), self._limit_s)
            if not verdict.act:
                self._say_once("guardian-stands-by", reason=verdict.reason, runstate=run_state, status=status)
                self.notice(status)
                return status != PRE_SWITCHOVER
            log.warning("guardian-cancels", vm=self._guest.name, reason=verdict.reason, beat_age_ms=_ms(beat.age_s))
            await cancel(monitor)
            run_state, status = await _settled(monitor)
        except MonitorLost:
            raise
        except MonitorError as error:
            # Refused, or no answer: unknown (DESIGN rule 5), and everything is asked anew before the next try.
            self._tell("guardian-failed", reason=error.message)
            return False
        self.notice(status)
        paused_ms = _ms(time.monotonic() - self._held_since)
        told = {"runstate": run_state, "status": status, "beat_age_ms": _ms(beat.age_s), "paused_ms": paused_ms}
        if status in SETTLING:
            self._tell("guardian-failed", reason=f"the migration is still {status}", **told)
            return False
        if status == "completed":
            self._tell("guardian-failed", reason="the migration had completed before the cancel came", **told)
            return True
        if run_state != "running":
            # It was paused before it was migrated: QEMU keeps that (7.2 calls it `postmigrate`). To start it is not ours.
            log.warning("guardian-guest-not-running", vm=self._guest.name, runstate=run_state)
        self._tell("guardian-cancelled", reason=verdict.reason, limit_ms=_ms(self._limit_s), **told)
        return True

    def _tell(self, kind: str, **data: Any) -> None:
        """Log and publish. The bus may be down: that changes nothing here."""
        log.warning(kind, vm=self._guest.name, **data)
        self._publisher.own_event(kind, self._guest.name, data)

    def _say_once(self, what: str, *, reason: str, **data: Any) -> None:
        if reason not in self._said:
            self._said.add(reason)
            log.warning(what, vm=self._guest.name, reason=reason, **data)


async def _settled(monitor: Monitor) -> tuple[str, str | None]:
    """Wait until a cancelled migration has ended; return the run state and the migration status."""
    end = time.monotonic() + SETTLE_S
    while True:
        status = migration_status_of(await monitor.execute("query-migrate"))
        if status not in SETTLING or time.monotonic() > end:
            return runstate_of(await monitor.execute("query-status")), status
        await asyncio.sleep(SETTLE_LOOK_S)


def _capability(answer: object, name: str) -> bool | None:
    """Return whether a capability is on; ``False`` where this QEMU lacks it, ``None`` where the answer is none."""
    if not isinstance(answer, list) or not all(isinstance(entry, Mapping) for entry in answer):
        return None
    return any(entry.get("capability") == name and entry.get("state") is not False for entry in answer)


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)
