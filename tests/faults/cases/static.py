"""Faults of one's own kind: hosts that are not what they should be, monitors and messages that lie."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shlex
import shutil
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from paho.mqtt import publish

from qmp_migrate.rig import state as rig_state
from tests.faults.cases.phases import BY_NAME, Phase
from tests.faults.cases.trial import Case, Fault, Skipped, Trial

# It logs, as an error, that the client it has just disconnected is not connected.
logging.getLogger("paho.mqtt.client").setLevel(logging.CRITICAL)

_SOURCE, _DESTINATION = frozenset({"source"}), frozenset({"destination"})

REFUSED: Final = Phase("config", (), "a host that is not what it should be: no trap, it is so from the beginning")


# -- hosts that are not what they should be ---------------------------------------------------------------------------


def _port_taken(trial: Trial) -> None:
    sock = socket.create_server(trial.stand.migration_listen)
    trial.undo.append(sock.close)


def _small_disk(trial: Trial) -> Path:
    """Put host b's RUN_DIR on a file system of a few pages."""
    if os.geteuid():
        raise Skipped("mounting a small file system needs root")
    place = trial.stand.lab.files / f"small-{trial.guest.name}"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "small", str(place)], check=True)

    def away() -> None:
        left = [path.name for path in place.iterdir() if path.name not in {".locks", "filler"}]
        subprocess.run(["umount", "--lazy", str(place)], check=True)
        place.rmdir()
        assert not left, f"left behind on the full disk: {left}"

    trial.undo.append(away)
    trial.sections["hosts_b"] = {"run_dir": str(place)}
    trial.notes.append(str(place))
    return place


def _fill(place: Path) -> None:
    with contextlib.suppress(OSError), (place / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)


def _full_from_the_beginning(trial: Trial) -> None:
    _fill(_small_disk(trial))


def _full_later(trial: Trial) -> None:
    _fill(Path(trial.notes[0]))


def _other_qemu(change: str) -> Any:
    """Return a preparation: host b's QEMU builds another machine than it is told to."""

    def prepare(trial: Trial) -> None:
        real = trial.stand.qemu.get("b") or shutil.which("qemu-system-x86_64") or ""
        path = trial.stand.lab.files / f"qemu-{trial.guest.name}"
        text = (
            "import os, sys\nargv = sys.argv[1:]\nif '-incoming' in argv:\n"
            f"    {change}\nos.execv({real!r}, [{real!r}, *argv])\n"
        )
        script = path.with_suffix(".py")
        script.write_text(text)
        path.write_text(f'#!/bin/sh\nexec python3 {shlex.quote(str(script))} "$@"\n')
        path.chmod(0o755)
        trial.sections["hosts_b"] = {"qemu": str(path)}
        trial.undo += [path.unlink, script.unlink]

    return prepare


_MACHINE: Final = "argv = [a.replace('pc-q35-7.2', 'pc-q35-6.2') for a in argv]"
_MODEL: Final = "argv = [a.replace('qemu64', 'Nehalem') for a in argv]"
_MEMORY: Final = "argv = [a.replace('131080', '131072') for a in argv]"
_DEVICE: Final = "argv += ['-device', 'virtio-rng-pci,addr=0x1b']"


def _hot_plugged(trial: Trial) -> None:
    """The guest has a device that its command line does not know."""
    answer = trial.watch.source.ask("device_add", {"driver": "virtio-rng-pci", "bus": "rp1", "id": "plugged"})
    assert "return" in answer, answer


def _changed_host_key(trial: Trial) -> None:
    """Somebody else answers at host b's address."""
    lab = trial.stand.lab
    known = lab.directory / "ssh/known_hosts"
    changed = lab.files / f"known-{trial.guest.name}"
    address, port = trial.stand.control["b"].address
    other = (lab.directory / "parts/sshd-a/host_key.pub").read_text()
    lines = [line for line in known.read_text().splitlines(True) if f"[{address}]:{port}" not in line]
    changed.write_text("".join(lines) + f"[{address}]:{port} {other}")
    trial.sections["hosts_b"] = {"known_hosts": str(changed)}
    trial.undo.append(changed.unlink)


# -- monitors that lie ------------------------------------------------------------------------------------------------

GARBAGE: Final = {
    "bytes": b"\x00\xff\xfe garbage \x80\n",
    "half": b'{"event": "STOP", "timest\n',
    "deep": b"[" * 5000 + b"\n",
    "huge": b'{"event": "' + b"x" * (11 << 20) + b'"}\n',
    "lies": b'{"return": {"status": "running"}, "id": "no-such"}\n',
}


class _Tap:
    """Stands between the controller and the source's monitor, and can say things that QEMU has not said."""

    def __init__(self, path: Path, real: Path) -> None:
        path.rename(real)
        self._real = real
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._clients: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                qemu = socket.socket(socket.AF_UNIX)
                qemu.connect(str(self._real))
                self._clients.append(client)
                for source, sink in ((client, qemu), (qemu, client)):
                    threading.Thread(target=_carry, args=(source, sink), daemon=True).start()

    def say(self, data: bytes) -> None:
        with contextlib.suppress(OSError):
            self._clients[-1].sendall(data)

    def close(self) -> None:
        self._listener.close()
        self._real.unlink(missing_ok=True)


