"""Where everything of a rig is: names, addresses, directories. Pure, except for the default directory's environment.

::

    DIR/rig.json              what the rig consists of, and which processes those are
    DIR/qmp-migrate.toml      settings for the controller
    DIR/guest.toml            spec of the chosen test guest        DIR/guest-bare.toml   of the bare one
    DIR/journal.sqlite        the controller's journal
    DIR/ssh/                  the key pair that all hosts accept, and their host keys (known_hosts)
    DIR/parts/NAME/           one directory per process (broker, sshd-a, agent-a, …): pid, log, argv.json, ready
    DIR/a/run/, DIR/b/run/    RUN_DIR of each host
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from qmp_migrate.errors import RigError, UsageError
from qmp_migrate.hosts.base import UNIX_PATH_LIMIT

#: Hosts are called a, b, c, …; their addresses are 127.0.0.2, 127.0.0.3, …
MAX_HOSTS = 26
# What comes after RUN_DIR in the longest socket path: "/NAME/agent.sock" with a name of some use.
_SOCKET_ROOM = len("/") + 16 + len("/agent.sock")


@dataclass(frozen=True, slots=True)
class RigHost:
    """One host of a rig.

    Attributes:
        name: ``a``, ``b``, …
        address: Its loopback address.
        port: The port of its sshd there.
        run_dir: Its RUN_DIR.
        user: Who logs in there; empty: who runs the rig.
        migration_address: Where guests' memory travels; empty: `address`.
        time_factor: How much more time it needs than a real host.
    """

    name: str
    address: str
    port: int
    run_dir: Path
    user: str = ""
    migration_address: str = ""
    time_factor: float = 1.0


def default_directory() -> Path:
    """Return where a rig is when nobody says: under ``$XDG_RUNTIME_DIR``, else ``/tmp/qmp-rig-UID``."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(runtime) / "qmp-migrate-rig" if runtime else Path(f"/tmp/qmp-rig-{os.getuid()}")  # noqa: S108


def host_names(count: int) -> list[str]:
    """Return the names of ``count`` hosts.

    Raises:
        UsageError: Fewer than one, or more than :data:`MAX_HOSTS`.
    """
    if not 1 <= count <= MAX_HOSTS:
        raise UsageError(f"a rig has 1 to {MAX_HOSTS} hosts, not {count}")
    return [chr(ord("a") + number) for number in range(count)]


def address_of(number: int) -> str:
    """Return the loopback address of the ``number``-th host, counted from 0."""
    return f"127.0.0.{number + 2}"


def run_dir(directory: Path, name: str) -> Path:
    """Return the RUN_DIR of a host.

    Raises:
        RigError: Socket paths in it would be too long for the kernel.
    """
    path = directory / name / "run"
    if len(os.fsencode(path)) + _SOCKET_ROOM > UNIX_PATH_LIMIT:
        raise RigError(
            f"{directory} is too long: sockets of guests under {path} would pass {UNIX_PATH_LIMIT} bytes",
            hint="choose a shorter --dir, for example /tmp/rig",
        )
    return path
