"""Raw QEMU: what a script of a few lines does that takes no care of anything. The floor, not an example."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
import uuid
from asyncio.subprocess import Process
from pathlib import Path
from typing import Any, Final

from bench.contenders.base import Moved, MoveFailed
from bench.guest import Guest
from bench.measure.qmp import Qmp, QmpFailed
from bench.measure.samples import Numbers
from bench.scenarios import DOWNTIME_LIMIT_MS, Scenario
from qmp_migrate.qemu import encryption
from qmp_migrate.vm.spec.argv import build_argv
from qmp_migrate.vm.spec.guest_spec import parse_spec

ADDRESS: Final = "127.0.0.3"
"""Where the destination listens: as far away as in the rig."""

END_S: Final = 10.0


class Raw:
    """Two QEMUs and QMP. The destination starts by itself; no return path, nothing is read back, nothing is journalled."""

    name = "raw"
    controller_pid = None

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._processes: dict[str, list[Process]] = {}
        self._uuids: dict[str, str] = {}

    def directories(self, guest: Guest) -> tuple[Path, Path]:
        """See `Contender`."""
        return self._directory / "a" / guest.name, self._directory / "b" / guest.name

    async def start(self, guest: Guest) -> None:
        """See `Contender`."""
        self._uuids[guest.name] = str(uuid.uuid4())
        await self._launch(guest, self.directories(guest)[0])

    def _argv(self, guest: Guest, directory: Path) -> list[str]:
        """Make the guest's directory and return its command line there: the very one that the product would use."""
        directory.mkdir(mode=0o700, parents=True)
        return build_argv(
            parse_spec(guest.spec(directory), source="bench", base_dir=str(directory)),
            binary=guest.machine.qemu,
            directory=str(directory),
            accel=guest.machine.accel,
            uuid=self._uuids[guest.name],
        ).argv()

    async def _launch(self, guest: Guest, directory: Path, *more: str) -> None:
        argv = self._argv(guest, directory)
        with (directory / "qemu.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *argv,
                *more,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # so that Ctrl-C reaches us alone, and we end it
            )
        self._processes.setdefault(guest.name, []).append(process)

    async def move(self, guest: Guest) -> Moved:
        """See `Contender`."""
        here, there = self.directories(guest)
        began = time.monotonic()
        try:
            async with contextlib.AsyncExitStack() as stack:
                await self._launch(guest, there, "-incoming", "defer")
                ended = asyncio.Event()
                resumed = asyncio.Event()
                source = await Qmp.open(here / "qmp.sock", lambda event: _set_when(ended, event, "MIGRATION"))
                stack.push_async_callback(source.close)
                destination = await Qmp.open(there / "qmp.sock", lambda event: _set_when(resumed, event, "RESUME"))
                stack.push_async_callback(destination.close)
                port = await _wire(source, destination, guest.scenario, here, there)
                await source.execute("migrate", {"uri": f"tcp:{ADDRESS}:{port}"})
                await ended.wait()
                if (info := await source.execute("query-migrate"))["status"] != "completed":
                    raise MoveFailed(f"QEMU ended the migration: {info}")
                await resumed.wait()
                numbers = await _numbers(source)
                await source.execute("quit")
                await self._processes[guest.name][0].wait()
        except QmpFailed as error:
            raise MoveFailed(f"{error}; {(there / 'qemu.log').read_text(errors='replace')[-500:]}") from error
        return Moved((time.monotonic() - began) * 1000, numbers=numbers)

    async def discard(self, guest: Guest) -> None:
        """See `Contender`."""
        for process in self._processes.pop(guest.name, []):
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            async with asyncio.timeout(END_S):
                await process.wait()
        for directory in self.directories(guest):
            shutil.rmtree(directory, ignore_errors=True)


def _set_when(flag: asyncio.Event, message: dict[str, Any], name: str) -> None:
    status = message.get("data", {}).get("status")
    if message["event"] == name and (name != "MIGRATION" or status in {"completed", "failed", "cancelled"}):
        flag.set()


async def _numbers(source: Qmp) -> Numbers:
    """Return the source's figures; 7.2 may still say 0 right after ``completed``."""
    while not (numbers := Numbers.of(await source.execute("query-migrate"))).total_ms:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    return numbers


async def _wire(source: Qmp, destination: Qmp, scenario: Scenario, here: Path, there: Path) -> str:
    """Set what is needed and return the port on which the destination listens."""
    events = {"capabilities": [{"capability": "events", "state": True}]}
    limits = {"max-bandwidth": scenario.bandwidth_bytes_per_s, "downtime-limit": DOWNTIME_LIMIT_MS}
    for monitor in (source, destination):
        await monitor.execute("migrate-set-capabilities", events)
    await source.execute("migrate-set-parameters", limits)
    if scenario.encrypted:
        key = encryption.make_key_file()
        for monitor, directory, role in ((source, here, "client"), (destination, there, "server")):
            (directory / encryption.KEY_FILE).write_bytes(key)
            credentials = {"qom-type": "tls-creds-psk", "id": "tls", "dir": str(directory), "endpoint": role}
            if role == "client":
                credentials["username"] = encryption.IDENTITY
            await monitor.execute("object-add", credentials)
            await monitor.execute("migrate-set-parameters", {"tls-creds": "tls"})
    await destination.execute("migrate-incoming", {"uri": f"tcp:{ADDRESS}:0"})
    info = await destination.execute("query-migrate")
    return str(info["socket-address"][0]["port"])
