"""The destination's agent takes a guest over when the controller is gone: ready, token, cont."""

from __future__ import annotations

import contextlib
import secrets
import time
from typing import Final

from hostagent.failover import grant
from hostagent.failover.decision import (
    Act,
    DestinationLook,
    Guest,
    at_destination,
    destination_guest,
)
from hostagent.failover.side import ACTIVE_LOOK_S, ASK_S, LOOK_S, Side
from qmp_migrate.bus.messages.handover_token import HostToken
from qmp_migrate.errors import MonitorError

READY_S: Final = 6.0
"""For how long the destination's lock is held for an offer, and a token for it is good."""


class AtDestination(Side):
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
