"""QMP's migration commands, typed: set and read back, start, ask, cancel.

Nothing here decides anything; `qmp_migrate.migration` does. What QEMU answers is checked here, at the boundary, so that a
monitor that talks nonsense becomes a `MonitorError` and not an `AttributeError` three layers up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from qmp_migrate.errors import MonitorError, QmpCommandFailed
from qmp_migrate.qemu.features import Features
from qmp_migrate.qemu.monitor import Monitor

UNLIMITED: Final = 0
"""``max-bandwidth`` 0: as fast as the link goes."""

BITS_PER_MEGABIT: Final = 1_000_000


class _Reply(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)


_R = TypeVar("_R", bound=_Reply)


def _known(milliseconds: int | None) -> int | None:
    """QEMU 11.1 says the largest number there is (2**63 - 1) where it does not know yet."""
    return milliseconds if milliseconds is not None and milliseconds < 1 << 62 else None


class RamInfo(_Reply):
    """``query-migrate`` ``ram``; bytes unless named otherwise."""

    transferred: int = 0
    remaining: int = 0
    total: int = 0
    page_size: int = Field(default=4096, alias="page-size")
    dirty_pages_rate: int = Field(default=0, alias="dirty-pages-rate")
    mbps: float = 0.0
    passes: int = Field(default=0, alias="dirty-sync-count")
    normal_pages: int = Field(default=0, alias="normal")
    zero_pages: int = Field(default=0, alias="duplicate")
    multifd_bytes: int = Field(default=0, alias="multifd-bytes")

    @property
    def throughput_bytes_per_s(self) -> int:
        """What travels now, bytes per second (QEMU gives megabits)."""
        return int(self.mbps * BITS_PER_MEGABIT / 8)

    @property
    def dirty_bytes_per_s(self) -> int:
        """What the guest dirtied in the last pass, bytes per second."""
        return self.dirty_pages_rate * self.page_size


class SocketAddress(_Reply):
    """One entry of ``query-migrate`` ``socket-address`` on a destination."""

    type: str = "inet"
    host: str = ""
    port: str = ""


class XbzrleInfo(_Reply):
    """``query-migrate`` ``xbzrle-cache``."""

    pages: int = 0


class MigrationInfo(_Reply):
    """``query-migrate``; milliseconds unless named otherwise. Fields that this QEMU does not send have their default."""

    status: str = "none"
    ram: RamInfo | None = None
    total_ms: int = Field(default=0, alias="total-time")
    downtime_ms: int = Field(default=0, alias="downtime")
    expected_downtime_ms: Annotated[int | None, AfterValidator(_known)] = Field(default=None, alias="expected-downtime")
    setup_ms: int = Field(default=0, alias="setup-time")
    throttle_percent: int = Field(default=0, alias="cpu-throttle-percentage")
    error_desc: str | None = Field(default=None, alias="error-desc")
    blocked_reasons: tuple[str, ...] = Field(default=(), alias="blocked-reasons")
    socket_address: tuple[SocketAddress, ...] = Field(default=(), alias="socket-address")
    xbzrle_cache: XbzrleInfo | None = Field(default=None, alias="xbzrle-cache")

    @property
    def sent_pages(self) -> int:
        """How many of the guest's pages were sent so far, in any form; one that was sent twice counts twice."""
        ram, xbzrle = self.ram or RamInfo(), self.xbzrle_cache or XbzrleInfo()
        return ram.normal_pages + ram.zero_pages + xbzrle.pages


class RunStatus(_Reply):
    """``query-status``: ``running`` alone does not prove life (a guest frozen in post-copy says so too)."""

    status: str
    running: bool


async def query(monitor: Monitor, *, timeout: float | None = None) -> MigrationInfo:
    """Ask for the migration's state. Raises `MonitorError`."""
    return _parse(MigrationInfo, await monitor.execute("query-migrate", timeout=timeout), monitor)


async def run_status(monitor: Monitor, *, timeout: float | None = None) -> RunStatus:
    """Ask for the run state. Raises `MonitorError`."""
    return _parse(RunStatus, await monitor.execute("query-status", timeout=timeout), monitor)


def _parse(model: type[_R], reply: Any, monitor: Monitor) -> _R:
    try:
        return model.model_validate(reply)
    except ValidationError as error:
        raise MonitorError(
            f"{monitor.label} gave an answer that is not QEMU's: {error.errors()[0]['msg']}",
            hint="is this socket really a QEMU monitor?",
            host=monitor.host,
        ) from error


