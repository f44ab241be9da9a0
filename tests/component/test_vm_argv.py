"""Command lines of ours in front of a real QEMU: it takes them, and builds the machine they say.

The guest never runs (``-S``, no kernel): what is tested is the command line, not a guest.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from qmp_migrate.vm.commandline.command_line import CommandLine
from qmp_migrate.vm.commandline.option_table import FLAGS, WITH_VALUE
from qmp_migrate.vm.destination import derive_destination
from qmp_migrate.vm.spec.argv import build_argv
from qmp_migrate.vm.spec.guest_spec import parse_spec

BINARY = shutil.which("qemu-system-x86_64") or ""
UUID = "6d5c2a0e-5d6c-4f0e-9a3b-0d0f6f0f2a11"
PATIENCE_S = 30.0

pytestmark = pytest.mark.skipif(not BINARY, reason="no qemu-system-x86_64 on this machine")


class _Running:
    """One QEMU and one monitor of it, spoken to in the plainest way."""

    def __init__(self, command: CommandLine, directory: Path) -> None:
        self.process = subprocess.Popen(
            command.argv(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        self.monitor = socket.socket(socket.AF_UNIX)
        self.monitor.settimeout(PATIENCE_S)
        try:
            self._connect(str(directory / "qmp.sock"))
        except BaseException:
            self.end()
            raise

    def _connect(self, path: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            with suppress(FileNotFoundError, ConnectionRefusedError):
                self.monitor.connect(path)
                break
            if self.process.poll() is not None:
                raise AssertionError(f"QEMU ended: {self.stderr()}")
            assert time.monotonic() < deadline, "no monitor"
            time.sleep(0.02)
        self.stream = self.monitor.makefile("rw", encoding="utf-8")
        assert "QMP" in json.loads(self.stream.readline())
        self.ask("qmp_capabilities")

    def ask(self, command: str, **arguments: Any) -> Any:
        json.dump({"execute": command, "arguments": arguments}, self.stream)
        self.stream.flush()
        while True:
            reply = json.loads(self.stream.readline())
            if "event" not in reply:
                assert "return" in reply, reply
                return reply["return"]

    def until(self, command: str, wanted: Callable[[Any], bool]) -> Any:
        deadline = time.monotonic() + PATIENCE_S
        while not wanted(answer := self.ask(command)):
            assert time.monotonic() < deadline, answer
            time.sleep(0.02)
        return answer

    def stderr(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.read().decode(errors="replace")

    def end(self) -> str:
        """Kill this QEMU and return what it wrote to its standard error."""
        self.monitor.close()
        self.process.kill()
        self.process.wait(PATIENCE_S)
        text = self.stderr()
        assert self.process.stderr is not None
        self.process.stderr.close()
        return text


@pytest.fixture
def start() -> Iterator[Callable[[CommandLine, Path], _Running]]:
    started: list[_Running] = []

    def _start(command: CommandLine, directory: Path) -> _Running:
        started.append(_Running(command, directory))
        return started[-1]

    yield _start
    for running in started:
        running.end()


def _spec(directory: Path, machine: str) -> str:
    image = directory / "a,b.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(image), "16M"], check=True, timeout=PATIENCE_S)
    for name in ("c.raw", "d.raw", "e.raw"):
        with (directory / name).open("wb") as file:
            file.truncate(1 << 20)
    return f"""
