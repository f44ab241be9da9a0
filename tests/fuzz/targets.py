"""What is fuzzed: for each target a function that takes any bytes, what it may raise, and right input to start from.

A target reads what somebody else wrote: another user of the broker, a QEMU that lies, a host that is not ours any more, a
person with an editor. It may refuse with the errors named, and nothing else; and it may not grow.
"""

from __future__ import annotations

import asyncio
import atexit
import base64
import contextlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from hostagent.discovery.unmanaged import _is_qemu, _name
from hostagent.failover.grant import read_mandate, read_record
from hostagent.qmp_state.replies import facts_of, migration_status_of, runstate_of
from hostagent.qmp_state.role import role_of
from hostagent.relay import qmp_filter as relay_qmp_filter
from hostagent.relay import request
from hostagent.relay.argument_rules import Refused
from hostagent.relay.request import understand
from hostagent.relay.settings import Allowed
from hostagent.telemetry import proc_counters
from qmp_migrate.bus.client.subscription import Received
from qmp_migrate.bus.consume.name_conflicts import Conflicts
from qmp_migrate.bus.consume.ordered import Order
from qmp_migrate.bus.consume.staleness import Silence
from qmp_migrate.bus.messages.codec import decode, encode
from qmp_migrate.bus.messages.handover_token import HostToken
from qmp_migrate.bus.messages.topics import Topics
from qmp_migrate.errors import BusError, QmpCommandFailed, QmpMigrateError
from qmp_migrate.exposition import parse_listen
from qmp_migrate.fleet.adoption import unmanaged
from qmp_migrate.fleet.notifications import rules
from qmp_migrate.fleet.provisioning import scripts
from qmp_migrate.hosts.shell_command import behind_login_shell, script_argv
from qmp_migrate.hosts.shell_command import command_line as command_of
from qmp_migrate.migration.endpoint import guest_locks
from qmp_migrate.qemu import devices, features, images, migration
from qmp_migrate.qemu.monitor import Monitor
from qmp_migrate.settings import parse as parse_settings
from qmp_migrate.vm import units
from qmp_migrate.vm.commandline.chardevs import chardevs, monitors
from qmp_migrate.vm.commandline.command_line import CommandLine
from qmp_migrate.vm.commandline.disks import disks
from qmp_migrate.vm.commandline.filenames import local_path
from qmp_migrate.vm.commandline.netdevs import netdevs
from qmp_migrate.vm.destination import derive_destination
from qmp_migrate.vm.host_dependencies import host_bound
from qmp_migrate.vm.spec.guest_spec import parse_spec
from tests.support.data import command_lines
from tests.support.data.golden_messages import GOLDEN, presence_of_a
from tests.support.guest_visible import guest_visible

SEEDS: Final = Path(__file__).parent / "seeds"
TOPICS: Final = Topics()
SECRET: Final = bytes(32)


@dataclass(frozen=True, slots=True)
class Target:
    """One thing that is fuzzed.

    Attributes:
        run: Takes any input.
        may_raise: Its refusals.
        seeds: Right input.
    """

    run: Callable[[bytes], object]
    may_raise: tuple[type[Exception], ...]
    seeds: tuple[bytes, ...]


def text(data: bytes) -> str:
    """Return input as text, as it comes from a file or a program: nothing is refused here."""
    return data.decode("utf-8", "surrogateescape")


# -- the bus ----------------------------------------------------------------------------------------------------


def of_kind() -> dict[bytes, str]:
    """Return a topic for each golden payload."""
    found: dict[bytes, str] = {}
    for path in sorted(GOLDEN.glob("*.json")):
        document = json.loads(path.read_text())
        kind = document["schema"].partition("/")[0]
        topic = {
            "controller.status": lambda d: TOPICS.controller_status(d["controller"]),
            "host.event": lambda d: TOPICS.host_event(d["source"].rpartition("/")[2]),
            "host.info": lambda d: TOPICS.host_info(d["host"]),
            "host.load": lambda d: TOPICS.host_load(d["host"]),
            "host.status": lambda d: TOPICS.host_status(d["host"]),
            "host.token": lambda d: TOPICS.host_token(d["host"], d["migration"]),
            "host.vm": lambda d: TOPICS.host_vm(d["host"], d["vm"]),
            "migration.event": lambda d: TOPICS.migration_event(d["source"].rpartition("/")[2]),
            "migration.progress": lambda d: TOPICS.migration_progress(d["id"]),
            "migration.state": lambda d: TOPICS.migration_state(d["id"]),
        }[kind](document)
        found[path.read_bytes().strip()] = topic
    return found


