"""What is asked of a migration, and the document that tells how it ended."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final, Literal, TypeAlias, cast

from qmp_migrate.errors import InvalidQuantity, UsageError
from qmp_migrate.migration.convergence.policies import find
from qmp_migrate.settings import Limits
from qmp_migrate.vm.names import validate_name

MAX_DOWNTIME_MS: Final = 2_000_000
"""QEMU refuses a larger ``downtime-limit``."""

MIN_BANDWIDTH: Final = 64 * 1024
"""Bytes per second; less than this never ends and is surely a typo."""

MAX_THROTTLE_PERCENT: Final = 99
"""QEMU's own limit for ``max-cpu-throttle``."""

Mode: TypeAlias = Literal["live", "postcopy", "offline"]
Compression: TypeAlias = Literal["zlib", "zstd", "xbzrle"]
StorageCopy: TypeAlias = Literal["full", "top"]
SourceImages: TypeAlias = Literal["keep", "rename", "remove"]

MAX_CHANNELS: Final = 255
"""QEMU's own limit for ``multifd-channels``."""

_IDENTITY: Final = frozenset({"vm", "destination", "source", "mode", "limits", "id"})
"""Fields that the journal keeps in columns of their own, or not at all."""

Outcome = Literal["completed", "rolled_back", "cancelled", "failed", "unknown"]
Owner = Literal["destination", "source", "none", "unknown"]