def _carry(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for sock in (source, sink):
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


def _garbage(kind: str) -> Fault:
    taps: list[_Tap] = []

    def prepare(trial: Trial) -> None:
        guest = trial.guest
        tap = _Tap(guest.directory("a") / "qmp.sock", trial.stand.lab.files / f"{guest.name}.real")
        taps.append(tap)
        trial.undo.append(tap.close)

    return Fault(f"garbage-{kind}", lambda trial: taps[-1].say(GARBAGE[kind]), prepare=prepare)


# -- messages that lie ------------------------------------------------------------------------------------------------


def _messages(kind: str) -> Fault:
    """Somebody writes to the bus what is not so. No message may change anything for a guest."""

    def inject(trial: Trial) -> None:
        state = rig_state.load(trial.stand.lab.directory)
        assert state is not None
        broker = urlsplit(state.broker_url)
        root, vm = "qmp-migrate/v1", trial.guest.name
        stamp = "2020-01-01T00:00:00.000Z"
        false = {
            f"{root}/host/a/vm/{vm}": {"schema": "vm/1.0", "runstate": "shutdown", "role": "idle", "time": stamp},
            f"{root}/host/b/vm/{vm}": {"schema": "vm/1.0", "runstate": "running", "role": "idle", "time": stamp},
            f"{root}/host/a/status": {"schema": "host-status/1.0", "state": "lost", "session": "x", "time": stamp},
            f"{root}/host/b/status": {"schema": "host-status/1.0", "state": "lost", "session": "x", "time": stamp},
            f"{root}/migration/any/state": {"schema": "migration-state/1.0", "vm": vm, "phase": "rolled-back"},
            f"{root}/migration/any/command": {"schema": "command/1.0", "vm": vm, "command": "cancel"},
            f"{root}/host/b/command": {"schema": "command/1.0", "vm": vm, "command": "cont"},
        }
        junk = [b"", b"\x00\xff", b"{", b"[" * 10_000, b'{"schema": 7}', b"x" * 60_000]
        messages: list[tuple[str, Any, int, bool]] = []
        for topic, document in false.items():
            payload: Any = json.dumps(document)
            match kind:
                case "garbage":
                    messages += [(topic, piece, 0, False) for piece in junk]
                case "repeated":
                    messages += [(topic, payload, 1, False)] * 50
                case "late":
                    messages += [(topic, payload, 1, False), (topic, payload, 0, False)]
                case "retained":
                    messages += [(topic, payload, 1, True)]
        publish.multiple(messages, hostname=broker.hostname or "", port=broker.port or 0)
        trial.undo.append(
            lambda: publish.multiple(
                [(topic, None, 1, True) for topic in false if "/any/" in topic or "command" in topic],
                hostname=broker.hostname or "",
                port=broker.port or 0,
            )
        )

    # What is retained lies there from the beginning.
    return Fault(f"bus-{kind}", inject, prepare=inject if kind == "retained" else None)


def _all() -> list[Case]:
    def config(fault: str, prepare: Any, owners: frozenset[str], *codes: int, **more: Any) -> Case:
        return Case(REFUSED, Fault(fault, lambda trial: None, prepare=prepare), owners, frozenset(codes), **more)

    port_root = {"args": ["-device", "pcie-root-port,id=rp1,chassis=1"]}
    found = [
        config("port-taken", _port_taken, _SOURCE, 4),
        config("disk-full", _full_from_the_beginning, _SOURCE, 1, 3, 4),
        config("wrong-machine", _other_qemu(_MACHINE), _SOURCE, 3, 4),
        config("wrong-cpu", _other_qemu(_MODEL), _SOURCE, 3, 4),
        config("wrong-memory", _other_qemu(_MEMORY), _SOURCE, 3, 4),
        config("extra-device-destination", _other_qemu(_DEVICE), _SOURCE, 3, 4),
        config("extra-device-source", _hot_plugged, _SOURCE, 3, 4, settings={"guest": port_root}),
        config("changed-host-key", _changed_host_key, _SOURCE, 1, 69),
    ]
    full = Fault("disk-full", _full_later, prepare=_small_disk)
    # Later, too, it fills up, but then the guest's own log is what is lost, and with it the oracle's evidence.
    found.append(Case(BY_NAME["launch"], full, _SOURCE, frozenset({4})))
    for phase in ("wired", "first-pass", "pre-switchover", "completed", "running"):
        owners, codes = (_DESTINATION, (0,)) if phase in {"completed", "running"} else (_SOURCE | _DESTINATION, (0, 4))
        kinds = GARBAGE if phase == "first-pass" else ("bytes",)
        found += [Case(BY_NAME[phase], _garbage(kind), owners, frozenset(codes)) for kind in kinds]
    for kind in ("garbage", "late", "repeated", "retained"):
        for phase in ("preflight", "first-pass", "pre-switchover", "completed", "running"):
            found.append(Case(BY_NAME[phase], _messages(kind), _DESTINATION, frozenset({0})))
    return found


STATIC: Final = tuple(_all())