ON_TOPIC: Final = of_kind()
ALL_TOPICS: Final = sorted(set(ON_TOPIC.values()))


def topic_for(data: bytes) -> str:
    """Choose a topic: the one that a schema in the input asks for, mostly."""
    for topic in ALL_TOPICS:
        kind = topic.split("/")[2] + "." + topic.split("/")[4]
        if kind.encode() in data[:200]:
            return topic
    return ALL_TOPICS[len(data) % len(ALL_TOPICS)]


def bus_payload(data: bytes) -> None:
    """A payload on a topic of ours; what is admitted can be written again."""
    _, message = decode(TOPICS, topic_for(data), data)
    if message is not None:
        encode(message)


def bus_topic(data: bytes) -> None:
    """Any topic."""
    decode(TOPICS, text(data), b"")


class Reader:
    """A subscriber that never ends: what it remembers may not grow."""

    def __init__(self) -> None:
        self.order, self.silence, self.conflicts, self.presence = Order(), Silence(), Conflicts(), presence_of_a()
        self.at = 0.0

    def __call__(self, data: bytes) -> None:
        topic = topic_for(data)
        try:
            address, message = decode(TOPICS, topic, data)
        except BusError as error:
            received = Received(topic, False, TOPICS.parse(topic), None, error.with_traceback(None))
        else:
            received = Received(topic, len(data) % 3 == 0, address, message)
        self.at += 0.3
        self.order.admit(received)
        self.silence.hear(received, self.at)
        self.silence.fallen(self.at)
        self.conflicts.hear(received, self.at)
        self.conflicts.found(self.at)
        rules.of(received)
        if received.message is not None:
            verdict = self.presence.judge(received.message)
            if verdict == "rival" and received.retained:
                self.presence.outrank(received.message)


def token(data: bytes) -> None:
    """A token: whatever it says, it is not signed."""
    try:
        found = HostToken.model_validate_json(data)
    except ValueError:
        return
    assert not found.verified(SECRET), "a token that nobody has signed was believed"


class File:
    """Something that is read from a file."""

    def __init__(self, name: str, read: Callable[[Path], object]) -> None:
        self._name, self._read = name, read
        self._descriptor = -1

    def _make(self) -> None:
        where = "/dev/shm" if os.path.isdir("/dev/shm") else None
        directory = Path(tempfile.mkdtemp(prefix="qm-fuzz-", dir=where))
        atexit.register(shutil.rmtree, directory, ignore_errors=True)
        self._path = directory / self._name
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def __call__(self, data: bytes) -> None:
        if self._descriptor < 0:
            self._make()
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, data, 0)
        self._read(self._path)


def _read_record(path: Path) -> None:
    read_record(path.parent.parent, "web1")


# -- QEMU ---------------------------------------------------------------------------------------------------------


class Liar:
    """A monitor that answers what it likes."""

    label, host = "liar", None

    def __init__(self, answers: object) -> None:
        self._answers = answers if isinstance(answers, Mapping) else {}
        self._whole = answers

    async def execute(self, command: str, arguments: Mapping[str, object] | None = None, **_: object) -> Any:
        if command in self._answers:
            return self._answers[command]
        if not self._answers:
            return self._whole
        raise QmpCommandFailed("no such command", command=command, error_class="CommandNotFound")


GREETING: Final = (SEEDS / "greeting.json").read_bytes().strip() + b"\r\n"
EVENT: Final = b'{"event": "STOP", "data": {}, "timestamp": {"seconds": 1700000000, "microseconds": 1}}\r\n'
ALLOWED: Final = Allowed("/run/x", ("/srv/x",), ("/srv/q",), ("/boot",), ("/usr/bin/qemu-system-x86_64",))
KNOWN: Final = request.load()
LOOP: Final = asyncio.new_event_loop()
ASKED: Final = (
    lambda m: devices.look(m, named=frozenset({"nic0", "gone"}), anonymous=1),
    images.devices,
    images.jobs,
    features.probe,
    features.multifd_compressions,
    migration.query,
    migration.run_status,
)