name = "web1"
machine = "{machine}"
memory = "64MiB"
vcpus = 1
maxcpus = 2
args = ["-device", "virtio-rng-pci,id=rng0", "-nic", "none"]
[[disk]]
path = "a,b.qcow2"
cache = "writeback"
serial = "SYSTEM"
[[disk]]
path = "c.raw"
interface = "scsi"
readonly = true
cache = "unsafe"
[[disk]]
path = "d.raw"
interface = "ide"
cache = "writethrough"
[[disk]]
path = "e.raw"
interface = "ide"
cache = "writeback"
[[nic]]
[[nic]]
model = "e1000"
"""


def _build(directory: Path, machine: str) -> CommandLine:
    (directory / "run").mkdir(mode=0o700)
    spec = parse_spec(_spec(directory, machine), source="spec", base_dir=str(directory))
    return build_argv(spec, binary=BINARY, directory=str(directory / "run"), accel="tcg", uuid=UUID)


@pytest.mark.parametrize("machine", ["pc-q35-7.2", "pc-i440fx-7.2"])
def test_a_built_guest_and_its_derived_destination_are_one_machine(
    tmp_path: Path, machine: str, start: Callable[[CommandLine, Path], _Running]
) -> None:
    command = _build(tmp_path, machine)
    source = start(
        CommandLine(command.binary, (*command.options, *CommandLine.parse(["q", "-S"]).options)), tmp_path / "run"
    )
    assert source.ask("query-name") == {"name": "web1"}
    assert source.ask("query-uuid") == {"UUID": UUID}
    assert source.ask("query-memory-size-summary")["base-memory"] == command.memory_bytes
    inserted = {drive["qdev"]: drive["inserted"] for drive in source.ask("query-block") if "inserted" in drive}
    found = {key.removeprefix("/machine/peripheral/").partition("/")[0]: value for key, value in inserted.items()}
    assert {key: value["node-name"] for key, value in found.items()} == {
        f"disk{number}": f"disk{number}-format" for number in range(4)
    }
    assert found["disk0"]["file"] == str(tmp_path / "a,b.qcow2")
    assert found["disk0"]["cache"] == {"writeback": True, "direct": False, "no-flush": False}
    assert found["disk1"]["ro"] is True
    assert found["disk2"]["cache"] == {"writeback": False, "direct": False, "no-flush": False}

    (tmp_path / "there").mkdir(mode=0o700)
    derived = derive_destination(
        command, binary=BINARY, source_dir=str(tmp_path / "run"), dest_dir=str(tmp_path / "there")
    )
    assert derived.refusals == ()
    destination = start(derived.command, tmp_path / "there")
    assert destination.ask("query-status")["status"] == "inmigrate"
    assert destination.ask("query-pci") == source.ask("query-pci")

    # QEMU's own proof that both are the same machine: it takes the other's state.
    destination.ask("migrate-incoming", uri=f"unix:{tmp_path}/m")
    source.ask("migrate", uri=f"unix:{tmp_path}/m")
    source.until("query-migrate", lambda answer: answer["status"] in {"completed", "failed"})
    assert source.ask("query-migrate")["status"] == "completed"
    destination.until("query-status", lambda answer: answer["status"] != "inmigrate")
    assert destination.ask("query-status")["running"] is False
    assert (tmp_path / "there" / "serial.log").exists()


def test_qemu_says_nothing_about_a_built_command_line(
    tmp_path: Path, start: Callable[[CommandLine, Path], _Running]
) -> None:
    command = _build(tmp_path, "pc-q35-7.2")
    running = start(
        CommandLine(command.binary, (*command.options, *CommandLine.parse(["q", "-S"]).options)), tmp_path / "run"
    )
    agent = socket.socket(socket.AF_UNIX)
    with agent:
        agent.settimeout(PATIENCE_S)
        agent.connect(str(tmp_path / "run" / "agent.sock"))
        assert b"QMP" in agent.recv(4096)
    running.ask("quit")
    assert running.process.wait(PATIENCE_S) == 0
    # TCG lacks CPU features, and later versions deprecate what earlier ones need (-mon, old machine types).
    known = ("CPUID", "deprecated", "will be deleted", "removed after")
    assert [line for line in running.stderr().splitlines() if not any(word in line for word in known)] == []


def _takes_value(name: str) -> bool | None:
    """Ask QEMU whether an option takes an argument; ``None`` where it has no such option.

    Options are read twice. A missing argument is found the first time, before ``-version`` ends the second.
    """
    asked = subprocess.run(
        [BINARY, "-version", f"-{name}"], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    if "requires an argument" in asked.stderr:
        return True
    if "invalid option" in asked.stderr:
        return None
    assert asked.returncode == 0, asked.stderr
    return False


def test_the_table_of_options_is_that_of_the_installed_qemu() -> None:
    answers = {name: _takes_value(name) for name in sorted(FLAGS | WITH_VALUE)}
    known = {name: answer for name, answer in answers.items() if answer is not None}
    assert known == {name: name in WITH_VALUE for name in known}
    assert len(known) > 90
    shown = subprocess.run([BINARY, "--help"], capture_output=True, text=True, timeout=PATIENCE_S, check=True).stdout
    words = {line.split()[0].strip("-").partition("/")[0] for line in shown.splitlines() if line.startswith("-")}
    assert words - FLAGS - WITH_VALUE == set()