async def set_capabilities(monitor: Monitor, features: Features, wanted: Mapping[str, bool]) -> None:
    """Set migration capabilities, true *and* false ones, and read them back.

    Capabilities that stay from an earlier attempt break the next one, so all that this binary knows are set: those in
    `wanted` as told, the others to false. Wanted-true ones that the binary lacks are an error, except that QEMU 10
    dropped none we need.

    Raises:
        MonitorError: A wanted capability is not known, or did not take.
    """
    lacking = [name for name, value in wanted.items() if value and name not in features.capabilities]
    if lacking:
        raise MonitorError(
            f"this QEMU {features.version} has no migration capability {', '.join(lacking)}", host=monitor.host
        )
    full = {name: wanted.get(name, False) for name in features.capabilities}
    # Only what differs: naming an unstable or deprecated capability, even with false, may warn or be refused.
    now = _capability_map(await monitor.execute("query-migrate-capabilities"), monitor)
    change = {name: value for name, value in full.items() if now.get(name) != value}
    if not change:
        return
    await monitor.execute(
        "migrate-set-capabilities",
        {"capabilities": [{"capability": name, "state": value} for name, value in change.items()]},
    )
    now = _capability_map(await monitor.execute("query-migrate-capabilities"), monitor)
    wrong = [name for name, value in full.items() if now.get(name) != value]
    if wrong:
        raise MonitorError(f"capabilities did not take: {', '.join(sorted(wrong))}", host=monitor.host)


def _capability_map(reply: Any, monitor: Monitor) -> dict[str, bool]:
    try:
        return {str(entry["capability"]): bool(entry["state"]) for entry in reply}
    except (TypeError, KeyError) as error:
        raise MonitorError(f"{monitor.label}: query-migrate-capabilities: {error!r}", host=monitor.host) from error


async def set_parameters(monitor: Monitor, wanted: Mapping[str, object]) -> None:
    """Set migration parameters and read them back.

    Raises:
        QmpCommandFailed: QEMU refused one.
        MonitorError: One did not take.
    """
    await monitor.execute("migrate-set-parameters", dict(wanted))
    now = await monitor.execute("query-migrate-parameters")
    if not isinstance(now, Mapping):
        raise MonitorError(f"{monitor.label}: query-migrate-parameters gave no object", host=monitor.host)
    wrong = [f"{name} is {now.get(name)!r}, not {value!r}" for name, value in wanted.items() if now.get(name) != value]
    if wrong:
        raise MonitorError(f"parameters did not take: {'; '.join(wrong)}", host=monitor.host)


def uri(address: str, port: int, *, last_port: int | None = None) -> str:
    """Build a migration URI from typed fields (DESIGN rule 10: never from a user's text, never ``exec:``).

    Args:
        address: IP address or host name, without brackets.
        port: 0 lets the system pick a free one.
        last_port: Where a range is to be tried, its last port.
    """
    host = f"[{address}]" if ":" in address else address
    return f"tcp:{host}:{port}" + (f",to={last_port}" if last_port is not None else "")


async def listen(monitor: Monitor, address: str, ports: tuple[int, int] | None) -> int:
    """Make a destination listen (``-incoming defer``) and return the port it got.

    Args:
        monitor: The destination's.
        address: Where to bind: the host's migration address.
        ports: First and last port to try, or ``None`` for any free one.

    Raises:
        QmpCommandFailed: The address is not this host's, or every port of the range is taken.
        MonitorError: QEMU does not tell where it listens.
    """
    first, last = ports if ports is not None else (0, None)
    try:
        await monitor.execute("migrate-incoming", {"uri": uri(address, first, last_port=last)})
    except QmpCommandFailed as error:
        where = f"{address}, ports {first}-{last}" if ports else address
        raise QmpCommandFailed(
            f"the destination cannot listen for the migration on {where}: {error.desc}",
            command=error.command,
            error_class=error.error_class,
            desc=error.desc,
            hint="check migration_address and migration_ports of the host in the settings, and what uses the ports",
            host=monitor.host,
        ) from error
    for entry in (await query(monitor)).socket_address:
        if entry.port.isdigit():
            return int(entry.port)
    raise MonitorError("the destination does not tell where it listens", host=monitor.host)


async def start(monitor: Monitor, address: str, port: int) -> None:
    """Start the outgoing migration. Succeeds even if the connection will fail: that comes later as status ``failed``."""
    await monitor.execute("migrate", {"uri": uri(address, port)})


async def cancel(monitor: Monitor) -> None:
    """Ask QEMU to cancel (``migrate_cancel``); the caller waits for the status and never sends it in post-copy."""
    await monitor.execute("migrate_cancel")


async def announce(monitor: Monitor, initial: int = 50, max_ms: int = 550, rounds: int = 5, step: int = 100) -> None:
    """Have the guest's network addresses announced again, now that it runs here (``announce-self``).

    QEMU's own announcement goes out before ``cont``, while the source could still be resumed; this is the one that
    counts. The defaults are QEMU's.

    Args:
        monitor: The destination's.
        initial: Milliseconds before the second announcement.
        max_ms: Milliseconds between two of them at most.
        rounds: How many.
        step: Milliseconds that are added after each.
    """
    await monitor.execute("announce-self", {"initial": initial, "max": max_ms, "rounds": rounds, "step": step})
