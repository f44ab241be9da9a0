"""The cells of the decision in which the guest's memory is on both hosts: post-copy (DESIGN rule 6).

From the moment the destination runs the guest, each of the two QEMUs holds memory that exists nowhere else. So neither may be
cancelled, resumed, yanked or ended while the other one lives; the connection may be replaced as often as is needed. What
`decision` knows of the hand-over before that holds here, too: only ``cont`` makes the destination run, and it is sent once
the source has said ``postcopy-active`` and the destination has left ``inmigrate``: then its devices are loaded.

`Facts.patience` means here: memory has travelled lately, or a new connection has not been tried for long enough.
"""

from __future__ import annotations

from typing import Final

from qmp_migrate.migration.ownership.states import Action, Decision, Destination, Facts, Source

S, D, A = Source, Destination, Action

AT_SOURCE: Final = frozenset({S.POSTCOPY, S.INTERRUPTED})
AT_DESTINATION: Final = frozenset({D.WAITING, D.POSTCOPY, D.INTERRUPTED})

BOTH: Final = "the guest's memory is on both hosts"


def decide(source: Source, destination: Destination, facts: Facts) -> Decision | None:
    """Return what to do where one of the two is in post-copy, or may be about to; None: this is not so."""
    if source not in AT_SOURCE and destination not in AT_DESTINATION:
        return _may_begin(source, destination, facts) if facts.postcopy and not facts.split_brain else None
    if facts.split_brain:
        return Decision(A.PARK, "both copies have run: a person must say which one is the guest")
    match source:
        case S.POSTCOPY:
            return _goes_on(destination, facts)
        case S.INTERRUPTED:
            return _interrupted(destination, facts)
        case S.COMPLETED:
            return _all_sent(destination, facts)
        case S.SWITCHES:
            return _begins(destination, facts)
        case S.DEAD:
            if facts.patience:
                return Decision(A.WAIT, "the source is gone; the destination may have all of the memory in a moment")
            return Decision(A.KILL_DESTINATION, "the source is gone, and with it memory that the destination lacks")
        case S.HANGS if destination is D.INTERRUPTED and facts.postcopy and not facts.patience and not facts.yanked:
            # As in the TLS handshake of a new connection that leads into a black hole: nothing is on it that could be lost.
            return Decision(
                A.YANK_SOURCE, "the source hangs in a connection that leads nowhere: without it, it answers"
            )
        case S.RUNS | S.STOPPED | S.HALTED:
            return _source_is_out_of_it(source, destination, facts)
        case _:
            return _wait_or_park(facts, f"{BOTH}, and the source cannot be asked")


def _wait_or_park(facts: Facts, why: str) -> Decision:
    return Decision(A.WAIT if facts.patience else A.PARK, why)


def _may_begin(source: Source, destination: Destination, facts: Facts) -> Decision | None:
    """Post-copy was asked for, and neither QEMU says that it has begun."""
    if source is S.COPIES and destination is D.INCOMING and facts.patience:
        return Decision(A.WAIT, "memory is being copied, and post-copy begins soon")
    if source is S.COPIES and destination is not D.RUNS:
        if destination is D.ABSENT and facts.surely_never_ran and not facts.patience:
            why = "the destination is gone and never ran: the source has the whole guest"
            # Whatever it is about to send leads nowhere. A cancel may wait for that for ever.
            return Decision(A.CANCEL_SOURCE if facts.yanked else A.YANK_SOURCE, why)
        # QEMU begins when it gets to it; a cancel that comes after that would destroy the guest on 7.2.
        return _wait_or_park(facts, "post-copy was asked for and may begin at any moment: a cancel could come too late")
    if source in {S.RUNS, S.STOPPED, S.HALTED} and destination is not D.RUNS and not facts.surely_never_ran:
        return Decision(A.PARK, "the source has given up in post-copy, and the guest may have run at the destination")
    return None


