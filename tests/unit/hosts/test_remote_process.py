"""Reading two streams of a channel with one event between them."""

from __future__ import annotations

import threading
from typing import Any, cast

from paramiko.buffered_pipe import BufferedPipe

from qmp_migrate.hosts.ssh.connection import Connection
from qmp_migrate.hosts.ssh.remote_process import Execution


class _Channel:
    """A channel on which standard output arrives in the very moment in which standard error is emptied."""

    def __init__(self) -> None:
        self.in_buffer: BufferedPipe[Any] = BufferedPipe()
        self.in_stderr_buffer: BufferedPipe[Any] = BufferedPipe()
        self.eof_received = False
        self.closed = False
        self.in_stderr_buffer.feed(b"error")

    def recv_ready(self) -> bool:
        return self.in_buffer.read_ready()

    def recv_stderr_ready(self) -> bool:
        return self.in_stderr_buffer.read_ready()

    def recv_stderr(self, size: int) -> bytes:
        self.in_buffer.feed(b"output")  # sets the event
        return cast("bytes", self.in_stderr_buffer.read(size))  # clears it

    def recv(self, size: int) -> bytes:
        data = self.in_buffer.read(size)
        self.eof_received = True
        self.in_buffer.close()
        self.in_stderr_buffer.close()
        return cast("bytes", data)


def test_what_arrives_while_the_other_stream_is_emptied_is_not_missed() -> None:
    channel = _Channel()
    wake = threading.Event()
    channel.in_buffer.set_event(wake)
    channel.in_stderr_buffer.set_event(wake)
    execution = Execution(cast("Connection", None), "", b"")
    reader = threading.Thread(target=execution._collect, args=(channel, wake), daemon=True)
    reader.start()
    reader.join(5)
    assert not reader.is_alive()
    assert bytes(execution.stdout) == b"output"
