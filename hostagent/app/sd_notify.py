"""What a service tells systemd: that it is ready, that it lives, that it ends (sd_notify, without a library).

Without ``NOTIFY_SOCKET`` nothing is said to anybody.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import Final

import structlog

LOOK_S: Final = 1.0

log = structlog.get_logger("hostagent")


class ServiceManager:
    """The service manager that has started us, or nobody.

    Args:
        environment: Ours; ``NOTIFY_SOCKET``, ``WATCHDOG_USEC`` and ``WATCHDOG_PID`` are read.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        self._watchdog_s = _watchdog_s(environment)
        self._failed = False

    @property
    def watchdog_s(self) -> float:
        """Within so many seconds it wants to hear from us; 0: it does not ask."""
        return self._watchdog_s

    def say(self, *lines: str) -> None:
        """Say something: ``READY=1``, ``STATUS=…``, ``WATCHDOG=1``, ``STOPPING=1``. Never raises."""
        if not self._address:
            return
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.sendto("\n".join(lines).encode(), address)
        except OSError as error:
            if not self._failed:
                self._failed = True
                log.warning("service-manager-unreachable", reason=str(error))

    async def keep_alive(self, status: Callable[[], str]) -> None:
        """Say that we live, twice as often as is asked, and how we are whenever that changes; for ever.

        It comes from the event loop, so it stops when that hangs.

        Args:
            status: One line for `systemctl status`.
        """
        if not self._address:
            return
        said, beat = "", 0.0
        while True:
            lines = []
            if (now := status()) != said:
                said = now
                lines.append(f"STATUS={said}")
            if self._watchdog_s and time.monotonic() >= beat:
                beat = time.monotonic() + self._watchdog_s / 2
                lines.append("WATCHDOG=1")
            if lines:
                self.say(*lines)
            await asyncio.sleep(min(LOOK_S, self._watchdog_s / 4) if self._watchdog_s else LOOK_S)


def _watchdog_s(environment: Mapping[str, str]) -> float:
    micros, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not micros.isdecimal() or (pid and pid != str(os.getpid())):
        return 0.0
    return int(micros) / 1e6
