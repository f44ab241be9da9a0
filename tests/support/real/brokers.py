"""Brokers for tests: the embedded one and a real Mosquitto, both restartable on the same port."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

import pytest

from qmp_migrate.bus.broker.embedded import EmbeddedBroker

PATIENCE_S = 60.0
"""How long a test waits for what must come: how busy the machine is, is not what is tested."""
START_S = PATIENCE_S


class AnyBroker(Protocol):
    """A broker that a test can take away and bring back."""

    port: int

    @property
    def url(self) -> str: ...
    async def start(self) -> None: ...
    async def stop(self) -> None: ...


def free_port() -> int:
    """Return a loopback port that is free now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def find_mosquitto() -> str | None:
    """Return the path of mosquitto; Debian puts it where an ordinary user's PATH does not look."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/sbin")


class Embedded:
    """The embedded broker. Forgets everything when stopped."""

    def __init__(self) -> None:
        self.port = free_port()
        self._broker: EmbeddedBroker | None = None

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._broker = await EmbeddedBroker(port=self.port).__aenter__()

    async def stop(self) -> None:
        if self._broker is not None:
            broker, self._broker = self._broker, None
            await broker.__aexit__(None, None, None)


class Mosquitto:
    """A real Mosquitto.

    Args:
        directory: For its configuration and log.
        listener: Lines that follow ``listener PORT 127.0.0.1`` (TLS, access control).
        scheme: Of `url`.
        persistent: It keeps what is retained over a restart, as of old; without, it comes back empty.
    """

    def __init__(
        self,
        directory: Path,
        *,
        listener: str = "allow_anonymous true",
        scheme: str = "mqtt",
        persistent: bool = False,
    ) -> None:
        binary = find_mosquitto()
        if binary is None:
            pytest.skip("mosquitto is not installed: apt-get install mosquitto")
        self.port = free_port()
        self.log = directory / "mosquitto.log"
        self._scheme = scheme
        self._config = directory / "mosquitto.conf"
        lines = [f"listener {self.port} 127.0.0.1", listener, "log_dest stderr"]
        lines += ["persistence true", f"persistence_location {directory}/"] if persistent else ["persistence false"]
        if os.geteuid() == 0:
            lines.append("user root")  # else it drops to a user who may not read the test's directory
        self._config.write_text("\n".join(lines) + "\n", encoding="utf-8")
        self._argv = [binary, "-c", str(self._config)]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self.port}"

    async def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self._argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)  # noqa: ASYNC220
        process = self._process
        await until(lambda: listens(self.port) or process.poll() is not None, "mosquitto listens", timeout=START_S)
        if process.poll() is not None:
            pytest.fail(f"mosquitto did not start: {self.log.read_text()}")

    async def stop(self, number: int = signal.SIGTERM) -> None:
        if self._process is not None:
            process, self._process = self._process, None
            process.send_signal(signal.SIGCONT)
            process.send_signal(number)
            await asyncio.to_thread(process.wait, 10)

    def freeze(self) -> None:
        """Stop answering without closing anything."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


def listens(port: int, address: str = "127.0.0.1") -> bool:
    """Tell whether something accepts connections on a port."""
    with socket.socket() as sock:
        return sock.connect_ex((address, port)) == 0


async def until(
    condition: Callable[[], bool | Awaitable[bool]], what: str, *, timeout: float = PATIENCE_S, every: float = 0.02
) -> None:
    """Wait for a state.

    Args:
        condition: Is it so?
        what: What is waited for, for the failure's text.
        timeout: Seconds after which the test fails.
        every: Seconds between two looks.
    """
    end = time.monotonic() + timeout
    while True:
        answer = condition()
        if isinstance(answer, Awaitable):
            answer = await answer
        if answer:
            return
        if time.monotonic() > end:
            pytest.fail(f"not within {timeout:g} s: {what}")
        await asyncio.sleep(every)
