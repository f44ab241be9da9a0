"""Monitors that are connected to fake QEMUs, for tests of what stands on them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from qmp_migrate.qemu.monitor import Monitor
from tests.support.fakes.fake_qemu import FakeQemu


@contextlib.asynccontextmanager
async def connected(qemu: FakeQemu, label: str = "web1@a") -> AsyncIterator[Monitor]:
    """Return a monitor of a fake QEMU; the host's name is what follows the ``@`` of its label."""
    monitor = await Monitor.connect(await qemu.client(), label=label, host=label.partition("@")[2])
    try:
        yield monitor
    finally:
        await monitor.close()
