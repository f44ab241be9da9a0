"""Two real QEMUs whose controller is gone after the source has said ``completed``, and what it has left on each host.

The test plays the controller that dies: it writes the mandates, the epochs and the last signs of life.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from pathlib import Path
from typing import Any, Final

from qmp_migrate.bus.messages.field_types import now
from qmp_migrate.bus.messages.handover_token import HostToken
from qmp_migrate.bus.messages.session import boot_id
from tests.support.real.brokers import until
from tests.support.real.pre_switchover_pair import HeldPair

MIGRATION: Final = "m261126-test"
EPOCH: Final = 7


class HandingPair(HeldPair):
    """See the module. `begin` brings both to where the source has completed and the destination waits.

    Args:
        base: Directory for everything; ``run`` and ``elsewhere`` are the two RUN_DIRs.
        binary: The QEMU of both.

    Attributes:
        secret: The migration's.
        source_dir, destination_dir: The RUN_DIRs.
    """

    def __init__(self, base: Path, binary: str) -> None:
        super().__init__(base / "run", binary)
        self.secret = secrets.token_bytes(32)
        self.source_dir, self.destination_dir = base / "run", base / "elsewhere"

    async def begin(self) -> None:
        """Migrate up to the source's ``completed``, and write what a controller would have written."""
        await self.start()
        await self.monitor.execute("migrate-continue", {"state": "pre-switchover"})
        await self.until_status("completed")
        await until(self._loaded, "the destination has loaded", timeout=60)
        for role, run_dir in (("source", self.source_dir), ("destination", self.destination_dir)):
            (run_dir / ".locks").mkdir(exist_ok=True)
            (run_dir / ".locks" / "web1.epoch").write_text(f"{EPOCH}\n{EPOCH} migration {MIGRATION}\n")
            self.beat_at(run_dir)
            self.give(role, run_dir)

    def give(self, role: str, run_dir: Path, **changes: Any) -> None:
        """Write a mandate."""
        directory = run_dir / ".handover"
        directory.mkdir(exist_ok=True, mode=0o700)
        document = {
            "schema": "handover.mandate/1",
            "migration": MIGRATION,
            "vm": "web1",
            "role": role,
            "process": self.process(run_dir),
            "destination_process": self.process(self.destination_dir),
            "epoch": EPOCH,
            "secret": self.secret.hex(),
        } | changes
        fresh = directory / "web1.new"
        fresh.touch(mode=0o600)
        fresh.write_text(json.dumps(document))
        fresh.replace(directory / "web1.mandate")

    def process(self, run_dir: Path) -> str:
        """Return ``PID START BOOT`` of the QEMU of one side."""
        return (run_dir / "web1" / "pid").read_text().strip()

    def beat_at(self, run_dir: Path) -> None:
        """Write a sign of life of the controller."""
        (run_dir / ".locks" / "web1.beat").write_text(Path("/proc/uptime").read_text().split()[0] + "\n")

    def token(self, step: Any, offer: str, ready: str | None = None, **changes: Any) -> HostToken:
        """Return a well-signed word of the source's agent, or a changed one."""
        fields: dict[str, Any] = {
            "host": "a",
            "at": now(),
            "migration": MIGRATION,
            "vm": "web1",
            "step": step,
            "epoch": EPOCH,
            "process": self.process(self.destination_dir),
            "offer": offer,
            "ready": ready,
        }
        return HostToken(**(fields | changes)).signed(self.secret)

    def record(self, run_dir: Path) -> str:
        """Return what an agent has written down, ``""`` where nothing was."""
        path = run_dir / ".handover" / "web1.record"
        return str(json.loads(path.read_text())["state"]) if path.exists() else ""

    def source_gone(self) -> bool:
        """Tell whether the source's QEMU has ended."""
        return self._processes[0].poll() is not None

    async def runs_at_destination(self) -> bool:
        """Tell whether the destination runs the guest."""
        answer: Any = await self.destination.execute("query-status")
        return bool(answer["running"])

    async def _loaded(self) -> bool:
        answer: Any = await self.destination.execute("query-migrate")
        return bool(answer.get("status") == "completed")


class HeldLock:
    """A guest's lock, held by a controller that lives."""

    def __init__(self, run_dir: Path) -> None:
        self._descriptor = os.open(run_dir / ".locks" / "web1.lock", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def release(self) -> None:
        """Give it up, as a crash does: the file stays."""
        os.close(self._descriptor)


def this_boot() -> str:
    """Return the id of this boot."""
    return boot_id()
