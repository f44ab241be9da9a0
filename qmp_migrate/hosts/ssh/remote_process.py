"""One command on one SSH channel: input, both output streams, exit status, and a way to give it up."""

from __future__ import annotations

import contextlib
import threading

from qmp_migrate.hosts.base import OUTPUT_LIMIT, Completed
from qmp_migrate.hosts.ssh.authentication import BROKEN
from qmp_migrate.hosts.ssh.connection import Connection
from qmp_migrate.hosts.ssh.paramiko_import import paramiko


class Execution:
    """One command on one exec channel.

    :meth:`run` blocks in a worker thread; :meth:`abandon` is called from another one when time is up or nobody is
    interested any more.

    Args:
        connection: Where to run it.
        command: The command line, every word of it quoted.
        data: Standard input.
        limit: How many bytes to keep of each output stream.
    """

    def __init__(self, connection: Connection, command: str, data: bytes, *, limit: int = OUTPUT_LIMIT) -> None:
        self._connection = connection
        self._command = command
        self._data = data
        self._limit = limit
        self._channel: paramiko.Channel | None = None
        self._abandoned = False
        #: What it has written so far.
        self.stdout = bytearray()
        self._stderr = bytearray()

    def run(self, timeout: float) -> Completed:
        """Run the command to its end.

        Args:
            timeout: Seconds for opening the channel; the rest is bounded by :meth:`abandon`.

        Raises:
            ConnectionLost: The connection ended, or the execution was abandoned.
            ChannelRefused: The host gives no further session.
        """
        channel = self._channel = self._connection.session(timeout)
        try:
            if self._abandoned:
                raise self._connection.lost("the command")
            wake = threading.Event()
            channel.in_buffer.set_event(wake)
            channel.in_stderr_buffer.set_event(wake)
            channel.exec_command(self._command)
            feeder = self._feed(channel)
            truncated = self._collect(channel, wake)
            channel.status_event.wait()  # set by the status, by the channel's end and by the connection's end
            if feeder is not None:
                channel.close()  # the command ended without reading all its input
                feeder.join()
        except BROKEN as error:
            raise self._connection.lost("the command") from error
        finally:
            with contextlib.suppress(*BROKEN):
                channel.close()
        if channel.exit_status < 0 and (self._abandoned or not self._connection.active):
            raise self._connection.lost("the command")
        return Completed(channel.exit_status, bytes(self.stdout), bytes(self._stderr), truncated)

    def abandon(self) -> None:
        """Close the channel, which ends :meth:`run`. It does not end the command."""
        self._abandoned = True
        if self._channel is not None:
            with contextlib.suppress(*BROKEN):
                self._channel.close()

    def _feed(self, channel: paramiko.Channel) -> threading.Thread | None:
        if len(self._data) <= 1 << 15:
            # Fits into the window that every server grants at once: no thread needed.
            self._write(channel)
            return None
        feeder = threading.Thread(target=self._write, args=(channel,), daemon=True)
        feeder.start()
        return feeder

    def _write(self, channel: paramiko.Channel) -> None:
        # A command that does not read its input has closed it: how it ends is then told by its status.
        with contextlib.suppress(*BROKEN):
            if self._data:
                channel.sendall(self._data)
            channel.shutdown_write()

    def _collect(self, channel: paramiko.Channel, wake: threading.Event) -> bool:
        """Read both output streams to their ends; tell whether something was too much to keep.

        One event serves both: reading one after the other could dead-lock.
        """
        truncated = False
        while True:
            ended = channel.eof_received or channel.closed  # looked at before the streams: nothing comes after it
            idle = True
            while channel.recv_ready():
                truncated |= _append(self.stdout, channel.recv(1 << 16), self._limit)
                idle = False
            while channel.recv_stderr_ready():
                truncated |= _append(self._stderr, channel.recv_stderr(1 << 16), self._limit)
                idle = False
            if idle and ended:
                return truncated
            if idle:  # only then: emptying one stream clears the event, also when the other was just filled
                wake.wait()


def _append(buffer: bytearray, data: bytes, limit: int) -> bool:
    """Add what fits; tell whether something did not."""
    room = max(0, limit - len(buffer))
    buffer += data[:room]
    return len(data) > room
