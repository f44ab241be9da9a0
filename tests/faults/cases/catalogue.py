"""All cases, as data, with what must come of each one.

What is expected follows from `docs/handover.md`: before the source has completed, whatever breaks leaves the guest at
the source; after ``cont`` was sent, forward is the only safe way; in between the journal and both QEMUs decide. Where two
ends are right (a connection may come back in time or not), both are listed; the oracle proves one copy in any case.

A fault that is impossible in a phase is left out: there is no destination before ``launch``, no migration connection
before ``first-pass`` and after ``switching``.
"""

from __future__ import annotations

from typing import Any, Final

from tests.faults.cases.anytime import ANYTIME
from tests.faults.cases.phases import BY_NAME, span
from tests.faults.cases.static import STATIC
from tests.faults.cases.trial import Case

_SOURCE, _DESTINATION, _NONE = frozenset({"source"}), frozenset({"destination"}), frozenset({"none"})
_EITHER: Final = _SOURCE | _DESTINATION
_KILLED: Final = frozenset[int]()

_ALL = span("preflight", "release")
_COPYING = ("first-pass", "converging")
_STOPPED = ("pre-switchover", "switching")
_LAUNCHED = span("launch", "release")
_BEFORE = span("launch", "switching")
_AFTER = span("unacknowledged", "release")


