"""UNIX socket channels for paramiko.

OpenSSH forwards a UNIX socket over a channel of type ``direct-streamlocal@openssh.com`` (PROTOCOL, section 2.4).
paramiko opens ``direct-tcpip`` channels but not these, so this small subclass adds the one message. It leans on what
``Transport.open_channel`` does inside; ``tests/component/test_ssh_host.py`` is the contract test against a real sshd.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from paramiko.common import cMSG_CHANNEL_OPEN

from qmp_migrate.hosts.slim import paramiko

KIND = "direct-streamlocal@openssh.com"


class StreamlocalTransport(paramiko.Transport):
    """A paramiko ``Transport`` that can also connect to UNIX sockets of the host."""

    # How often the reading thread wakes up when nothing arrives. paramiko's 0.1 s costs ten wake-ups a second for every
    # connected host; data, errors and our own close() (which shuts the socket down first) wake it at once anyway.
    _active_check_timeout = 5.0

    def open_streamlocal(self, path: str, timeout: float) -> paramiko.Channel:
        """Connect to the UNIX socket ``path`` of the host.

        Args:
            path: Absolute path on the host.
            timeout: Seconds to wait for the host's answer.

        Raises:
            paramiko.ChannelException: The host refused: 1 forbidden, 2 nobody there, 4 out of resources.
            paramiko.SSHException: No answer in time, or the connection is gone.
        """
        this: Any = self  # the stubs leave out what open_channel itself uses
        with this.lock:
            window = this._sanitize_window_size(None)
            packet = this._sanitize_packet_size(None)
            number = this._next_channel()
            message = paramiko.Message()
            message.add_byte(cMSG_CHANNEL_OPEN)
            message.add_string(KIND)
            message.add_int(number)
            message.add_int(window)
            message.add_int(packet)
            message.add_string(path)
            message.add_string("")  # reserved
            message.add_int(0)  # reserved
            channel: Any = paramiko.Channel(number)
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


def _close_late(answered: threading.Event, channel: paramiko.Channel) -> None:
    answered.wait()  # set by the answer, and at the latest by the end of the connection
    channel.close()
