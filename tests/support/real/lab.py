"""The rig for system tests: one lab for the whole run, a fresh guest for each test, and proof that nothing is left.

The tests use the product's own rig through its own command line, as users do.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from qmp_migrate.errors import QmpMigrateError, UsageError
from qmp_migrate.fleet.controller import Controller
from qmp_migrate.rig.guest.images import KERNEL_WORDS
from qmp_migrate.rig.guest.oracle import Verdict, judge
from qmp_migrate.settings import MqttSettings, load
from qmp_migrate.vm.spec.guest_spec import parse_spec
from tests.support.real.commands import Command, CommandServer, command_server

_T = TypeVar("_T")

CLI = [sys.executable, "-m", "qmp_migrate.cli"]
COMMAND_S = 90.0
WORK = "qm.rate=4 qm.ws=32 qm.tick=10"
"""What guests do where a test does not say: at 5 MiB/s their memory takes some time, and is still copied in the end."""
MEMORY = f"{256 * 1024 + 8}KiB"
"""Not a multiple of 256 KiB: the distribution's QEMU 7.2 then loses no writes under TCG (`features.loses_writes`)."""


@dataclass
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def doc(self) -> Any:
        """The last JSON document on standard output."""
        return json.loads(self.out.strip().splitlines()[-1])


@dataclass
class Guest:
    """A test guest in the lab."""

    lab: Lab
    name: str
    spec: Path
    disk: Path | None = None

    def directory(self, host: str) -> Path:
        return self.lab.run_dir(host) / self.name

    def logs(self, host: str) -> list[bytes]:
        """Its serial output: what it brought along, then what it wrote on this host."""
        paths = (self.directory(host) / "serial.log.1", self.directory(host) / "serial.log")
        return [path.read_bytes() for path in paths if path.exists()]

    def verdict(self, host: str) -> Verdict:
        return judge(self.logs(host))

    def wait(self, host: str, enough: Callable[[Verdict], bool], seconds: float = 60.0) -> Verdict:
        """Wait until the guest has shown something on a host; fail with what it wrote instead."""
        # Reading a whole log costs as much as the guest itself: not more often than people blink.
        return wait_for(
            lambda: (v := self.verdict(host)) and enough(v) and v,
            seconds,
            lambda: (
                f"{self.verdict(host)}\n{b''.join(self.logs(host))[-2000:].decode('utf-8', 'replace')}\n"
                f"{asked(self.directory(host) / 'qmp.sock')}"
            ),
            every=0.3,
        )

    def wait_ready(self, host: str) -> Verdict:
        return self.wait(host, lambda v: v.ready is not None and v.last_tick > 0)

    def wait_survived(self, host: str) -> Verdict:
        """Wait until the guest has gone on for long enough to prove that it survived, and check that it did."""

        def enough(v: Verdict) -> bool:
            broken = bool(v.tick_faults or v.corruption)
            return broken or (v.sweeps_ok_after_handover >= 1 and v.ticks_after_handover > 20)

        verdict = self.wait(host, enough)
        assert verdict.survived, verdict.reasons
        return verdict

    def pid(self, host: str) -> int | None:
        try:
            return int((self.directory(host) / "pid").read_text().split()[0])
        except (FileNotFoundError, IndexError):
            return None


ASKED = (
    {"execute": "query-status"},
    {"execute": "query-migrate"},
    {"execute": "query-version"},
    {"execute": "human-monitor-command", "arguments": {"command-line": "info registers"}},
    {"execute": "human-monitor-command", "arguments": {"command-line": "info lapic"}},
)


def asked(monitor: Path) -> str:
    """What a QEMU says of itself, for the message of a test that failed because its guest stood still."""
    lines = []
    try:
        with socket.socket(socket.AF_UNIX) as connection, connection.makefile("rw") as stream:
            connection.settimeout(5.0)
            connection.connect(str(monitor))
            lines.append(stream.readline())
            for command in ({"execute": "qmp_capabilities"}, *ASKED):
                stream.write(json.dumps(command) + "\n")
                stream.flush()
                lines.append(stream.readline().replace("\\r\\n", "\n"))
    except OSError as error:
        lines.append(f"{monitor}: {error}")
    return "".join(lines)


