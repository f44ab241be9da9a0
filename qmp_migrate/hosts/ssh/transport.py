"""paramiko's transport, with UNIX sockets, and with channels that send nothing after their own end.

OpenSSH forwards a UNIX socket over a channel of type ``direct-streamlocal@openssh.com`` (PROTOCOL, section 2.4).
paramiko opens ``direct-tcpip`` channels but not these.

paramiko makes a message under the channel's lock and sends it after that. When the host closes the channel in between,
paramiko's reading thread answers with its own close, and the message follows: data, or an end-of-file, for a channel that is
no more. OpenSSH then ends the whole connection ("ieof packet referred to nonexistent channel"), with every command and every
monitor on it. So the close waits for what is about to be sent.

All this leans on paramiko's inside; ``tests/component/test_ssh_host.py`` is the contract test against a real sshd.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from paramiko.common import cMSG_CHANNEL_OPEN

from qmp_migrate.hosts.ssh.paramiko_import import paramiko

STREAMLOCAL = "direct-streamlocal@openssh.com"


class _Channel(paramiko.Channel):
    """A channel whose end is the last thing it sends."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self._sending = 0
        self._end: Sequence[paramiko.Message | None] = ()

    @contextlib.contextmanager
    def _before_the_end(self) -> Iterator[None]:
        """Hold the channel's end back until what is made in this block has been sent."""
        this: Any = self  # the stubs leave out what is inside
        with this.lock:
            self._sending += 1
        try:
            yield
        finally:
            with this.lock:
                self._sending -= 1
                end: Sequence[paramiko.Message | None] = ()
                if not self._sending:
                    end, self._end = self._end, ()
            for message in end:
                if message is not None:
                    this.transport._send_user_message(message)

    def _close_internal(self) -> Sequence[paramiko.Message | None]:
        # The lock is held. The channel is closed with this, only the word of it may come later.
        end: Sequence[paramiko.Message | None] = super()._close_internal()  # type: ignore[misc]
        if not self._sending:
            return end
        self._end = [*self._end, *end]
        return ()

    def _send(self, s: bytes, m: paramiko.Message) -> int:
        with self._before_the_end():
            sent: int = super()._send(s, m)  # type: ignore[misc]
            return sent

    def exec_command(self, command: Any) -> None:
        """See paramiko."""
        with self._before_the_end():
            super().exec_command(command)

    def shutdown(self, how: int) -> None:
        """See paramiko."""
        with self._before_the_end():
            super().shutdown(how)


class SshTransport(paramiko.Transport):
    """See the module.

    Attributes:
        farewell: Why the host ended the connection, in its own words; ``""``: it has not said.
    """

    # How often the reading thread wakes up when nothing arrives. paramiko's 0.1 s costs ten wake-ups a second for every
    # connected host; data, errors and our own close() (which shuts the socket down first) wake it at once anyway.
    _active_check_timeout = 5.0

    farewell = ""

    def open_command(self, timeout: float) -> paramiko.Channel:
        """Open a session channel, for one command.

        Args:
            timeout: Seconds to wait for the host's answer.

        Raises:
            paramiko.ChannelException: The host refused: see `open_streamlocal`.
            paramiko.SSHException: No answer in time, or the connection is gone.
        """
        return self._open("session", (), timeout)

    def open_streamlocal(self, path: str, timeout: float) -> paramiko.Channel:
        """Connect to the UNIX socket ``path`` of the host.

        Args:
            path: Absolute path on the host.
            timeout: Seconds to wait for the host's answer.

        Raises:
            paramiko.ChannelException: The host refused: 1 forbidden, 2 nobody there, 4 out of resources.
            paramiko.SSHException: No answer in time, or the connection is gone.
        """
        return self._open(STREAMLOCAL, (path, "", 0), timeout)  # the last two are reserved

    def _open(self, kind: str, more: Sequence[str | int], timeout: float) -> paramiko.Channel:
        this: Any = self  # the stubs leave out what open_channel itself uses
        with this.lock:
            window = this._sanitize_window_size(None)
            packet = this._sanitize_packet_size(None)
            number = this._next_channel()
            message = paramiko.Message()
            message.add_byte(cMSG_CHANNEL_OPEN)
            message.add_string(kind)
            message.add_int(number)
            message.add_int(window)
            message.add_int(packet)
            for value in more:
                message.add_int(value) if isinstance(value, int) else message.add_string(value)
            channel: Any = _Channel(number)
            this._channels.put(number, channel)
            this.channel_events[number] = answered = threading.Event()
            this.channels_seen[number] = True
            channel._set_transport(self)
            channel._set_window(window, packet)
        this._send_user_message(message)
        limit = time.monotonic() + timeout
        while self.is_active() and not answered.wait(min(0.1, max(0.0, limit - time.monotonic()))):
            if time.monotonic() >= limit:
                # A late answer must not leave a monitor occupied for ever: whoever waits for it closes the channel.
                threading.Thread(target=_close_late, args=(answered, channel), daemon=True).start()
                raise paramiko.SSHException("Timeout opening channel.")
        opened: paramiko.Channel | None = this._channels.get(number)
        if self.is_active() and opened is not None:
            return opened
        raise self.get_exception() or paramiko.SSHException("Unable to open channel.")

    def _parse_disconnect(self, m: paramiko.Message) -> None:
        m.get_int()
        self.farewell = m.get_text()


def _close_late(answered: threading.Event, channel: paramiko.Channel) -> None:
    answered.wait()  # set by the answer, and at the latest by the end of the connection
    channel.close()