def _goes_on(destination: Destination, facts: Facts) -> Decision:
    match destination:
        case D.WAITING if facts.was_running and not facts.ran:
            return Decision(A.CONTINUE_DESTINATION, "the destination has the guest's devices; its memory follows")
        case D.WAITING | D.POSTCOPY:
            if facts.patience:
                return Decision(A.WAIT, f"{BOTH}, and travels")
            return Decision(A.PAUSE_POSTCOPY, f"{BOTH}, and nothing travels: a new connection may help")
        case D.INTERRUPTED | D.HANGS:
            if facts.patience:
                return Decision(A.WAIT, f"{BOTH}; the source will notice that the connection is lost")
            return Decision(A.PAUSE_POSTCOPY, f"{BOTH}; the source does not notice that the connection is lost")
        case _:
            return _whole_or_gone(S.POSTCOPY, destination, facts)


def _interrupted(destination: Destination, facts: Facts) -> Decision:
    if destination in AT_DESTINATION or destination is D.HANGS:
        if facts.patience:
            return Decision(A.RECOVER_POSTCOPY, f"{BOTH}, and the connection is lost: a new one is needed")
        return Decision(A.PARK, f"{BOTH}, and no new connection could be made")
    return _whole_or_gone(S.INTERRUPTED, destination, facts)


def _whole_or_gone(source: Source, destination: Destination, facts: Facts) -> Decision:
    """The source is in post-copy; the destination is not, or cannot be asked."""
    match destination:
        case D.ABSENT if source is S.INTERRUPTED:
            return Decision(A.END_SOURCE, "the destination is gone, and with it memory that exists nowhere else")
        case D.ABSENT if facts.patience:
            # It may have sent the last page just now, and be completed at the next look.
            return Decision(A.WAIT, "the destination is gone; the source is about to notice")
        case D.ABSENT:
            return Decision(A.PAUSE_POSTCOPY, "the destination is gone; the source does not notice")
        case D.RUNS | D.HALTED:
            if facts.patience:
                return Decision(A.WAIT, "the destination has all of the guest; the source is about to hear of it")
            return Decision(A.RELEASE_SOURCE, "the destination has all of the guest and has run it")
        case D.LOADED:
            if facts.patience:
                return Decision(A.WAIT, "the destination has all of the guest; the source is about to hear of it")
            return Decision(A.COMMIT, "the destination has all of the guest, and the source is stopped for good")
        case D.INCOMING:
            return _wait_or_park(facts, "post-copy has begun, and the destination loads the guest's devices")
        case _:
            return _wait_or_park(facts, f"{BOTH}, and the destination cannot be asked")


def _all_sent(destination: Destination, facts: Facts) -> Decision:
    if destination is D.WAITING and facts.was_running and not facts.ran:
        return Decision(A.CONTINUE_DESTINATION, "all of the guest's memory was sent: the destination may run it")
    return _wait_or_park(facts, "all of the guest's memory was sent; the destination is about to say that it has it")


def _begins(destination: Destination, facts: Facts) -> Decision:
    """The source still takes the guest back by itself if the destination fails (10.2), so `cont` must wait."""
    if destination is D.WAITING and not facts.patience and facts.surely_never_ran and not facts.yanked:
        return Decision(A.YANK_SOURCE, "the beginning of post-copy hangs: without its connection the source runs on")
    return _wait_or_park(
        facts, "post-copy begins: the destination has the guest's devices, the source has not heard of it"
    )


def _source_is_out_of_it(source: Source, destination: Destination, facts: Facts) -> Decision:
    """The source has given up, or was continued from outside."""
    if facts.surely_never_ran:
        return Decision(
            A.KILL_DESTINATION, "post-copy has failed before the destination ran the guest: it is the source's"
        )
    if source is S.RUNS and destination is not D.WAITING:
        return Decision(A.SPLIT_BRAIN, "the source runs the guest, and the destination has run it")
    return Decision(A.PARK, "the source has given up in post-copy, and the guest may have run at the destination")
