"""Hands guests over when their controller is gone: looks, asks `hostagent.failover.decision`, does the one thing it says, and
again.

One task per mandate. While the controller lives it costs a look at a small file four times a second, and QEMU nothing.
Nothing here believes the broker: what counts is what is signed, what this host's kernel says of its own processes, and who
holds the guest's lock here. All that cannot be undone is written down first.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import structlog

from hostagent.discovery.guests import start_ticks
from hostagent.failover import grant, guest_lock
from hostagent.failover.decision import (
    Act,
    Answer,
    DestinationLook,
    Guest,
    SourceLook,
    at_destination,
    at_source,
    destination_guest,
    source_guest,
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
from qmp_migrate.errors import BusError, MonitorError
from qmp_migrate.qemu.monitor import Monitor

LOOK_S: Final = 0.5
ACTIVE_LOOK_S: Final = 0.05
ASK_S: Final = 2.0
OFFER_S: Final = 1.0
"""How long an offer waits for its answer, and a token for the word that the guest runs; then a new offer is made."""
REST_S: Final = 0.5
"""How long the lock stays free between two offers."""
READY_S: Final = 6.0
"""For how long the destination's lock is held for an offer, and a token for it is good."""
QUIT_S: Final = 1.5
KILL_S: Final = 3.0
REMEMBERED: Final = 64

log = structlog.get_logger("hostagent")

WatchOf = Callable[[str], GuestWatch | None]


class Handovers:
    """All mandates of this host.

    Args:
        host: Name of this host on the bus.
        run_dir: Where the guests' directories are.
        publisher: What is said goes out there.
        topics: The topics in use.
        limit_s: Seconds without a sign of life after which a controller counts as gone.
        watch_of: Finds the watch of a guest by its name.
    """

    def __init__(
        self, host: str, run_dir: Path, publisher: Publisher, topics: Topics, limit_s: float, watch_of: WatchOf
    ) -> None:
        self._host = host
        self._run_dir = run_dir
        self._publisher = publisher
        self._topics = topics
        self._limit_s = limit_s
        self._watch_of = watch_of
        self._tasks: dict[tuple[Path, int], asyncio.Task[None]] = {}
        self._failure = ""

    async def run(self) -> None:
        """Serve for ever."""
        try:
            while True:
                self._look()
                await asyncio.sleep(LOOK_S)
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _look(self) -> None:
        found: dict[tuple[Path, int], Path] = {}
        try:
            for path in grant.mandates(self._run_dir):
                with contextlib.suppress(FileNotFoundError):
                    found[path, path.stat(follow_symlinks=False).st_mtime_ns] = path
            self._failure = ""
        except OSError as error:
            if str(error) != self._failure:
                self._failure = str(error)
                log.warning("mandates-unreadable", reason=str(error))
            return
        for key in [key for key in self._tasks if key not in found]:
            self._tasks.pop(key).cancel()
        for key, path in found.items():
            if key not in self._tasks:
                self._tasks[key] = asyncio.create_task(self._serve(path), name=f"mandate {path.name}")

    async def _serve(self, path: Path) -> None:
        try:
            given = grant.read_mandate(path)
        except (OSError, ValueError) as error:
            log.warning("mandate-refused", path=str(path), reason=str(error))
            return
        kind = AtSource if given.role == "source" else AtDestination
        side = kind(given, self._host, self._run_dir, self._publisher, self._topics, self._limit_s, self._watch_of)
        try:
            await side.run()
        except BusError as error:
            log.warning("handover-impossible", vm=given.vm, reason=error.message, hint=error.hint)
        except Exception:
            log.exception("handover-failed", vm=given.vm, migration=given.migration)


class _Side:
    """What both sides of a hand-over have in common."""

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