@dataclass(frozen=True, slots=True)
class MigrationRequest:
    """One migration that somebody wants.

    Attributes:
        vm: The guest.
        destination: Host to move it to.
        source: Host it runs on; None: it is looked for.
        mode: ``live``: the guest runs while its memory is copied; ``postcopy``: it goes on at the destination before all of
            it is there; ``offline``: it is suspended while its memory travels.
        downtime_limit_ms: The longest blackout the user allows, milliseconds.
        bandwidth_bytes_per_s: Rate limit; 0: as fast as the link goes.
        encrypt: TLS with a key of this migration's own.
        handover_by_agents: The hosts' agents may hand the guest over, should the controller be gone when it runs nowhere.
        guarded: The source stops at pre-switchover until the controller has proven lock and destination once more; if the
            controller is gone there, the source's agent takes the guest back. Costs a round trip of blackout.
        policy: What is done about a guest that dirties memory faster than it can be copied; see
            `qmp_migrate.migration.convergence.policies`.
        allow_postcopy: The policy may turn to post-copy; None: as the policy says.
        allow_stop: The policy may stop the guest for longer than the downtime limit; None: as the policy says.
        max_throttle_percent: How much the policy may slow the guest down, 0 to 99; None: as the policy says.
        max_bandwidth_bytes_per_s: Up to where the policy may raise the rate limit; 0: as far as it likes; None: not at all.
        switchover_bandwidth_bytes_per_s: What the link carries while the guest stands still, where that is more than the
            rate limit (QEMU 8.2 and later); 0: as much as before.
        timeout_ms: After this time the last means that are allowed are used, or it is given up; 0: never.
        channels: Connections that carry memory; more than 1: QEMU's multifd.
        compress: ``zlib`` and ``zstd`` need multifd, ``xbzrle`` excludes it.
        copy_storage: Copy the guest's disks, too: ``full`` (chains flattened) or ``top`` (over backing files that the
            destination has already). None: they are shared.
        source_images: What becomes of the copied disks' images at the source once the guest runs at the destination.
        announce: QEMU's ``announce-initial``, ``-max``, ``-rounds`` and ``-step``, milliseconds but for the rounds: how often
            the guest's network addresses are announced once it runs at the destination.
        limits: When standing still becomes a failure.
        id: Made here; names the migration in the journal and on the bus.

    Raises:
        UsageError: Destination equals source, or there is no such policy.
        InvalidName, InvalidQuantity: See `qmp_migrate.errors`.
    """

    vm: str
    destination: str
    source: str | None = None
    mode: Mode = "live"
    downtime_limit_ms: int = 300
    bandwidth_bytes_per_s: int = 0
    encrypt: bool = True
    handover_by_agents: bool = True
    guarded: bool = False
    policy: str = "default"
    allow_postcopy: bool | None = None
    allow_stop: bool | None = None
    max_throttle_percent: int | None = None
    max_bandwidth_bytes_per_s: int | None = None
    switchover_bandwidth_bytes_per_s: int = 0
    timeout_ms: int = 0
    channels: int = 1
    compress: Compression | None = None
    copy_storage: StorageCopy | None = None
    source_images: SourceImages = "keep"
    announce: tuple[int, int, int, int] = (50, 550, 5, 100)
    limits: Limits = field(default_factory=Limits)
    id: str = field(default_factory=lambda: new_id())

    def __post_init__(self) -> None:
        validate_name(self.vm, "guest name")
        validate_name(self.destination, "host name")
        if self.source is not None:
            validate_name(self.source, "host name")
            if self.source == self.destination:
                raise UsageError(
                    f"{self.vm} is already on {self.destination}", hint="name another host with --to", host=self.source
                )
        find(self.policy)
        if not 1 <= self.downtime_limit_ms <= MAX_DOWNTIME_MS:
            raise InvalidQuantity(
                f"a downtime limit of {self.downtime_limit_ms} ms is not possible",
                hint=f"QEMU takes 1ms to {MAX_DOWNTIME_MS // 1000}s, for example --downtime-limit 300ms",
            )
        if self.bandwidth_bytes_per_s != 0 and self.bandwidth_bytes_per_s < MIN_BANDWIDTH:
            raise InvalidQuantity(
                f"a bandwidth of {self.bandwidth_bytes_per_s} bytes per second would never end",
                hint="for example --bandwidth 1Gbit or --bandwidth 80MiB",
            )
        if self.max_throttle_percent is not None and not 0 <= self.max_throttle_percent <= MAX_THROTTLE_PERCENT:
            raise InvalidQuantity(
                f"a throttle of {self.max_throttle_percent} % is not possible",
                hint=f"0% (never slow the guest down) to {MAX_THROTTLE_PERCENT}%, for example --max-throttle 30%",
            )
        if not 1 <= self.channels <= MAX_CHANNELS:
            raise InvalidQuantity(
                f"{self.channels} channels are not possible", hint=f"1 to {MAX_CHANNELS}, for example --channels 4"
            )

    @property
    def pauses(self) -> bool:
        """Whether the source stops at pre-switchover: there is something to prove or to finish there."""
        return self.guarded or self.copy_storage is not None

    @property
    def asked(self) -> dict[str, Any]:
        """What was asked for, beside which guest goes where: for the journal."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _IDENTITY}

    @classmethod
    def again(
        cls, asked: Mapping[str, Any], *, vm: str, destination: str, source: str, mode: str, limits: Limits, id: str
    ) -> MigrationRequest:
        """Return the request that another controller wrote down; what it did not know yet has its default.

        Args:
            asked: `asked` of then; what is no field of a request is skipped.
            vm: The guest.
            destination: Host it was going to.
            source: Host it was on.
            mode: As it was asked for.
            limits: Those of now.
            id: The migration's.
        """
        names = {f.name for f in fields(cls)} - _IDENTITY
        known = {name: value for name, value in asked.items() if name in names}
        return cls(vm, destination, source, cast(Mode, mode), limits=limits, id=id, **known)


def new_id() -> str:
    """Return a new migration id: sortable by time, safe as a topic level, file name and QEMU object id."""
    return f"m{time.strftime('%y%m%d%H%M%S', time.gmtime())}{secrets.token_hex(3)}"


@dataclass(slots=True)
class MigrationResult:
    """``migration.result/1`` (DESIGN §6): how a migration ended. Milliseconds and bytes as the names say.

    Attributes:
        blackout_ms: STOP at the source to RESUME at the destination, on the controller's clock.
        qemu: QEMU's own ``total_ms``, ``downtime_ms``, ``setup_ms``.
        steps: What the convergence policy did, with reasons.
        forecast: What was foretold, with ``error_percent`` (its time over the real one); None: nothing was.
        hooks: How each hook ended; see `qmp_migrate.migration.lifecycle.hooks.HookRun`.
        error: None when it completed; else code, message, hint, host.
    """

    id: str
    vm: str
    source: str
    destination: str
    mode: str
    outcome: Outcome = "failed"
    owner: Owner = "source"
    total_ms: int = 0
    blackout_ms: float = 0.0
    qemu: dict[str, int] = field(default_factory=lambda: {"total_ms": 0, "downtime_ms": 0, "setup_ms": 0})
    ram_bytes: int = 0
    transferred_bytes: int = 0
    disk_bytes: int = 0
    passes: int = 0
    throughput_bytes_per_s: int = 0
    encrypted: bool = False
    channels: int = 1
    steps: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    forecast: Mapping[str, Any] | None = None
    hooks: list[dict[str, Any]] = field(default_factory=list)
    error: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the document."""
        return {"schema": "migration.result/1", **asdict(self)}