def answers(data: bytes) -> None:
    """What the controller and the agent make of a QEMU's answers."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return
    liar = cast(Monitor, Liar(document))
    first: Exception | None = None
    for ask in ASKED:
        try:
            LOOP.run_until_complete(ask(liar))  # type: ignore[no-untyped-call]
        except QmpMigrateError as error:
            first = error
    if isinstance(document, dict):
        facts_of(*(document.get(f"query-{name}") for name in ("version", "uuid", "cpus-fast", "memory-size-summary")))
        status = migration_status_of(document.get("query-migrate"))
        role_of(runstate=runstate_of(document.get("query-status")), migration_status=status, arrived=len(data) % 2 == 0)
    if first is not None:
        raise first


async def _speak(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.setblocking(False)
        theirs.sendall(GREETING + b'{"return": {}}\r\n' if len(data) % 2 else b"")
        with contextlib.suppress(BlockingIOError):
            theirs.send(data)
        theirs.shutdown(socket.SHUT_WR)
        monitor = await Monitor.connect(ours, label="liar", timeout=5.0)
        try:
            with monitor.events() as events:
                await monitor.execute("query-status", timeout=5.0)
                await events.get(timeout=0.01)
        finally:
            await monitor.close()


def monitor_lines(data: bytes) -> None:
    """What comes from a monitor's socket: in place of its greeting, or after it."""
    LOOP.run_until_complete(_speak(data))


def qmp_filter(data: bytes) -> None:
    """What a stolen key says to a monitor, through the relay."""
    for found in relay_qmp_filter.Objects().feed(data):
        relay_qmp_filter.checked(found, ALLOWED)


def relay_command(data: bytes) -> None:
    """What a stolen key asks of the relay."""
    understand(text(data), ALLOWED, KNOWN)


def command_line(data: bytes) -> None:
    """A command line as it stands in `/proc`."""
    argv = tuple(text(data).split("\0"))
    if _is_qemu(argv):
        _name(argv[-1], 1, frozenset())
    command = CommandLine.parse(argv)
    assert CommandLine.parse(command.argv()).argv() == command.argv()
    for read in (chardevs, monitors, disks, netdevs, host_bound, guest_visible):
        try:
            read(command)  # type: ignore[operator]
        except QmpMigrateError:
            continue
    for disk in argv[:20]:
        local_path(disk)
    derive_destination(
        command, binary="/usr/bin/qemu", source_dir="/run/a/web1", dest_dir="/run/b/web1", path_map={"/srv": "/mnt"}
    )
    _ = command.memory_bytes, command.vcpus, command.name, command.machine


# -- files and hosts ------------------------------------------------------------------------------------------------


def settings(data: bytes) -> None:
    """A settings file."""
    parse_settings(text(data), source="x.toml", environment={})


def spec(data: bytes) -> None:
    """A guest's spec."""
    parse_spec(text(data), source="x.toml", base_dir="/srv")


def quantities(data: bytes) -> None:
    """Sizes, rates, times, addresses."""
    word, refusals = text(data), 0
    for read in (units.parse_size, units.parse_rate, units.parse_time_ms, units.parse_qemu_size, parse_listen):
        try:
            read(word)  # type: ignore[operator]
        except QmpMigrateError:
            refusals += 1


def proc(data: bytes) -> None:
    """Files of `/proc` that are not as usual."""
    words = text(data)
    proc_counters.cpu_times(words)
    proc_counters.meminfo(words)
    proc_counters.pressure(words)
    proc_counters.load_average(words)
    proc_counters.interfaces(words)


def host_output(data: bytes) -> None:
    """What a host prints that is not ours any more."""
    unmanaged.parse(text(data))
    scripts.machine(text(data), "a")


def foreign_line() -> bytes:
    """Return a line as the script of `foreign` prints it."""
    words = [base64.b64encode(word.encode()).decode() for word in ("/srv", "/srv", "/srv/a.img")]
    argv = base64.b64encode("\0".join([*command_lines.PROXMOX, ""]).encode()).decode()
    return f"boot b-1\nqemu 17 1234 0 {' '.join(words)} - - {argv}\nuid 0\nfile ab 640 root:qmp /etc/x\n".encode()


