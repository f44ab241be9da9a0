"""The guest without an operating system in the lab: moved as any other, and judged by the same oracle."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.real.kvm import need_kvm
from tests.support.real.lab import Lab

APPEND = "qm.rate=20 qm.ws=16 qm.tick=10"


@pytest.mark.parametrize("accel", ["tcg", pytest.param("kvm", marks=pytest.mark.kvm)])
def test_a_bare_guest_with_two_vcpus_moves_there_and_back(lab: Lab, accel: str) -> None:
    if accel == "kvm":
        asyncio.run(need_kvm("qemu-system-x86_64"))
    with lab.guest(bare=True, accel=accel, vcpus=2, append=APPEND) as guest:
        for here, there in (("a", "b"), ("b", "a")):
            guest.wait(here, lambda v: v.sweeps_ok_after_handover > 0)
            result = lab.cli("migrate", guest.name, "--to", there, "--json").doc
            assert result["outcome"] == "completed", result
            guest.wait_survived(there)
