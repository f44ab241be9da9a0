"""``vm stop``: what is ended is gone, and what ends by itself meanwhile is no failure."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from qmp_migrate.errors import MonitorLost
from qmp_migrate.fleet import guests
from tests.support.fakes.fake_endpoints import side_of
from tests.support.fakes.fake_qemu import FakeQemu, HangUp


@pytest.fixture
async def qemu() -> AsyncIterator[FakeQemu]:
    async with FakeQemu() as fake:
        yield fake


@pytest.mark.parametrize("gone", [True, False])
async def test_a_guest_that_ends_by_itself_as_it_is_asked_to_is_stopped(
    qemu: FakeQemu, monkeypatch: pytest.MonkeyPatch, gone: bool
) -> None:
    async def wait_gone(*_: object) -> bool:
        return gone

    monkeypatch.setattr(guests, "wait_gone", wait_gone)
    qemu.on("system_powerdown", HangUp())
    side = side_of("a", qemu)
    if gone:
        assert await guests._end(side, force=False, timeout=1.0)
    else:
        with pytest.raises(MonitorLost):  # it lives, and was not asked
            await guests._end(side, force=False, timeout=1.0)
    await side.detach()
