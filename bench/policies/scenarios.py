"""Who takes part, and with which guest on which link. Data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

MIB: Final = 1 << 20

LINK_MIB_S: Final = 60
"""The link, MiB per second: less than two cores without KVM can do, so that it is the link that limits."""

MEMORY_KIB: Final = 224 * 1024
WS_MIB: Final = 112
"""Working set: what the guest dirties while one full copy is sent at 0.8 of the link, so it does not run out of pages."""

BOUND_S: Final = 45.0
"""A migration that has not ended by then is cancelled and told as still going."""

Group: TypeAlias = Literal["policies", "modes", "raw"]


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to move a guest.

    Attributes:
        name: For tables and ``--contenders``.
        asked: Fields of `qmp_migrate.MigrationRequest`.
        ours: A policy of our own; False: one that does what another program does.
        by_raw: Not the product moves it but plain QMP (`bench.contenders.raw`).
        forecast: Ask for a forecast before.
    """

    name: str
    asked: dict[str, Any] = field(default_factory=dict)
    ours: bool = True
    by_raw: bool = False
    forecast: bool = False


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is moved.

    Attributes:
        name: For tables and ``--only``.
        group: Which contenders take part.
        story: The same in words.
        rate_mib_s: What the guest dirties.
        ws_mib: Its working set.
        memory_kib: Its memory.
        limited: Over the limited link.
    """

    name: str
    group: Group
    story: str
    rate_mib_s: int
    ws_mib: int = WS_MIB
    memory_kib: int = MEMORY_KIB
    limited: bool = True

    @property
    def ratio(self) -> float:
        """Dirty over link, as it is aimed at."""
        return self.rate_mib_s / LINK_MIB_S


OURS: Final = ("gentle", "default", "finish")
OTHERS: Final = ("proxmox", "nova", "ovirt", "ganeti", "kubevirt")

PLAIN: Final[dict[str, Any]] = {"encrypt": False}

CONTENDERS: Final[dict[Group, tuple[Contender, ...]]] = {
    "policies": (
        *(Contender(name, {**PLAIN, "policy": name}, forecast=name == "default") for name in OURS),
        *(Contender(name, {**PLAIN, "policy": name}, ours=False) for name in OTHERS),
    ),
    "modes": (
        Contender("pre-copy", PLAIN, forecast=True),
        Contender("multifd 2", {**PLAIN, "channels": 2}),
        Contender("multifd 4", {**PLAIN, "channels": 4}, forecast=True),
        Contender("TLS", {"encrypt": True}, forecast=True),
        Contender("TLS, multifd 4", {"encrypt": True, "channels": 4}),
        Contender("zstd, multifd 2", {**PLAIN, "channels": 2, "compress": "zstd"}),
        Contender("zlib, multifd 2", {**PLAIN, "channels": 2, "compress": "zlib"}),
        Contender("xbzrle", {**PLAIN, "compress": "xbzrle"}),
        Contender("post-copy", {**PLAIN, "mode": "postcopy"}, forecast=True),
        Contender("offline", {**PLAIN, "mode": "offline"}, forecast=True),
    ),
    "raw": (
        Contender("raw QEMU", ours=False, by_raw=True),
        Contender("single", PLAIN),
        Contender("multifd 2", {**PLAIN, "channels": 2}),
        Contender("multifd 4", {**PLAIN, "channels": 4}),
        Contender("TLS", {"encrypt": True}),
        Contender("TLS, multifd 2", {"encrypt": True, "channels": 2}),
        Contender("TLS, multifd 4", {"encrypt": True, "channels": 4}),
    ),
}

POLICIES: Final = tuple(
    Scenario(f"{ratio:g}", "policies", f"dirty/link = {ratio:g}", round(ratio * LINK_MIB_S))
    for ratio in (0.1, 0.5, 0.8, 1.2)
)
MODES: Final = Scenario("modes", "modes", "ways to move it, dirty/link = 0.5", round(0.5 * LINK_MIB_S))
RAW: Final = Scenario("throughput", "raw", "768 MiB of data, idle, no limit", 0, 768, 1024 * 1024, limited=False)

ALL: Final = (*POLICIES, MODES, RAW)

FIRST: Final = (RAW, MODES, *sorted(POLICIES, key=lambda scenario: (scenario.ratio > 1, -scenario.ratio)))
"""The order in the first round: what will not end, and so takes longest, comes last."""

AGAIN: Final = (*sorted(POLICIES, key=lambda scenario: abs(scenario.ratio - 0.8)), MODES, RAW)
"""The order from the second round on, which time may cut short: what is closest to what the link carries tells most."""