def wait_for(
    look: Callable[[], Any], seconds: float, told: Callable[[], str] = lambda: "", *, every: float = 0.02
) -> Any:
    """Wait for a state; what `look` returns once it is true."""
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {seconds} s: {told()}"
        time.sleep(every)


@dataclass
class Lab:
    """A rig that is up; what tests write goes into `files`, beside it."""

    directory: Path
    settings: Path
    template: str
    files: Path
    commands: CommandServer
    bare_template: str = ""

    def run_dir(self, host: str) -> Path:
        import tomllib

        return Path(tomllib.loads(self.settings.read_text())["hosts"][host]["run_dir"])

    def cli(self, *words: str, code: int | None = 0, config: Path | None = None, timeout: float = COMMAND_S) -> Ran:
        """Run a command to its end; `code` None: any exit code."""
        process = self.popen(*words, config=config)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise AssertionError(f"{words} did not end within {timeout} s\n{out}\n{err}") from None
        ran = Ran(process.returncode, out, err)
        assert code is None or ran.code == code, f"{words}: exit {ran.code}, not {code}\n{out}\n{err}"
        return ran

    def ask(self, work: Callable[[Controller], Awaitable[_T]], *, config: Path | None = None) -> _T:
        """Use the library for what is not under test: it saves the start of a Python. Nothing goes to the bus."""

        async def call() -> _T:
            quiet = load(config or self.settings).model_copy(update={"mqtt": MqttSettings()})
            async with Controller.open(quiet) as controller:
                return await work(controller)

        return asyncio.run(call())

    def start(self, spec: Path, *, on: str, config: Path | None = None) -> None:
        """Start a guest, as ``vm start`` does."""
        parsed = parse_spec(spec.read_text(), source=str(spec), base_dir=str(spec.parent))
        self.ask(lambda controller: controller.start(parsed, on=on), config=config)

    def remove(self, name: str) -> None:
        """End a guest wherever it is, as ``vm stop --force`` does on each host that has it."""

        async def work(controller: Controller) -> None:
            listed, _unreachable = await controller.list_guests()
            for host in {found.host for found in listed if found.name == name}:
                with contextlib.suppress(QmpMigrateError):  # what is left is seen by `assert_nothing_left`
                    await controller.stop(name, on=host, force=True)

        self.ask(work)

    def quicken(self, migration: str, *, config: Path | None = None) -> None:
        """Let a copy that was begun slowly go as fast as it can, as soon as somebody drives it."""

        async def work(controller: Controller) -> None:
            async with asyncio.timeout(60):
                while True:
                    try:
                        await controller.tune(migration, bandwidth_bytes_per_s=1 << 30, downtime_limit_ms=2000)
                    except UsageError:  # nobody drives it yet
                        found = await controller.journal.get(migration)
                        assert found.outcome is None, found.result
                        await asyncio.sleep(0.1)
                    else:
                        return

        self.ask(work, config=config)

    def popen(self, *words: str, config: Path | None = None) -> Command:
        """Begin a command."""
        env = os.environ | {"NO_COLOR": "1", "COLUMNS": "200"}
        return self.commands.start(["--config", str(config or self.settings), *words], env)

    def spec(
        self,
        name: str,
        *,
        firmware_only: bool = False,
        bare: bool | None = None,
        append: str = WORK,
        extra: str = "",
        **keys: Any,
    ) -> Path:
        """Write a spec: one of the rig's own, with another name and other settings.

        Args:
            name: The guest's.
            firmware_only: It boots nothing.
            bare: Of the guest without an operating system, under TCG unless `keys` say ``accel``: it is ready at once.
                Default: wherever it serves, that is where no disk is written.
            append: What the guest does.
            extra: More of the spec, as TOML.
            keys: Keys of the spec.
        """
        if bare is None:
            bare = bool(self.bare_template) and not firmware_only and "qm.disk=" not in append
        template = self.bare_template if bare else self.template
        assert template, "no bare.elf: make images"
        wanted = {"name": name, "memory": MEMORY, "append": f"{KERNEL_WORDS} {append}"}
        wanted |= {"accel": "tcg"} if bare else {}
        wanted |= keys
        lines = [line for line in template.splitlines() if line.partition(" =")[0] not in wanted]
        lines += [f"{key} = {json.dumps(value)}" for key, value in wanted.items()]
        if firmware_only:
            lines = [line for line in lines if line.partition(" =")[0] not in {"kernel", "initrd", "append"}]
        path = self.files / f"{name}.toml"
        path.write_text("\n".join(lines) + "\n" + extra)
        return path

    def config(self, **sections: dict[str, Any]) -> Path:
        """Write other settings: the rig's own with some keys changed; ``hosts_b={"qemu": …}`` changes ``[hosts.b]``."""
        import tomllib

        data = tomllib.loads(self.settings.read_text())
        for section, keys in sections.items():
            place = data
            for part in section.split("_"):
                place = place.setdefault(part, {})
            place.update(keys)
        path = self.files / f"settings-{uuid.uuid4().hex[:8]}.toml"
        path.write_text("\n".join(_toml(data, [])) + "\n")
        return path

    @contextmanager
    def guest(
        self, *, on: str = "a", ready: bool = True, disk: bool = False, config: Path | None = None, **keys: Any
    ) -> Iterator[Guest]:
        """A guest of its own on a host; gone afterwards, wherever it went, and proven to have left nothing.

        `keys` are those of `spec`.
        """
        name = f"g{uuid.uuid4().hex[:8]}"
        image = self.files / f"{name}.img" if disk else None
        if image is not None:
            keys["append"] = keys.get("append", WORK) + " qm.disk=/dev/vda"
            keys["extra"] = f'[[disk]]\npath = "{image}"\nformat = "raw"\nsize = "4MiB"\n' + keys.get("extra", "")
        guest = Guest(self, name, self.spec(name, **keys), image)
        try:
            self.start(guest.spec, on=on, config=config)
            if ready:
                guest.wait_ready(on)
            yield guest
        finally:
            self.remove(name)
            guest.spec.unlink(missing_ok=True)
            if image is not None:
                image.unlink(missing_ok=True)
        self.assert_nothing_left(name)

    def assert_nothing_left(self, name: str) -> None:
        """No QEMU, directory, key or lock of a guest on any host; its epoch file may stay (it must only rise)."""
        for host in ("a", "b"):
            run_dir = self.run_dir(host)
            assert not (run_dir / name).exists(), sorted((run_dir / name).iterdir())
            left = [path.name for path in (run_dir / ".locks").glob(f"{name}*") if path.suffix != ".epoch"]
            assert not left, left
        assert not qemus(name), qemus(name)


