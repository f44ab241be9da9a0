"""Following: repetition is left out, gaps are found, old news does not replace new."""

from __future__ import annotations

from typing import Any

import pytest

from qmp_migrate.bus.client.subscription import Received
from qmp_migrate.bus.consume.ordered import AboutGuest, Order
from qmp_migrate.bus.messages.topics import Address, Kind
from tests.support.data.golden_messages import message

BOOT = "0b0e4f0e-6a55-4a55-9d5b-1f6f0b1f7a10"


def received(kind: Kind, *, owner: str = "a", **changes: Any) -> Received:
    vm = changes.get("vm") if kind is Kind.HOST_VM else None
    return Received(f"t/{kind}/{owner}/{vm}", False, Address(kind, owner, vm), message(kind, **changes))


def cleared(kind: Kind, *, owner: str = "a", vm: str | None = None) -> Received:
    return Received(f"t/{kind}/{owner}/{vm}", False, Address(kind, owner, vm), None)


@pytest.mark.parametrize("kind", [Kind.HOST_EVENT, Kind.MIGRATION_EVENT])
def test_a_gap_in_the_numbers_is_told_and_a_repetition_is_not_news(kind: Kind) -> None:
    order, first, second = Order(), f"{BOOT}.1", f"{BOOT}.2"
    script = [
        (first, 5, 0),  # the first one seen: what was before is not known to be lost
        (first, 6, 0),
        (first, 6, None),
        (first, 4, None),
        (first, 9, 2),
        (second, 3, 2),  # the publisher began anew, and its first two did not come
        (second, 4, 0),
    ]
    for session, seq, missed in script:
        followed = order.admit(received(kind, session=session, seq=seq))
        assert (followed.missed if followed else None) == missed, (session, seq)


def test_gaps_are_counted_per_topic() -> None:
    order = Order()
    for owner in ("a", "b"):
        order.admit(received(Kind.HOST_EVENT, owner=owner, seq=1))
    assert [order.admit(received(Kind.HOST_EVENT, owner=owner, seq=2)) for owner in ("a", "b")] != [None, None]


def test_retained_state_that_comes_again_is_not_news() -> None:
    order = Order()
    state = received(Kind.HOST_VM, vm="web1")
    assert order.admit(state) is not None
    assert order.admit(state) is None
    assert order.admit(received(Kind.HOST_VM, vm="web1", runstate="paused")) is not None
    assert order.admit(cleared(Kind.HOST_VM, vm="web1")) is not None
    assert order.admit(cleared(Kind.HOST_VM, vm="web1")) is None
    assert order.admit(received(Kind.HOST_VM, vm="web1", runstate="paused")) is not None


def test_an_older_revision_of_a_migration_is_old_news() -> None:
    order = Order()
    assert order.admit(received(Kind.MIGRATION_STATE, rev=4, phase="copying")) is not None
    assert order.admit(received(Kind.MIGRATION_STATE, rev=3, phase="wired")) is None
    assert order.admit(received(Kind.MIGRATION_STATE, rev=5, phase="switching")) is not None
    # a recovering controller counts anew
    assert order.admit(received(Kind.MIGRATION_STATE, rev=1, phase="parked", controller="ctl-2")) is not None


def test_a_late_will_of_an_old_session_does_not_end_the_new_one() -> None:
    order = Order()
    old, new = f"{BOOT}.1000", f"{BOOT}.2000"
    assert order.admit(received(Kind.HOST_STATUS, session=old, state="ready")) is not None
    assert order.admit(received(Kind.HOST_STATUS, session=new, state="ready")) is not None
    assert order.admit(received(Kind.HOST_STATUS, session=old, state="lost")) is None
    assert order.admit(received(Kind.HOST_STATUS, session=new, state="lost")) is not None


def test_only_what_concerns_one_guest_is_picked() -> None:
    guest = AboutGuest("web1")

    def concerns(item: Received) -> bool:
        assert item.address is not None
        return guest.concerns(item.address, item.message)

    assert concerns(received(Kind.HOST_VM, vm="web1"))
    assert concerns(cleared(Kind.HOST_VM, vm="web1"))
    assert not concerns(received(Kind.HOST_VM, vm="web2"))
    assert concerns(received(Kind.HOST_EVENT, subject="web1"))
    assert not concerns(received(Kind.HOST_EVENT, subject="web2"))
    assert not concerns(received(Kind.HOST_STATUS))
    assert not concerns(received(Kind.MIGRATION_PROGRESS, owner="m-1", vm=None)), "not known yet whose it is"
    assert concerns(received(Kind.MIGRATION_STATE, owner="m-1", vm="web1"))
    assert concerns(received(Kind.MIGRATION_PROGRESS, owner="m-1", vm=None))
    assert concerns(cleared(Kind.MIGRATION_STATE, owner="m-1"))
    assert not concerns(received(Kind.MIGRATION_STATE, owner="m-2", vm="web2"))
    assert not concerns(cleared(Kind.MIGRATION_STATE, owner="m-2"))
