"""What both sides of a hand-over without a controller have in common.

They hear the other agent, look, take the guest's lock, write down what cannot be undone, and do the one thing that
`hostagent.failover.decision` says, again and again. Nothing here believes the broker. What counts is what is signed, what
this host's kernel says of its own processes, and who holds the guest's lock here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import structlog

from hostagent.discovery.guests import start_ticks
from hostagent.failover import grant, guest_lock
from hostagent.failover.decision import (
    Act,
)
from hostagent.failover.grant import Mandate, Record
from hostagent.guardian.guardian import judge
from hostagent.guardian.heartbeat import BeatWatch, beat_path
from hostagent.publisher import Publisher
from hostagent.qmp_state.replies import migration_status_of, runstate_of
from hostagent.watch.guest_watcher import GuestWatch
from qmp_migrate.bus.client.subscription import Subscription
from qmp_migrate.bus.messages.field_types import now
from qmp_migrate.bus.messages.handover_token import HostToken, TokenStep
from qmp_migrate.bus.messages.session import boot_id
from qmp_migrate.bus.messages.topics import Topics
from qmp_migrate.errors import MonitorError
from qmp_migrate.qemu.monitor import Monitor

LOOK_S: Final = 0.5
ACTIVE_LOOK_S: Final = 0.05
ASK_S: Final = 2.0
REST_S: Final = 0.5
"""How long the lock stays free between two offers."""
REMEMBERED: Final = 64

log = structlog.get_logger("hostagent")

WatchOf = Callable[[str], GuestWatch | None]


class Side:
    """One side of one hand-over; see the module.

    Args:
        given: What this agent was given.
        host: Name of this host on the bus.
        run_dir: Where the guests' directories are.
        publisher: Sends events and tokens.
        topics: The topics in use.
        limit_s: Seconds without a sign of life after which a controller counts as gone.
        watch_of: Finds the watch of a guest by its name.
    """

    def __init__(
        self,
        given: Mandate,
        host: str,
        run_dir: Path,
        publisher: Publisher,
        topics: Topics,
        limit_s: float,
        watch_of: WatchOf,
    ) -> None:
        self._mandate = given
        self._secret = bytes.fromhex(given.secret)
        self._host = host
        self._run_dir = run_dir
        self._publisher = publisher
        self._topics = topics
        self._limit_s = limit_s
        self._watch_of = watch_of
        self._beat = BeatWatch(beat_path(run_dir, given.vm))
        self._lock: guest_lock.AgentLock | None = None
        self._record: Record | None = None
        self._heard = asyncio.Event()
        self._said: set[str] = set()

    async def run(self) -> None:
        """Follow the mandate to its end.

        Raises:
            BusError: The broker does not let us read what the other agent says.
        """
        self._record = self._recorded()
        async with self._publisher.client.subscribe(self._topics.tokens_of(self._mandate.migration)) as messages:
            listening = asyncio.create_task(self._listen(messages))
            acting = asyncio.create_task(self._act())
            try:
                done, _ = await asyncio.wait({listening, acting}, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                for task in (listening, acting):
                    task.cancel()
                await asyncio.gather(listening, acting, return_exceptions=True)
                self._unlock()

    def _recorded(self) -> Record | None:
        try:
            found = grant.read_record(self._run_dir, self._mandate.vm)
        except (OSError, ValueError) as error:
            self._once("record-unreadable", reason=str(error))
            return None
        return found if found is not None and found.migration == self._mandate.migration else None

    @property
    def _state(self) -> str:
        return self._record.state if self._record is not None else ""

    # -- what the other agent says ------------------------------------------------------------------------------

    async def _listen(self, messages: Subscription) -> None:
        async for received in messages:
            token = received.message
            if received.retained or not isinstance(token, HostToken):
                if token is not None:
                    self._once("token-refused", reason="it is retained: nobody of ours does that")
                elif received.error is not None:
                    self._once("token-refused", reason=received.error.message)
                continue
            if reason := self._wrong(token):
                self._once("token-refused", reason=reason, host=token.host, step=token.step)
            elif token.host != self._host:
                self._hear(token)
                self._heard.set()

    def _wrong(self, token: HostToken) -> str:
        given = self._mandate
        if not token.verified(self._secret):
            return "its signature is not one of this migration"
        if (token.vm, token.epoch, token.process) != (given.vm, given.epoch, given.destination_process):
            return "it speaks of another guest, epoch or process"
        return ""

    def _hear(self, token: HostToken) -> None:
        raise NotImplementedError

    def _say(self, step: TokenStep, offer: str, ready: str | None = None) -> None:
        given = self._mandate
        token = HostToken(
            host=self._host,
            at=now(),
            migration=given.migration,
            vm=given.vm,
            step=step,
            epoch=given.epoch,
            process=given.destination_process,
            offer=offer,
            ready=ready,
        )
        self._publisher.token(token.signed(self._secret))

    # -- looking and acting -------------------------------------------------------------------------------------

    async def _act(self) -> None:
        while True:
            gone = judge(self._beat.look(), self._limit_s).act
            act = await self._decide(gone)
            if act in (Act.WAIT, Act.DONE, Act.VOID):
                self._unlock()
            if act is Act.VOID:
                self._once("mandate-void", reason="another controller has had the guest")
                grant.remove_mandate(self._run_dir, self._mandate.vm)
                return
            if act is Act.DONE and self._finished():
                return
            self._heard.clear()
            try:
                pause_s = await self._do(act)
            except (MonitorError, OSError, ValueError) as error:
                self._once("handover-step-failed", act=str(act), reason=str(error))
                pause_s = REST_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._heard.wait()

    async def _decide(self, gone: bool) -> Act:
        raise NotImplementedError

    async def _do(self, act: Act) -> float:
        raise NotImplementedError

    def _finished(self) -> bool:
        raise NotImplementedError

    def _take_lock(self) -> float:
        given = self._mandate
        owner = f"the agent of host {self._host} pid {os.getpid()}, handing over, migration {given.migration}"
        self._lock = guest_lock.take(self._run_dir, given.vm, owner)
        if self._lock is None:
            self._once("handover-waits", reason="the guest's lock is held")
        return 0.0 if self._lock is not None else LOOK_S

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _epoch_ours(self) -> bool:
        try:
            number, _, mark = guest_lock.read_epoch(self._run_dir, self._mandate.vm)
        except (OSError, ValueError) as error:
            self._once("epoch-unreadable", reason=str(error))
            return False
        if self._record is not None:
            return mark == self._record.mark
        return number == self._mandate.epoch

    async def _write_down(self, state: str, *, first: bool) -> None:
        """Write a state down, durably; with the first one the epoch rises, so that no older controller acts any more."""
        given = self._mandate
        mark = secrets.token_hex(16) if first or self._record is None else self._record.mark
        if first:
            await asyncio.to_thread(guest_lock.raise_epoch, self._run_dir, given.vm, mark)
        record = Record(given.migration, state, mark)
        await asyncio.to_thread(grant.write_record, self._run_dir, given.vm, record)
        self._record = record

    def _watched(self) -> GuestWatch | None:
        """Return the watch of the very process that the mandate names."""
        watch = self._watch_of(self._mandate.vm)
        if watch is None:
            return None
        words = f"{watch.guest.pid} {watch.guest.start_ticks} {boot_id()}"
        return watch if words == self._mandate.process else None

    async def _asked(self) -> tuple[str, str | None, GuestWatch] | None:
        """Ask the guest's QEMU for run state and migration status; ``None`` where it cannot be asked now."""
        watch = self._watched()
        if watch is None or watch.monitor is None:
            return None
        try:
            status = migration_status_of(await watch.monitor.execute("query-migrate", timeout=ASK_S))
            return runstate_of(await watch.monitor.execute("query-status", timeout=ASK_S)), status, watch
        except MonitorError:
            return None

    def _process_gone(self) -> bool:
        pid, ticks, boot = self._mandate.process.split()
        if boot != boot_id():
            return True
        try:
            return start_ticks(int(pid)) != int(ticks)
        except OSError:
            return False  # unknown is not dead (DESIGN rule 5)

    def _monitor(self) -> Monitor:
        watch = self._watched()
        if watch is None or watch.monitor is None:
            raise MonitorError("the guest's monitor is not connected just now")
        return watch.monitor

    def _tell(self, kind: str, **data: Any) -> None:
        log.warning(kind, vm=self._mandate.vm, migration=self._mandate.migration, **data)
        self._publisher.own_event(kind, self._mandate.vm, {"migration": self._mandate.migration, **data})

    def _once(self, what: str, *, reason: str, **data: Any) -> None:
        key = f"{what} {reason}"
        if key not in self._said and len(self._said) < REMEMBERED:
            self._said.add(key)
            log.warning(what, vm=self._mandate.vm, migration=self._mandate.migration, reason=reason, **data)