class AtSource(_Side):
    """The source's agent."""

    _offer = ""
    _offered_at = 0.0
    _rest_until = 0.0
    _answer: Answer = ""
    _ready = ""
    _sent = ""

    def _hear(self, token: HostToken) -> None:
        if not self._offer or token.offer != self._offer:
            return  # to an offer that has had its time
        if token.step == "runs":
            self._answer = "runs"
        elif token.step == "ready" and token.ready is not None and self._answer == "":
            self._answer, self._ready = "ready", token.ready

    async def _decide(self, gone: bool) -> Act:
        state = self._state
        assert state in ("", "released", "ended")
        connected = self._publisher.client.connected
        if state != "released" and (not connected or time.monotonic() < self._rest_until):
            return Act.WAIT
        guest: Guest = "other"
        if state == "" and gone and (asked := await self._asked()) is not None:
            guest = source_guest(asked[0], asked[1])
        look = SourceLook(
            controller_gone=gone,
            locked=self._lock is not None,
            epoch=self._lock is None or self._epoch_ours(),
            record=state,  # type: ignore[arg-type]
            guest=guest,
            answer=self._answer,
        )
        return at_source(look)

    async def _do(self, act: Act) -> float:
        match act:
            case Act.TAKE_LOCK:
                return self._take_lock()
            case Act.OFFER:
                return self._make_offer()
            case Act.RELEASE:
                await self._write_down("released", first=True)
                self._tell("handover-released", reason="the controller is gone and the source has completed")
                return 0.0
            case Act.END_SOURCE:
                await self._end()
                return 0.0
            case Act.SEND_TOKEN:
                if self._sent != self._ready:
                    self._sent = self._ready
                    self._say("run", self._offer, self._ready)
                elif time.monotonic() - self._offered_at > OFFER_S:
                    self._answer = ""  # no word that it runs: ask anew
                return ACTIVE_LOOK_S
        return ACTIVE_LOOK_S if self._offer and time.monotonic() < self._rest_until else LOOK_S

    def _make_offer(self) -> float:
        at = time.monotonic()
        if self._offer and at - self._offered_at <= OFFER_S:
            return ACTIVE_LOOK_S
        if self._offer:  # nobody answers: whoever wants to `recover` must get a chance
            self._offer, self._rest_until = "", at + REST_S
            return REST_S
        self._offer, self._offered_at, self._answer = secrets.token_hex(16), at, ""
        self._say("offer", self._offer)
        return ACTIVE_LOOK_S

    async def _end(self) -> None:
        """End the source, and prove it."""
        if not self._process_gone():
            with contextlib.suppress(MonitorError):
                await self._monitor().execute("quit", timeout=ASK_S)
            if not await self._gone_within(QUIT_S):
                self._kill()
                if not await self._gone_within(KILL_S):
                    raise OSError(f"the source's QEMU ({self._mandate.process}) does not end")
        await self._write_down("ended", first=False)
        self._offered_at = time.monotonic()

    async def _gone_within(self, limit_s: float) -> bool:
        deadline = time.monotonic() + limit_s
        while not self._process_gone():
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.01)
        return True

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(int(self._mandate.process.split()[0]))
            try:
                if not self._process_gone():  # the descriptor is of that very process, then
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            finally:
                os.close(descriptor)

    def _finished(self) -> bool:
        self._tell("handover-done", reason="the guest runs at the destination")
        grant.remove_mandate(self._run_dir, self._mandate.vm)
        return True


class AtDestination(_Side):
    """The destination's agent."""

    _offer = ""
    _offer_at = 0.0
    _ready = ""
    _token = False
    _answered = ""

    def _hear(self, token: HostToken) -> None:
        if token.step == "offer" and token.offer != self._offer:
            self._offer, self._offer_at, self._ready, self._token = token.offer, time.monotonic(), "", False
        elif token.step == "run":
            if self._offered and self._ready and (token.offer, token.ready) == (self._offer, self._ready):
                self._token = True
            else:
                self._once("token-refused", reason="it is late, was used, or answers nothing that we have asked")

    @property
    def _offered(self) -> bool:
        return bool(self._offer) and time.monotonic() - self._offer_at < READY_S

    async def _decide(self, gone: bool) -> Act:
        state = self._state
        assert state in ("", "continuing", "ran")
        guest: Guest = "other"
        if self._process_gone():
            guest = "gone"
        elif (gone or state == "continuing" or self._offered) and (asked := await self._asked()) is not None:
            run_state, status, watch = asked
            guest = destination_guest(run_state, status, has_run=watch.has_run)
        look = DestinationLook(
            controller_gone=gone,
            locked=self._lock is not None,
            epoch=self._lock is None or self._epoch_ours(),
            record=state,  # type: ignore[arg-type]
            guest=guest,
            offered=self._offered,
            token=self._token,
        )
        return at_destination(look)

    async def _do(self, act: Act) -> float:
        match act:
            case Act.TAKE_LOCK:
                return self._take_lock()
            case Act.READY:
                if not self._ready:
                    self._ready = secrets.token_hex(16)
                    self._say("ready", self._offer, self._ready)
                return ACTIVE_LOOK_S
            case Act.CONTINUE:
                await self._continue()
                return 0.0
            case Act.SEE_IT_RUN:
                await self._see_it_run()
                return ACTIVE_LOOK_S
            case Act.DONE:
                self._answer_offer()
        return LOOK_S

    async def _continue(self) -> None:
        if self._state == "":
            await self._write_down("continuing", first=True)
        self._token = False  # it is used up
        await self._monitor().execute("cont", timeout=ASK_S)
        with contextlib.suppress(MonitorError):
            arguments = {"initial": 50, "max": 550, "rounds": 5, "step": 100}
            await self._monitor().execute("announce-self", arguments, timeout=ASK_S)

    async def _see_it_run(self) -> None:
        if self._state == "continuing":
            await self._write_down("ran", first=False)
            self._tell("handover-continued", reason="its controller is gone; the source is proven to be ended")
        self._answer_offer()

    def _answer_offer(self) -> None:
        if self._offered and self._answered != self._offer and (self._state or not self._process_gone()):
            self._answered = self._offer
            self._say("runs", self._offer)

    def _finished(self) -> bool:
        if self._state == "ran" and not self._process_gone():
            return False  # the other agent may not have heard it yet: its next offer is answered
        grant.remove_mandate(self._run_dir, self._mandate.vm)
        return True
