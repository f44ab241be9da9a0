"""``qmp-migrate`` commands as processes of their own that need no start of a Python: they are forked from one that has begun.

Importing the controller costs about a second of CPU, and a run of the system tests starts several hundred commands beside
emulated guests. Each is a real process with its own pid, signals and descriptors; only the imports are shared. That the
command line starts by itself is shown by `tests/system/test_demo.py` and the tests of single commands.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO

_READ_BYTES = 1 << 16


@dataclass(eq=False)
class Command:
    """A command under way, with what `subprocess.Popen` offers and tests use.

    Attributes:
        words: Its arguments.
        pid: Its process.
        returncode: None while it runs; negative: the signal that ended it.
        stdout, stderr: Its output, as text.
    """

    words: Sequence[str]
    pid: int
    stdout: IO[str]
    stderr: IO[str]
    returncode: int | None = None
    _channel: socket.socket = field(kw_only=True)

    def poll(self) -> int | None:
        """Return how it ended, or None."""
        return self._reap(0.0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end.

        Raises:
            subprocess.TimeoutExpired: It runs on after `timeout` seconds.
        """
        code = self._reap(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(self.words, timeout or 0.0)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Read both outputs to their ends and wait for its end; return them.

        Raises:
            subprocess.TimeoutExpired: It runs on, or somebody holds an output open, after `timeout` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        read: dict[int, list[bytes]] = {
            stream.fileno(): [] for stream in (self.stdout, self.stderr) if not stream.closed
        }
        left = set(read)
        while left:
            ready, _, _ = select.select(left, [], [], _remaining(deadline))
            if not ready:
                raise subprocess.TimeoutExpired(self.words, timeout or 0.0)
            for number in ready:
                data = os.read(number, _READ_BYTES)
                read[number].append(data)
                if not data:
                    left.discard(number)
        self.wait(_remaining(deadline))
        out, err = (b"".join(parts).decode() for parts in read.values()) if read else ("", "")
        self.stdout.close()
        self.stderr.close()
        return out, err

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it without a warning."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def _reap(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._channel], [], [], timeout)[0]:
            with self._channel, self._channel.makefile() as lines:
                line = lines.readline()
            assert line, f"{self.words}: who watches it has died"
            self.returncode = int(line)
        return self.returncode


def _remaining(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


@dataclass
class CommandServer:
    """Starts commands. Made by `command_server`."""

    _requests: socket.socket
    _started: list[Command] = field(default_factory=list)

    def end(self) -> None:
        """End what a test that failed has left running, and close what it has left open: the next one does not pay."""
        started, self._started = self._started, []
        for command in started:
            if not command.stdout.closed:
                command.kill()
                command.communicate(timeout=30)

    def start(self, words: Sequence[str], env: Mapping[str, str]) -> Command:
        """Start ``qmp-migrate WORDS``, with nothing on its standard input."""
        ours, theirs = socket.socketpair()
        out_read, out_write = os.pipe()
        err_read, err_write = os.pipe()
        packet = json.dumps({"words": list(words), "env": dict(env)}).encode()
        try:
            socket.send_fds(self._requests, [packet], [theirs.fileno(), out_write, err_write])
        finally:
            theirs.close()
            os.close(out_write)
            os.close(err_write)
        # One byte after the other: what comes behind the line is how it ended.
        line = b""
        while not line.endswith(b"\n"):
            byte = ours.recv(1)
            assert byte, "the server of commands has ended"
            line += byte
        stdout = os.fdopen(out_read, encoding="utf-8")
        stderr = os.fdopen(err_read, encoding="utf-8")
        self._started.append(Command(words, int(line), stdout, stderr, _channel=ours))
        return self._started[-1]


@contextlib.contextmanager
def command_server() -> Iterator[CommandServer]:
    """Start the process that commands are forked from; it ends with the block, commands under way do not."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        argv = [sys.executable, "-m", "tests.support.real.command_server", str(theirs.fileno())]
        process = subprocess.Popen(
            argv, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
    try:
        yield CommandServer(ours)
    finally:
        ours.close()
        process.wait(30)
