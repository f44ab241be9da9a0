"""What QEMU 7.2.22 and 10.0.2 really say, recorded on Debian 12: the words the fake QMP server speaks by default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True)
class Release:
    """One QEMU release: how it greets and what it knows.

    Attributes:
        numbers: Major, minor, micro.
        package: The distributor's version text.
        capabilities: Migration capabilities, all off at first.
        parameters: Migration parameters with their defaults.
        run_status: Members that ``query-status`` has beside ``status`` and ``running``.
        waiting: What ``query-migrate`` says on a destination that listens, beside ``socket-address``.
    """

    numbers: tuple[int, int, int]
    package: str
    capabilities: tuple[str, ...]
    parameters: dict[str, Any]
    run_status: dict[str, Any]
    waiting: dict[str, Any]

    @property
    def version(self) -> dict[str, Any]:
        """``query-version``."""
        major, minor, micro = self.numbers
        return {"qemu": {"micro": micro, "minor": minor, "major": major}, "package": self.package}


_BOTH: Final = (
    *("xbzrle", "rdma-pin-all", "auto-converge", "zero-blocks", "events", "postcopy-ram", "x-colo"),
    *("release-ram", "return-path", "pause-before-switchover", "multifd", "dirty-bitmaps"),
    *("postcopy-blocktime", "late-block-activate", "x-ignore-shared", "validate-uuid", "background-snapshot"),
    *("zero-copy-send", "postcopy-preempt"),
)

_PARAMETERS: Final = {
    "cpu-throttle-tailslow": False,
    "xbzrle-cache-size": 67108864,
    "cpu-throttle-initial": 20,
    "announce-max": 550,
    "multifd-channels": 2,
    "multifd-zstd-level": 1,
    "announce-initial": 50,
    "downtime-limit": 300,
    "tls-authz": "",
    "multifd-compression": "none",
    "announce-rounds": 5,
    "announce-step": 100,
    "tls-creds": "",
    "multifd-zlib-level": 1,
    "max-cpu-throttle": 99,
    "max-postcopy-bandwidth": 0,
    "tls-hostname": "",
    "throttle-trigger-threshold": 50,
    "max-bandwidth": 134217728,
    "x-checkpoint-delay": 20000,
    "cpu-throttle-increment": 10,
}

V7_2: Final = Release(
    (7, 2, 22),
    "Debian 1:7.2+dfsg-7+deb12u18+b3",
    (*_BOTH, "compress", "block"),
    _PARAMETERS
    | {
        "decompress-threads": 2,
        "compress-threads": 8,
        "compress-level": 1,
        "block-incremental": False,
        "compress-wait-thread": True,
    },
    {"singlestep": False},
    {},
)
V10_0: Final = Release(
    (10, 0, 2),
    "Debian 1:10.0.2+ds-2+deb13u1~bpo12+1",
    (*_BOTH, "switchover-ack", "dirty-limit", "mapped-ram"),
    _PARAMETERS
    | {
        "direct-io": False,
        "avail-switchover-bandwidth": 0,
        "zero-page-detection": "multifd",
        "multifd-qatzip-level": 1,
        "mode": "normal",
        "vcpu-dirty-limit": 1,
        "x-vcpu-dirty-limit-period": 1000,
    },
    {},
    {"status": "setup"},
)

ACTIVE_7_2: Final = {
    "expected-downtime": 300,
    "status": "active",
    "setup-time": 27,
    "total-time": 91,
    "ram": {
        "total": 134750208,
        "postcopy-requests": 0,
        "dirty-sync-count": 1,
        "multifd-bytes": 0,
        "pages-per-second": 0,
        "downtime-bytes": 0,
        "page-size": 4096,
        "remaining": 34328576,
        "postcopy-bytes": 0,
        "mbps": 0,
        "transferred": 343501,
        "dirty-sync-missed-zero-copy": 0,
        "precopy-bytes": 343501,
        "duplicate": 24486,
        "dirty-pages-rate": 0,
        "skipped": 0,
        "normal-bytes": 122880,
        "normal": 30,
    },
}
"""``query-migrate`` of a 7.2 source in its first pass."""

COMPLETED_10_0: Final = {
    "status": "completed",
    "setup-time": 16,
    "downtime": 50,
    "total-time": 99,
    "ram": {
        "total": 134750208,
        "postcopy-requests": 0,
        "dirty-sync-count": 2,
        "multifd-bytes": 0,
        "pages-per-second": 0,
        "downtime-bytes": 24739,
        "page-size": 4096,
        "remaining": 0,
        "postcopy-bytes": 0,
        "mbps": 90.82159036144577,
        "transferred": 942274,
        "dirty-sync-missed-zero-copy": 0,
        "precopy-bytes": 840809,
        "duplicate": 32777,
        "dirty-pages-rate": 0,
        "normal-bytes": 569344,
        "normal": 139,
    },
}
"""``query-migrate`` of a 10.0 source that has just completed."""

LISTENING: Final = {"socket-address": [{"port": "40107", "ipv4": True, "host": "127.0.0.1", "type": "inet"}]}
"""What both add to ``query-migrate`` of a destination after ``migrate-incoming``."""
