"""From an SSH channel to a real socket.

asyncio and ``qemu.qmp`` want a file descriptor; paramiko's channel has none. A pump is a socket pair: one end goes to
the caller, the other is copied to and from the channel by two threads. They block on exactly one thing each, which
keeps a round trip near that of the network, and both end when either side does.
"""

from __future__ import annotations

import contextlib
import socket
import threading

from qmp_migrate.hosts.ssh.paramiko_import import paramiko

_CHUNK = 65536


class Pump:
    """Copies between one channel and one end of a socket pair until either side ends.

    Args:
        channel: An open channel; the pump owns it from now on.
        label: Name for the threads, seen in debuggers.
    """

    def __init__(self, channel: paramiko.Channel, label: str) -> None:
        self.channel = channel
        #: The caller's end, non-blocking. The caller closes it; that ends the pump.
        self.near, self._far = socket.socketpair()
        self.near.setblocking(False)
        channel.settimeout(None)
        self._threads = (
            threading.Thread(target=self._from_host, name=f"{label}-in", daemon=True),
            threading.Thread(target=self._to_host, name=f"{label}-out", daemon=True),
        )
        for thread in self._threads:
            thread.start()

    @property
    def alive(self) -> bool:
        """True while either direction still copies."""
        return any(thread.is_alive() for thread in self._threads)

    def join(self, timeout: float) -> None:
        """Wait up to ``timeout`` seconds per direction for the threads of an ended pump."""
        for thread in self._threads:
            thread.join(timeout)

    def _from_host(self) -> None:
        try:
            while data := self.channel.recv(_CHUNK):
                self._far.sendall(data)
        except (OSError, EOFError, paramiko.SSHException):
            pass  # the caller closed its end, or the connection went away: both end the pump
        finally:
            self._hang_up()

    def _to_host(self) -> None:
        try:
            while data := self._far.recv(_CHUNK):
                self.channel.sendall(data)
        except (OSError, EOFError, paramiko.SSHException):
            # The host takes nothing any more. What it said before, a QEMU's last words, is still handed over.
            with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
                self.channel.close()
            self._threads[0].join()
        finally:
            self._hang_up()
            self._threads[0].join()
            self._far.close()

    def _hang_up(self) -> None:
        """Wake the other thread and let the caller read end-of-file. Both directions end together: QMP knows no half."""
        with contextlib.suppress(OSError):
            self._far.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            self.channel.close()
