"""A made-up QEMU, and a monitor that is connected to it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from qmp_migrate.qemu.monitor import Monitor
from tests.support.fakes.fake_qemu import FakeQemu, connect


@pytest.fixture
async def qemu() -> AsyncIterator[FakeQemu]:
    async with FakeQemu() as fake:
        yield fake


@pytest.fixture
async def monitor(qemu: FakeQemu) -> AsyncIterator[Monitor]:
    connected = await connect(qemu)
    yield connected
    await connected.close()