def _toml(table: dict[str, Any], name: list[str]) -> list[str]:
    plain = {key: value for key, value in table.items() if not isinstance(value, dict) or key == "path_map"}
    lines = [f"[{'.'.join(name)}]"] if name and plain else []
    for key, value in plain.items():
        if isinstance(value, dict):
            inner = ", ".join(f"{json.dumps(k)} = {json.dumps(v)}" for k, v in value.items())
            lines.append(f"{key} = {{ {inner} }}")
        else:
            lines.append(f"{key} = {json.dumps(value)}")
    for key, value in table.items():
        if key not in plain:
            lines += _toml(value, [*name, key])
    return lines


def qemus(name: str) -> list[int]:
    """Return the pids of all QEMUs of a guest on this machine."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if f"guest={name}".encode() in words and b"qemu" in words[0]:
                found.append(int(entry.name))
    return found


def interrupt(process: Command) -> None:
    """Press Ctrl-C."""
    process.send_signal(signal.SIGINT)


@contextmanager
def rig(directory: Path) -> Iterator[Lab]:
    """Bring a lab up, take it down, and prove that all its processes are gone."""
    env = os.environ | {"NO_COLOR": "1"}
    done = subprocess.run(
        [*CLI, "rig", "up", "--dir", str(directory), "--json"], capture_output=True, text=True, timeout=120, env=env
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    files = directory.with_name("files")
    files.mkdir()
    try:
        bare = Path(told["bare_guest"])
        template = bare.read_text() if bare.exists() else ""
        with command_server() as commands:
            yield Lab(directory, Path(told["settings"]), Path(told["guest"]).read_text(), files, commands, template)
    finally:
        down = subprocess.run(
            [*CLI, "rig", "down", "--dir", str(directory)], capture_output=True, text=True, timeout=120, env=env
        )
    assert down.returncode == 0, down.stderr
    assert not directory.exists(), sorted(directory.rglob("*"))
