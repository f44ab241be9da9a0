"""How a host is reached: over SSH, or because it is this machine. No QMP in here."""

from __future__ import annotations

from qmp_migrate.hosts.base import Completed, HeldLock, Host, HostAddress
from qmp_migrate.hosts.local import LocalHost
from qmp_migrate.hosts.ssh.host import SshHost
from qmp_migrate.hosts.timing import Timing

__all__ = ["Completed", "HeldLock", "Host", "HostAddress", "LocalHost", "SshHost", "Timing", "make_host"]


def make_host(address: HostAddress) -> Host:
    """Return the driver for ``address``: not connected yet.

    Args:
        address: How the host is reached.
    """
    return LocalHost(address.name, address.timing) if address.local else SshHost(address)