def relay_seed() -> bytes:
    """Return a command as the controller sends it."""
    argv = ["/run/x/.locks/web1.epoch", "0", "migration m-1"]
    return command_of("h", behind_login_shell(script_argv(guest_locks._BUMP, argv), 10.0)).encode()


PROC: Final = (
    b"cpu  10 20 30 40 50 60 70 80 0 0\ncpu0 1 2 3 4 5 6 7 8 0 0\nbtime 1700000000\n",
    b"MemTotal:       24000 kB\nMemAvailable:   12000 kB\nHugePages_Total:       4\nHugepagesize:       2048 kB\n",
    b"some avg10=0.00 avg60=1.50 avg300=0.22 total=12345\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=1\n",
    b"0.10 0.20 0.30 1/234 5678\n",
    b"Inter-|   Receive\n face |bytes\n  eth0: 1 2 0 0 0 0 0 0 3 4 0 0 0 0 0 0\n",
)
SPEC: Final = b"""name = "web1"
machine = "pc-q35-7.2"
memory = "2GiB"
vcpus = 2
[[disk]]
path = "web1.qcow2"
[[nic]]
kind = "user"
"""
SETTINGS: Final = b"""[mqtt]
url = "mqtts://broker:8883"
[migration]
bandwidth = "1Gbit/s"
[[notify]]
on = ["migration.*"]
url = "https://x/"
[hosts.a]
address = "192.0.2.1"
migration_ports = "49152-49215"
path_map = { "/srv" = "/mnt" }
"""


def command_line_seeds() -> tuple[bytes, ...]:
    """Return the command lines that other programs write."""
    found = [value for name, value in vars(command_lines).items() if name.isupper() and isinstance(value, list)]
    return tuple("\0".join(words).encode() for words in found)


TARGETS: Final[dict[str, Target]] = {
    "bus-payload": Target(bus_payload, (BusError,), tuple(ON_TOPIC)),
    "bus-topic": Target(bus_topic, (BusError,), tuple(topic.encode() for topic in ALL_TOPICS)),
    "bus-reader": Target(Reader(), (), tuple(ON_TOPIC)),
    "token": Target(token, (), tuple(seed for seed in ON_TOPIC if b"host.token" in seed)),
    "mandate": Target(
        File("web1.mandate", read_mandate), (ValueError, OSError), ((SEEDS / "mandate.json").read_bytes(),)
    ),
    "record": Target(
        File(".handover/web1.record", _read_record),
        (ValueError, OSError),
        (b'{"schema": "handover.record/1", "migration": "m-1", "state": "ended", "mark": "x"}',),
    ),
    "answers": Target(answers, (QmpMigrateError,), ((SEEDS / "answers.json").read_bytes(),)),
    "monitor-lines": Target(
        monitor_lines,
        (QmpMigrateError, TimeoutError),
        (GREETING, b'{"return": {"status": "running"}, "id": "x"}\r\n', EVENT),
    ),
    "relay-qmp": Target(
        qmp_filter,
        (Refused,),
        (b'{"execute": "migrate", "arguments": {"uri": "tcp:a:1"}, "id": 1}', b'{"exec-oob": "migrate-pause"}'),
    ),
    "relay-command": Target(relay_command, (Refused,), (relay_seed(),)),
    "command-line": Target(command_line, (QmpMigrateError,), command_line_seeds()),
    "settings": Target(settings, (QmpMigrateError,), (SETTINGS,)),
    "spec": Target(spec, (QmpMigrateError,), (SPEC,)),
    "quantities": Target(quantities, (), (b"2GiB", b"1Gbit/s", b"300ms", b"1.5 TiB", b"127.0.0.1:9177", b"[::1]:1")),
    "proc": Target(proc, (), PROC),
    "host-output": Target(host_output, (QmpMigrateError,), (foreign_line(),)),
}

WEIGHTS: Final = {
    **dict.fromkeys(("bus-topic", "bus-reader", "quantities", "proc"), 12),
    **{
        "bus-payload": 24,
        "token": 8,
        "mandate": 6,
        "record": 6,
        "settings": 4,
        "spec": 4,
        "host-output": 4,
        "answers": 2,
    },
}
"""Shares of the inputs, where not 1: what strangers can reach gets most, what is slow gets little."""