def _cases() -> list[Case]:
    found: dict[str, Case] = {}

    def add(fault: str, phases: tuple[str, ...], owners: frozenset[str], *codes: int, **more: Any) -> None:
        for phase in phases:
            case = Case(BY_NAME[phase], ANYTIME[fault], owners, frozenset(codes), **more)
            assert case.name not in found, case.name
            found[case.name] = case

    # -- processes ------------------------------------------------------------------------------------------------
    add("kill-source", ("preflight",), _NONE, 1, 2)
    add("kill-source", _BEFORE, _NONE, 1)
    add("kill-source", ("completed", *_AFTER), _DESTINATION, 0)
    add("freeze-source", ("preflight",), _SOURCE, 1, 75)
    add("freeze-source", ("launch", "wired", *_COPYING, "pre-switchover"), _SOURCE, 4, 5)
    add("freeze-source", ("switching",), _EITHER, 4, 5)
    add("freeze-source", ("completed", *_AFTER), _DESTINATION, 0)
    add("kill-destination", _BEFORE, _SOURCE, 4)
    add("kill-destination", ("completed",), _SOURCE, 4)  # `cont` never left: the source takes the guest back
    add("kill-destination", ("unacknowledged",), _SOURCE, 5, told="source")
    add("kill-destination", ("running", "release"), _NONE, 1)
    add("freeze-destination", _BEFORE, _SOURCE, 4)
    add("freeze-destination", ("completed",), _DESTINATION, 5)
    add("freeze-destination", ("unacknowledged",), _DESTINATION, 0, 5)
    add("freeze-destination", ("running", "release"), _DESTINATION, 0)

    add("kill-controller", span("preflight", "wired"), _SOURCE, limit_s=10.0)
    add("kill-controller", _COPYING, _DESTINATION)
    add("kill-controller", _STOPPED, _EITHER)
    add("kill-controller", ("completed", *_AFTER), _DESTINATION)
    add("kill-controller-agents", ("switching", "completed", "unacknowledged", "running"), _DESTINATION)
    add("kill-controller-guardian", ("pre-switchover",), _SOURCE)
    add("freeze-controller", span("preflight", "converging"), _DESTINATION, 0)
    add("freeze-controller", ("pre-switchover",), _SOURCE, 4, 6)
    add("freeze-controller", span("switching", "release"), _DESTINATION, 0)
    add("freeze-controller-for-good", ("launch",), _SOURCE)
    add("freeze-controller-for-good", ("first-pass", "completed", "running"), _DESTINATION)

    add("kill-controller-and-destination", ("launch", "first-pass"), _SOURCE)
    # Armed, so `cont` may have been sent: nobody may resume the source without a person's word.
    add("kill-controller-and-destination", ("unacknowledged", "running"), _SOURCE, told="source")

    for part in ("agent-a", "agent-b", "broker"):
        add(f"kill-{part}", _ALL, _DESTINATION, 0)
    for part in ("agent-a", "agent-b", "broker"):
        add(f"freeze-{part}", _ALL, _DESTINATION, 0)
    for host in ("a", "b"):
        add(f"drop-sshd-{host}", ("preflight",), _EITHER, 0, 1, 4, 69)
        add(f"drop-sshd-{host}", _BEFORE, _EITHER, 0, 4)
        add(f"drop-sshd-{host}", ("completed",), _EITHER, 0, 4)
        add(f"drop-sshd-{host}", _AFTER, _DESTINATION, 0)
        add(f"kill-sshd-{host}", ("preflight",), _EITHER, 0, 1, 69)
        add(f"kill-sshd-{host}", ("launch", "wired", *_COPYING, *_STOPPED), _EITHER, 0, 4, 5)
        add(f"kill-sshd-{host}", ("completed",), _EITHER, 0, 4, 5)
        add(f"kill-sshd-{host}", _AFTER, _DESTINATION, 0, 5)
        add(f"freeze-sshd-{host}", ("preflight",), _EITHER, 0, 1, 69)
        add(f"freeze-sshd-{host}", (*_BEFORE, "completed"), _EITHER, 0, 4)
        add(f"freeze-sshd-{host}", _AFTER, _DESTINATION, 0)

    # -- the network between the hosts ----------------------------------------------------------------------------
    add("link-down", ("wired", *_COPYING, *_STOPPED), _SOURCE, 4)
    add("link-black-hole", ("wired", *_COPYING, *_STOPPED), _SOURCE, 4)
    # Connected, then nothing: QEMU 7.2 stands still in its TLS handshake, and answers nobody until that ends.
    add("link-mute", ("wired",), _SOURCE, 4, 5)
    add("link-reset", _COPYING, _SOURCE, 4)
    add("link-reset", _STOPPED, _SOURCE, 4)
    add("link-acks-lost", (*_COPYING, "pre-switchover"), _SOURCE, 4)
    add("link-acks-lost", ("switching",), _SOURCE, 4)
    add("link-data-lost", (*_COPYING, *_STOPPED), _SOURCE, 4)
    add("link-1mbit", ("wired", *_COPYING), _EITHER, 0, 4, 6)

    # -- the network to the controller ----------------------------------------------------------------------------
    for damage in ("down", "black-hole"):
        for hosts in ("a", "b", "ab"):
            add(f"control-{hosts}-{damage}", ("preflight",), _SOURCE, 1, 69)
            add(f"control-{hosts}-{damage}", ("launch", "first-pass", "pre-switchover", "switching"), _EITHER, 4, 5)
            add(f"control-{hosts}-{damage}", ("completed",), _EITHER, 0, 1, 4, 5)
            add(f"control-{hosts}-{damage}", ("running",), _DESTINATION, 0, 5)
    for hosts in ("a", "b", "ab"):
        add(f"control-{hosts}-blink", ("launch", "wired", *_COPYING, *_STOPPED, "completed"), _EITHER, 0, 4, 5)
        add(f"control-{hosts}-blink", _AFTER, _DESTINATION, 0, 5)
    add("answer-lost", ("completed",), _DESTINATION, 0, 5)

    # -- monitors -------------------------------------------------------------------------------------------------
    add("second-client-destination", ("launch",), _SOURCE, 4)

    # -- offline, post-copy ---------------------------------------------------------------------------------------
    add("kill-source", ("offline", "postcopy"), _NONE, 1)
    # Memory that a device of the destination waits for does not come any more: some QEMUs answer nobody then.
    add("kill-source", ("turning",), _NONE, 1, 5, hangs=True)
    add("kill-destination", ("offline",), _SOURCE, 4)
    add("kill-destination", ("turning", "postcopy"), _NONE, 1)
    add("kill-controller", ("offline", "turning", "postcopy"), _DESTINATION)
    add("freeze-controller", ("offline", "turning", "postcopy"), _DESTINATION, 0)
    add("kill-controller-and-destination", ("offline",), _SOURCE)
    add("kill-controller-and-destination", ("postcopy",), _NONE)
    for fault in ("link-down", "link-black-hole", "link-reset"):
        add(fault, ("offline",), _SOURCE, 4)
        add(fault, ("postcopy",), _DESTINATION, 0)  # over a new connection, by another address where need be
    add("control-ab-blink", ("offline",), _EITHER, 0, 4, 5)
    add("control-ab-blink", ("turning", "postcopy"), _DESTINATION, 0, 5)

    for case in STATIC:
        assert case.name not in found, case.name
        found[case.name] = case
    return list(found.values())


CASES: Final = {case.name: case for case in _cases()}

QUICK: Final = (
    "preflight/kill-controller",
    "wired/link-down",
    "launch/kill-destination",
    "first-pass/kill-controller",
    "converging/link-reset",
    "pre-switchover/kill-controller-guardian",
    "switching/link-acks-lost",
    "completed/kill-controller-agents",
    "completed/kill-source",
    "unacknowledged/kill-controller",
    "running/kill-broker",
    "release/kill-source",
)
"""A dozen that together touch every phase; run by `make test`."""
