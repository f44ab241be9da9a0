"""How fast guests dirty their memory, sampled now and then; off unless asked for, because it costs.

QEMU hashes some pages of each GiB, waits a second, and hashes them again (``calc-dirty-rate``, page-sampling: the only mode
that every QEMU survives, see `qmp_migrate.qemu.dirty_rate`). One guest at a time, never one that is being migrated.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import structlog

from hostagent.watch.guest_watcher import GuestWatch
from qmp_migrate.errors import MonitorError
from qmp_migrate.qemu.dirty_rate import measure_longer
from qmp_migrate.qemu.states import under_way

SECONDS = 1

log = structlog.get_logger("hostagent")


async def sample(watches: Callable[[], Iterable[GuestWatch]], into: dict[str, int], interval_s: float) -> None:
    """Sample all guests, one after the other, once per interval, for ever.

    Args:
        watches: Those that are watched now.
        into: Bytes per second by guest; what is not known any more goes.
        interval_s: How often each is sampled.
    """
    failed: set[str] = set()
    while True:
        present = list(watches())
        for name in set(into) - {watch.guest.name for watch in present}:
            del into[name]
        for watch in present:
            state = watch.state
            idle = state.migration_status is None or not under_way(state.migration_status)
            if watch.monitor is None or state.runstate != "running" or state.role != "idle" or not idle:
                continue
            try:
                dirtied = await measure_longer(watch.monitor, state.memory_bytes or 0, SECONDS, "page-sampling")
            except MonitorError as error:
                into.pop(watch.guest.name, None)
                if watch.guest.name not in failed:
                    failed.add(watch.guest.name)
                    log.info("dirty-rate-not-measured", vm=watch.guest.name, reason=str(error))
                continue
            into[watch.guest.name] = round(dirtied.size_bytes / max(dirtied.seconds, 1e-3))
        await asyncio.sleep(interval_s)
