"""When standing still becomes a failure. QEMU itself has no keep-alive: it did not notice a black hole within a minute.

Everything that a migration waits for has a limit, and each ends in a proven state (`ending`). All of them:

==================  ==================================  =============================================================
limit               where it is set                     what is seen, and the error's code
==================  ==================================  =============================================================
connect             ``[watchdog] connect``, 30 s        no byte has travelled since ``migrate``: ``not_connected``
stall               ``[watchdog] stall``, 20 s          no byte while memory is copied: ``stalled``
disks               ``[watchdog] stall``, 20 s          no byte while disks are copied: ``stalled``
switchover          ``[watchdog] switchover``, 10 s     stopped longer than that and the downtime limit:
                                                        ``switchover_stuck``; the source is then yanked out of band
a QMP command       `qmp_migrate.qemu.timeouts`         no answer: unknown, asked again
SSH sign of life    `qmp_migrate.hosts.ssh.host`, 15 s       a peer that froze: the connection is given up
reconnecting        `engine.RECONNECT_S`, 15 s          the control connection does not come back while memory is copied
a look at a QEMU    `endpoint.LOOK_S`, 8 s                  counts as unknown for now
settling            `reconciliation.LIMIT_S`, 25 s            no proven state: parked
a launch            `hosts.process.launch`, 20 s        the new QEMU makes no monitor: killed
locks               `hosts.timing.lease_s`, 30 s        no sign of life of the controller: its connection and locks end
guardian            agent, ``--guardian-limit``, 3 s    the same at pre-switchover: the guest runs on at the source
==================  ==================================  =============================================================
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from qmp_migrate.errors import MigrationFailed
from qmp_migrate.migration.model.request import MigrationRequest

MOST_UNSEEN_S: Final = 2.0
"""More time than this between two looks, and nobody has watched meanwhile."""


@dataclass(slots=True)
class Watchdog:
    """Looks at one migration's figures, again and again. Times are seconds on one monotonic clock.

    Attributes:
        request: Says the limits.
        host: The source.
        address, port: Where memory goes, for messages.
        begun: When it was started.
    """

    request: MigrationRequest
    host: str
    address: str
    port: int
    begun: float
    _moved: int = -1
    _since: float = field(init=False)
    _looked: float = field(init=False)
    _woke: float = float("-inf")

    def __post_init__(self) -> None:
        self._since = self._looked = self.begun

    def look(self, now: float, *, transferred: int, connected: bool, stopped: float | None) -> MigrationFailed | None:
        """Return the failure that has come about, or None.

        Args:
            now: The time.
            transferred: Bytes sent so far, as last heard.
            connected: Something has travelled.
            stopped: When the guest stopped for the switchover; None: it runs.
        """
        limits = self.request.limits
        if (unseen := now - self._looked) > MOST_UNSEEN_S:
            # This process was frozen, or its machine asleep: what it did not see stand still did not stand still.
            self.begun, self._since = self.begun + unseen, self._since + unseen
            self._woke = now
        self._looked = now
        if stopped is not None:
            self._since = now
            seconds = now - max(stopped, self._woke)
            late = seconds > limits.switchover_s + self.request.downtime_limit_ms / 1000
            return self._stuck(seconds) if late else None
        if not connected:
            self._since = now
            return self._not_connected() if now - self.begun > limits.connect_s else None
        if transferred != self._moved:
            self._moved, self._since = transferred, now
        return self._stalled(now - self._since) if now - self._since > limits.stall_s else None

    def _failure(self, message: str, code: str, hint: str) -> MigrationFailed:
        return MigrationFailed(message, safe_at_source=True, code=code, hint=hint, host=self.host)

    def _not_connected(self) -> MigrationFailed:
        return self._failure(
            f"no memory has travelled to {self.address} port {self.port} within {self.request.limits.connect_s:g} s",
            "not_connected",
            "does a firewall drop it? set migration_ports of the host and open them from the source",
        )

    def _stalled(self, seconds: float) -> MigrationFailed:
        return self._failure(
            f"nothing has travelled to {self.address} for {seconds:.0f} s",
            "stalled",
            "the network between the two hosts swallows packets, or a QEMU hangs; [watchdog] stall sets the limit",
        )

    def _stuck(self, seconds: float) -> MigrationFailed:
        return self._failure(
            f"the switchover was not over after {seconds:.0f} s",
            "switchover_stuck",
            "the network between the hosts was cut just then, or a QEMU hangs; [watchdog] switchover sets the limit",
        )


DISK_CHUNK: Final = 1 << 20
"""Bytes that QEMU copies of a disk in one piece; a slow link moves nothing that can be seen in between."""

UNSEEN_WORK: Final = 10
"""So many times the limit, while QEMU prepares a copy: it looks through the whole disk and says no number meanwhile."""


@dataclass(slots=True)
class DiskWatchdog:
    """Looks at the copies of a guest's disks, until they are complete. Times are seconds on one monotonic clock.

    Attributes:
        request: Says the limits.
        host: The source.
        begun: When it was started.
    """

    request: MigrationRequest
    host: str
    begun: float
    _moved: int = -1
    _since: float = field(init=False)
    _looked: float = field(init=False)

    def __post_init__(self) -> None:
        self._since = self._looked = self.begun

    def look(self, now: float, *, done: int, total: int) -> MigrationFailed | None:
        """Return the failure that has come about, or None.

        Args:
            now: The time.
            done: Bytes copied so far, of all disks together.
            total: Bytes to copy; 0: QEMU does not know yet.
        """
        if (unseen := now - self._looked) > MOST_UNSEEN_S:
            self._since += unseen
        self._looked = now
        if done != self._moved:
            self._moved, self._since = done, now
        limit = self.request.limits.stall_s * (1 if total and done else UNSEEN_WORK)
        if self.request.bandwidth_bytes_per_s:
            limit = max(limit, 4 * DISK_CHUNK / self.request.bandwidth_bytes_per_s)
        if now - self._since <= limit:
            return None
        return MigrationFailed(
            f"nothing of the disks has travelled for {now - self._since:.0f} s",
            safe_at_source=True,
            code="stalled",
            hint="the network between the two hosts swallows packets, or storage hangs; [watchdog] stall sets the limit",
            host=self.host,
        )
