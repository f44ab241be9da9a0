"""Handing a guest over when its controller is gone: what each agent may do next. Pure: no clock, no I/O.

A controller that dies after the source has said ``completed`` and before its ``cont`` arrives leaves a guest that runs
nowhere: the source has stopped for good, the destination holds everything and waits. Each agent knows one half of that.
Together they can prove the rest, and let it run, without a person and without trusting the broker:

1. The source's agent sees that the controller is gone and the source completed; it takes the guest's lock there, and
   offers.
2. The destination's agent sees the same of the controller, takes the guest's lock there, sees its QEMU loaded and paused,
   and says that it is ready. From here on nobody else can end that QEMU or start it: the lock is held.
3. The source's agent raises the epoch (a controller that comes back is refused), writes down that the source will never run
   again, ends the source, proves that it is gone, and says so: the run token.
4. The destination's agent takes the token once, raises the epoch, writes down that it continues the guest, and sends
   ``cont``.

Two things follow. *Never two owners*: ``cont`` is only sent on a token, a token is only made once the source process is
proven dead, and a token fits only an answer that was made up moments ago by an agent that has held the lock since. *Never
none*: the source is only ended while the destination's lock is held by somebody who has just seen the guest whole there. A
controller that is merely cut off from one host still holds the lock of the other one, so nothing happens. What is lost on
the way (a message, an agent) is tried again from what was written down; a `recover` that comes between finds the locks
held, or takes them, raises the epoch, and every mandate of an older one is void.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal

from qmp_migrate.qemu import states

SourceRecord = Literal["", "released", "ended"]
DestinationRecord = Literal["", "continuing", "ran"]
Guest = Literal["completed", "loaded", "runs", "gone", "other"]
Answer = Literal["", "ready", "runs"]


class Act(StrEnum):
    """One thing to do; then look and decide again."""

    WAIT = "wait"  # nothing may be done, or nothing is to be done yet; the lock is given back
    TAKE_LOCK = "take-lock"
    OFFER = "offer"
    RELEASE = "release"  # raise the epoch, write down that the source will never run again
    END_SOURCE = "end-source"  # quit, then kill, with proof; then write down that it is gone
    SEND_TOKEN = "send-token"  # noqa: S105  # a word
    READY = "ready"  # answer an offer with a fresh nonce
    CONTINUE = "continue"  # raise the epoch, write it down, send `cont`
    SEE_IT_RUN = "see-it-run"  # write down that it runs, say so
    DONE = "done"  # nothing is left to be done here
    VOID = "void"  # another controller has had the guest: the mandate is worth nothing


@dataclass(frozen=True, slots=True)
class SourceLook:
    """What the source's agent knows.

    Attributes:
        controller_gone: Its sign of life is too old, and was watched for long enough.
        locked: We hold the guest's lock on this host.
        epoch: Whether the epoch on this host is still the mandate's, or the one that we have raised it to.
        record: What we have written down.
        guest: The QEMU that the mandate names.
        answer: What the destination's agent has said to our present offer, signed.
    """

    controller_gone: bool
    locked: bool
    epoch: bool
    record: SourceRecord
    guest: Guest
    answer: Answer = ""


@dataclass(frozen=True, slots=True)
class DestinationLook:
    """What the destination's agent knows; as `SourceLook`, and:

    Attributes:
        offered: There is a signed offer that was not answered yet, or a lock that is held for one.
        token: A signed token has come for the nonce that we have made up last, in time, and was not taken yet.
    """

    controller_gone: bool
    locked: bool
    epoch: bool
    record: DestinationRecord
    guest: Guest
    offered: bool = False
    token: bool = False


def at_source(look: SourceLook) -> Act:
    """Return what the source's agent does next."""
    if look.answer == "runs" and look.record != "released":
        return Act.DONE
    if look.record == "" and not look.controller_gone:
        return Act.WAIT
    if look.record == "" and look.guest != "completed":
        return Act.WAIT
    if not look.locked:
        return Act.TAKE_LOCK
    if not look.epoch:
        return Act.VOID
    match look.record:
        case "released":
            return Act.END_SOURCE
        case "ended":
            return Act.SEND_TOKEN if look.answer == "ready" else Act.OFFER
        case _:
            return Act.RELEASE if look.answer == "ready" else Act.OFFER


def at_destination(look: DestinationLook) -> Act:
    """Return what the destination's agent does next."""
    if look.record == "ran" or look.guest == "gone":
        return Act.DONE
    if look.guest == "runs":
        return Act.SEE_IT_RUN if look.record == "continuing" or look.offered else Act.WAIT
    if look.guest != "loaded":
        return Act.WAIT
    if look.record == "" and not (look.controller_gone and look.offered):
        return Act.WAIT
    if not look.locked:
        return Act.TAKE_LOCK
    if not look.epoch:
        return Act.VOID
    if look.record == "continuing" or look.token:
        return Act.CONTINUE
    return Act.READY


def source_guest(run_state: str, status: str | None) -> Guest:
    """Sort what the source's QEMU says; anything but a plain ``completed`` with a stopped guest is none of our business.

    Post-copy says ``completed`` in the end, too, but then the destination runs already: mandates are not given for it.
    """
    if status != "completed":
        return "other"
    return "runs" if run_state in states.RUNNING_STATES else "completed"


_LOADED: Final = frozenset({"paused", "prelaunch"})


def destination_guest(run_state: str, status: str | None, *, has_run: bool) -> Guest:
    """Sort what the destination's QEMU says.

    Args:
        run_state: Its run state.
        status: Its migration status.
        has_run: It was seen to run since it came: then it is its user who has paused it.
    """
    if run_state in states.RUNNING_STATES or (has_run and status == "completed"):
        return "runs"
    return "loaded" if run_state in _LOADED and status == "completed" else "other"
