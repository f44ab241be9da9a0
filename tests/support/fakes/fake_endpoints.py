"""Sides of a migration whose QEMUs are fake ones: what stands on `Side` is tested without hosts."""

from __future__ import annotations

import socket

from qmp_migrate.errors import TransportError
from qmp_migrate.hosts.process import ProcessId
from qmp_migrate.migration.endpoint.endpoint import Side
from qmp_migrate.settings import HostSettings
from tests.support.fakes.fake_qemu import FakeQemu


class FakeHost:
    """A host with one QEMU on it.

    Attributes:
        opened: The paths of the sockets that were opened, in order.
        unreachable: Set it, and nothing on this host can be reached any more.
    """

    def __init__(self, name: str, qemu: FakeQemu) -> None:
        self.name = name
        self.qemu = qemu
        self.opened: list[str] = []
        self.unreachable: TransportError | None = None

    async def connect(self) -> None:
        if self.unreachable is not None:
            raise self.unreachable

    async def open_unix(self, path: str, *, timeout: float = 5.0) -> socket.socket:
        await self.connect()
        self.opened.append(path)
        return await self.qemu.client()


def side_of(name: str, qemu: FakeQemu) -> Side:
    """Return the side of the guest ``web1`` on a fake host."""
    settings = HostSettings(address="192.0.2.1", run_dir="/run/q")
    return Side(FakeHost(name, qemu), settings, "web1", process=ProcessId(17, 1234, "boot"))
