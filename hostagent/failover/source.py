"""The source's agent hands a guest over when the controller is gone: it offers, ends the source, proves it, and says run."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import time
from typing import Final

from hostagent.failover import grant
from hostagent.failover.decision import (
    Act,
    Answer,
    Guest,
    SourceLook,
    at_source,
    source_guest,
)
from hostagent.failover.side import ACTIVE_LOOK_S, ASK_S, LOOK_S, REST_S, Side
from qmp_migrate.bus.messages.handover_token import HostToken
from qmp_migrate.errors import MonitorError

OFFER_S: Final = 1.0
"""How long an offer waits for its answer, and a token for the word that the guest runs; then a new offer is made."""
QUIT_S: Final = 1.5
KILL_S: Final = 3.0


class AtSource(Side):
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
