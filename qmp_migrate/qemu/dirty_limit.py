"""``set-vcpu-dirty-limit``: how fast each vCPU may dirty memory. Needs KVM with a dirty ring; QEMU 7.1 and later have it.

QEMU lets a vCPU sleep each time its dirty ring is full; a vCPU that writes less than the limit never sleeps. The capability
``dirty-limit`` (8.1 and later) does the same on QEMU's own decision, and is not used: see ``docs/adr``, decision 31.
"""

from __future__ import annotations

from typing import Final

from qmp_migrate.errors import MonitorError
from qmp_migrate.qemu.monitor import Monitor

SET: Final = "set-vcpu-dirty-limit"

_MIB: Final = 1 << 20


async def why_not(monitor: Monitor) -> str:
    """Return why the vCPUs of a running guest cannot be limited by us, or ``""`` where they can; changes nothing.

    Args:
        monitor: Of a guest that runs under KVM with a dirty ring.

    Raises:
        MonitorError: It did not answer, or not as QEMU does.
    """
    commands = await monitor.execute("query-commands")
    try:
        if not any(command["name"] == SET for command in commands):
            return f"its QEMU does not know {SET} (7.1 does)"
    except (TypeError, KeyError) as error:
        raise MonitorError(
            f"{monitor.label} answers, but not as QEMU does: {error!r}",
            hint="is this socket really a QEMU monitor?",
            host=monitor.host,
        ) from error
    return "somebody else has limited its vCPUs" if await read(monitor) else ""


async def read(monitor: Monitor) -> int:
    """Return the limit in force, bytes per second: that of the slowest vCPU; 0 where there is none.

    Raises:
        MonitorError: It did not answer, or not as QEMU does.
    """
    limits = await monitor.execute("query-vcpu-dirty-limit")
    try:
        return min((int(one["limit-rate"]) * _MIB for one in limits), default=0)
    except (TypeError, KeyError, ValueError) as error:
        raise MonitorError(f"{monitor.label}: query-vcpu-dirty-limit: {error!r}", host=monitor.host) from error


async def limit_vcpus(monitor: Monitor, bytes_per_s: int) -> None:
    """Limit every vCPU, at once. QEMU needs about three seconds to get there.

    Args:
        monitor: The guest's.
        bytes_per_s: For each vCPU; QEMU takes whole MiB/s, 1 at least.

    Raises:
        QmpCommandFailed: There is no dirty ring.
        MonitorError: It did not answer.
    """
    await monitor.execute(SET, {"dirty-rate": max(1, round(bytes_per_s / _MIB))})


async def lift(monitor: Monitor) -> None:
    """Let every vCPU dirty memory as fast as it can; does nothing where there is no limit.

    Raises:
        MonitorError: It refused, or did not answer.
    """
    await monitor.execute("cancel-vcpu-dirty-limit")
