"""Hosts that are machines lose their power, hang and lose their network while a guest moves: who owns it afterwards?

Loopback hosts share one kernel, one boot id and one file system, so none of this can be tried on them.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.real.vm_hosts import Machines, machines

pytestmark = [pytest.mark.timeout(900), pytest.mark.alone]

HANDED_OVER = "handed over"


@pytest.fixture(scope="module")
def hosts() -> Iterator[Machines]:
    with machines("--no-agents") as up:
        yield up


@pytest.fixture
def lab(hosts: Machines) -> Machines:
    hosts.mend()
    return hosts


def test_the_source_loses_its_power_at_the_hand_over(lab: Machines) -> None:
    """The guest has gone on at the destination by then: that is what is said now, and after the source's reboot."""
    with lab.bare(on="a") as guest:
        moved = lab.migrate(guest, "b", "--mode", "offline", at=HANDED_OVER, then=lambda: lab.power("a", "off"))
        assert (moved.code, moved.doc["owner"]) == (0, "destination"), moved
        assert lab.where(guest, code=69) == {"b": "running"}
        lab.cli("recover")

        lab.power("a", "on")

        lab.cli("recover")
        assert lab.where(guest) == {"b": "running"}
