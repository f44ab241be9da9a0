"""What is moved: the guest's doings, the encryption, the bandwidth, and who takes part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MEMORY_KIB: Final = 512 * 1024
"""The guest's memory, in every scenario."""

ODD_KIB: Final = 8
"""So much more where a guest would else lose writes (`guest.loses_writes`)."""

DOWNTIME_LIMIT_MS: Final = 30
"""QEMU's ``downtime-limit`` for all: what qmp-migrate begins with, so that nobody is allowed more than the others."""

MIB: Final = 1 << 20

EVERYBODY: Final = ("raw", "command", "library", "virsh")


@dataclass(frozen=True, slots=True)
class Scenario:
    """One kind of migration that is measured.

    Attributes:
        name: For the table and ``--only``.
        story: The same in words.
        rate_mib_s: What the guest rewrites, MiB per second.
        ws_mib: Over this working set, MiB; it is filled before anything is measured, with nothing that compresses.
        encrypted: TLS on the migration stream.
        bandwidth_bytes_per_s: Limit; 0: none.
        contenders: Who takes part, in this order.
    """

    name: str
    story: str
    rate_mib_s: int
    ws_mib: int
    encrypted: bool = False
    bandwidth_bytes_per_s: int = 0
    contenders: tuple[str, ...] = EVERYBODY


CORE: Final = (
    Scenario("idle", "idle guest", rate_mib_s=0, ws_mib=16),
    Scenario("idle-tls", "idle guest, encrypted", rate_mib_s=0, ws_mib=16, encrypted=True),
    Scenario("dirtying", "guest that dirties 30 MiB/s of 64 MiB", rate_mib_s=30, ws_mib=64),
    Scenario(
        "dirtying-tls", "guest that dirties 30 MiB/s of 64 MiB, encrypted", rate_mib_s=30, ws_mib=64, encrypted=True
    ),
)
"""Blackout and duration are judged on these."""

BULK: Final = (
    Scenario("bulk", "384 MiB of data, idle, unlimited", rate_mib_s=0, ws_mib=384, contenders=("raw", "command")),
    Scenario(
        "bulk-tls",
        "384 MiB of data, idle, unlimited, encrypted",
        rate_mib_s=0,
        ws_mib=384,
        encrypted=True,
        contenders=("raw", "command"),
    ),
)
"""Throughput is judged on these."""

PACED: Final = Scenario(
    "paced",
    "256 MiB of data, 8 MiB/s dirtied, at 40 MiB/s, encrypted",
    rate_mib_s=8,
    ws_mib=256,
    encrypted=True,
    bandwidth_bytes_per_s=40 * MIB,
    contenders=("command", "library"),
)
"""Copies for several seconds: the controller's own CPU time is judged on it."""

ALL: Final = (*CORE, *BULK, PACED)

BARE_MEMORY_KIB: Final = 2 << 20
"""The memory of the guest without an operating system, which runs under KVM on more machines."""

BARE: Final = tuple(
    Scenario(name, story, rate_mib_s=rate, ws_mib=ws, encrypted=encrypted, contenders=("raw", "command", "library"))
    for name, story, rate, ws, encrypted in (
        ("bare-idle", "idle guest of 2 GiB", 0, 16, False),
        ("bare-bulk", "1.5 GiB of data, idle", 0, 1536, False),
        ("bare-bulk-tls", "1.5 GiB of data, idle, encrypted", 0, 1536, True),
        ("bare-dirtying", "guest that dirties 200 MiB/s of 1 GiB", 200, 1024, False),
        ("bare-dirtying-tls", "guest that dirties 200 MiB/s of 1 GiB, encrypted", 200, 1024, True),
    )
)
"""With ``--guest bare``: no target is judged on these; they stand beside those of the Linux guest."""
