"""What a QEMU says right before it ends goes all the way to the controller: through an SSH channel, and through the relay."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import threading
from typing import Any

from qmp_migrate.hosts.ssh.socket_pump import Pump
from tests import ROOT
from tests.support.real.sshd import short_directory

WORDS = b'{"event": "SHUTDOWN"}\r\n'
QUERY = b'{"execute": "query-migrate"}'


class Ended:
    """An SSH channel that the host has closed: nothing can be sent, and what it sent before is still to be read."""

    def __init__(self) -> None:
        self._refused = threading.Event()
        self._rest = [WORDS, b""]

    def settimeout(self, _seconds: float | None) -> None: ...

    def close(self) -> None: ...

    def sendall(self, _data: bytes) -> None:
        self._refused.set()
        raise OSError("Socket is closed")

    def recv(self, _size: int) -> bytes:
        assert self._refused.wait(10)
        return self._rest.pop(0)


def test_a_channel_is_read_to_its_end_though_nothing_can_be_sent_any_more() -> None:
    channel: Any = Ended()
    pump = Pump(channel, "test")
    pump.near.setblocking(True)
    pump.near.settimeout(10)
    with pump.near:
        pump.near.sendall(QUERY)
        received = b""
        while data := pump.near.recv(4096):
            received += data
    pump.join(10)
    assert received == WORDS


RELAY = """
import sys
from hostagent.relay.request import Request
from hostagent.relay.executor import _connect
from hostagent.relay.settings import Allowed
_connect(Request("connect", "connect", path=sys.argv[1]), Allowed())
"""


def test_the_relay_passes_on_what_a_monitor_said_before_it_closed() -> None:
    """The controller asks once more at the very moment at which QEMU ends."""
    with short_directory() as directory, socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(directory / "m"))
        listening.listen()
        theirs, ours = os.pipe()
        # The relay stops at its "ok" until somebody reads: QEMU ends, and a question comes, meanwhile.
        filled = os.write(ours, b"\0" * fcntl.fcntl(ours, fcntl.F_SETPIPE_SZ, 4096))
        relay = subprocess.Popen(
            [sys.executable, "-c", RELAY, str(directory / "m")],
            stdin=subprocess.PIPE,
            stdout=ours,
            stderr=subprocess.PIPE,
            cwd=ROOT,
        )
        os.close(ours)
        assert relay.stdin is not None
        relay.stdin.write(QUERY)
        relay.stdin.flush()
        listening.settimeout(20)
        monitor, _ = listening.accept()
        monitor.sendall(WORDS)
        monitor.close()
        with os.fdopen(theirs, "rb") as stream:
            said = stream.read()[filled:]
        _, stderr = relay.communicate(timeout=20)
        assert (said, stderr, relay.returncode) == (b"ok\n" + WORDS, b"", 0)
