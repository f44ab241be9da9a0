"""Where the shoot-out takes place: a rig, a controller with open connections in this very process, and plain QMP."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.contenders.base import MoveFailed
from bench.contenders.raw import Raw
from bench.guest import SOCKET, Guest
from bench.policies.measure.samples import Point
from qmp_migrate import Controller, GuestUnknown, MigrationView, Progress, QmpMigrateError, parse_spec
from qmp_migrate.rig import RigState, down, up
from qmp_migrate.settings import load

SOURCE: Final = "a"
DESTINATION: Final = "b"


@dataclass(slots=True)
class Recorder:
    """Follows migrations as the bus does, and keeps the course of the latest one."""

    curve: list[Point] = field(default_factory=list)
    throttle_percent: int = 0

    def phase(self, view: MigrationView) -> None:
        """See `qmp_migrate.Reporter`."""

    def progress(self, progress: Progress) -> None:
        """See `qmp_migrate.Reporter`."""
        self.throttle_percent = max(self.throttle_percent, progress.throttle_percent)
        self.curve.append(
            Point(
                progress.elapsed_ms,
                progress.pass_number,
                progress.remaining_bytes,
                progress.transferred_bytes,
                progress.throttle_percent,
            )
        )

    def event(self, kind: str, data: Mapping[str, Any]) -> None:
        """See `qmp_migrate.Reporter`."""

    def begin(self) -> None:
        """Forget the one before."""
        self.curve, self.throttle_percent = [], 0


@dataclass(slots=True)
class Arena:
    """Two hosts, one controller.

    Attributes:
        state: The rig.
        controller: The product.
        recorder: What the controller tells.
        raw: QEMU without the product.
    """

    state: RigState
    controller: Controller
    recorder: Recorder
    raw: Raw

    @classmethod
    @contextlib.asynccontextmanager
    async def up(cls, directory: Path, qemu: Path) -> AsyncIterator[Arena]:
        """Bring it up, and take everything down at the end.

        Args:
            directory: For its files; short, for sockets are in there.
            qemu: The binary that both hosts shall use.

        Raises:
            QmpMigrateError: The rig does not come up.
        """
        async with contextlib.AsyncExitStack() as stack:
            rig = directory / "rig"
            # The rig takes the QEMU that it finds first.
            os.environ["PATH"] = os.pathsep.join((str(qemu.parent), os.environ["PATH"]))
            state = await up(rig, 2)
            stack.push_async_callback(_down, rig)
            recorder = Recorder()
            opened = Controller.open(load(state.settings_file), reporters=(recorder,))
            controller = await stack.enter_async_context(opened)
            for name in controller.settings.hosts:
                await controller.host(name).connect()
            yield cls(state, controller, recorder, Raw(directory / "raw"))

    def directories(self, guest: Guest, *, by_raw: bool) -> tuple[Path, Path]:
        """Return a guest's directory at the source and at the destination."""
        if by_raw:
            return self.raw.directories(guest)
        source, destination = self.state.hosts[:2]
        return source.run_dir / guest.name, destination.run_dir / guest.name

    async def start(self, guest: Guest, *, by_raw: bool) -> None:
        """Start a guest at the source.

        Raises:
            MoveFailed: It does not start.
        """
        if by_raw:
            await self.raw.start(guest)
            return
        directory = self.directories(guest, by_raw=False)[0]
        try:
            await self.controller.start(
                parse_spec(guest.spec(directory), source="bench", base_dir=str(directory)), on=SOURCE
            )
        except QmpMigrateError as error:
            raise MoveFailed(f"{error} [{error.code}]") from error

    async def discard(self, guest: Guest, *, by_raw: bool) -> None:
        """End it on whatever host it is.

        Raises:
            MoveFailed: Something of it resists; the rig's end takes it down.
        """
        if by_raw:
            await self.raw.discard(guest)
            return
        for host, directory in zip((SOURCE, DESTINATION), self.directories(guest, by_raw=False), strict=True):
            if directory.exists():
                (directory / SOCKET).unlink(
                    missing_ok=True
                )  # a QEMU that is killed leaves it, and nobody else knows it
                try:
                    with contextlib.suppress(GuestUnknown):
                        await self.controller.stop(guest.name, on=host, force=True)
                except QmpMigrateError as error:
                    raise MoveFailed(f"{error} [{error.code}]; left there: {_names(directory)}") from error


def _names(directory: Path) -> str:
    return ", ".join(sorted(path.name for path in directory.iterdir())) if directory.exists() else "nothing"


async def _down(directory: Path) -> None:
    await down(directory)
    shutil.rmtree(directory, ignore_errors=True)
