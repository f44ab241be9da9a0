"""One SSH connection through paramiko: everything here blocks and is called from worker threads only.

:class:`~qmp_migrate.hosts.ssh.host.SshHost` is the asyncio side. paramiko is imported here and nowhere on the way to
``qmp-migrate --help``.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading

from qmp_migrate.errors import ChannelRefused, ConnectionLost, HostUnreachable
from qmp_migrate.hosts.base import HostAddress
from qmp_migrate.hosts.ssh.authentication import BROKEN, authenticate
from qmp_migrate.hosts.ssh.host_keys import KnownKeys
from qmp_migrate.hosts.ssh.jump_host import Jump
from qmp_migrate.hosts.ssh.paramiko_import import paramiko
from qmp_migrate.hosts.ssh.socket_pump import Pump
from qmp_migrate.hosts.ssh.transport import SshTransport

#: The kernel gives the connection up when the other end has acknowledged nothing for so long.
TCP_TIMEOUT_S = 20
#: How long threads may take to end once what they wait for is closed.
_JOIN_S = 2.0

_log = logging.getLogger("paramiko")
_log.addHandler(logging.NullHandler())  # otherwise Python prints its tracebacks to standard error
if _log.level == logging.NOTSET:
    _log.setLevel(logging.CRITICAL)  # a refused channel is an "error" to it; ours are raised, not logged


class Connection:
    """A connected, verified and authenticated SSH transport.

    Args:
        address: Where to connect to.

    Attributes:
        hung_up_early: The other end closed the connection before it knew who we are, so nothing of ours has begun there. sshd
            does that while too many others log in (MaxStartups).
    """

    def __init__(self, address: HostAddress) -> None:
        self._address = address
        self._name = address.name
        self._where = f"{address.address}:{address.port}"
        self._sock: socket.socket | paramiko.Channel | None = None
        self._jump: Connection | None = None
        self._transport: SshTransport | None = None
        self._pumps: list[Pump] = []
        self._lock = threading.Lock()
        self._closed = False
        self.hung_up_early = False

    # -- connecting ------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Connect, verify the host key, authenticate.

        Raises:
            HostUnreachable: No connection, or no SSH server there.
            HostKeyError: The host key is not a known one.
            AuthenticationFailed: No key was accepted.
        """
        limit = self._address.connect_timeout_s * self._address.time_factor
        try:
            self._sock = self._dial(limit)
            if self._closed:  # given up meanwhile, when there was nothing to close yet
                raise self.lost("connecting")
            self._transport = transport = SshTransport(self._sock)
            transport.banner_timeout = transport.handshake_timeout = limit
            transport.auth_timeout = transport.channel_timeout = limit
            known = KnownKeys.load(self._address.address, self._address.port, self._address.known_hosts)
            options = transport.get_security_options()
            options.key_types = known.preferred_types(options.key_types)
            self._shake_hands(transport, limit)
            known.verify(transport.get_remote_server_key(), self._name)
            authenticate(transport, self._address)
        except BaseException:
            self.close()
            raise

    def _dial(self, limit: float) -> socket.socket | paramiko.Channel:
        address = self._address
        if address.jump:
            self._jump = Connection(Jump.parse(address.jump, host=self._name).address(address))
            try:
                self._jump.open()
            finally:
                self.hung_up_early = self._jump.hung_up_early
            return self._jump.open_tcp(address.address, address.port, limit)
        try:
            sock = socket.create_connection((address.address, address.port), timeout=limit)
        except TimeoutError:
            raise HostUnreachable(
                f"{self._where} did not answer within {limit:g} s",
                hint="is the host up, and does a firewall drop the SSH port?",
                host=self._name,
            ) from None
        except OSError as error:
            raise HostUnreachable(
                f"cannot connect to {self._where}: {error.strerror or error}",
                hint="check address and port in the settings, and that sshd runs there",
                host=self._name,
            ) from error
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, TCP_TIMEOUT_S * 1000)
        return sock

    def _shake_hands(self, transport: SshTransport, limit: float) -> None:
        try:
            transport.start_client(timeout=limit)
            transport.get_remote_server_key()  # start_client returns silently when its time is up
        except BROKEN as error:
            # Before its banner, or in the middle of the key exchange: paramiko hides the first kind of end in a text.
            hung_up = not transport.remote_version or isinstance(error, EOFError | ConnectionError)
            self.hung_up_early = hung_up and not self._closed
            reason = str(error) or "the connection was closed"
            raise HostUnreachable(
                f"no SSH handshake with {self._where}: {reason}",
                hint="is it an SSH server? it may refuse connections for now (MaxStartups, PerSourcePenalties: see its log)",
                host=self._name,
            ) from error

    # -- life ------------------------------------------------------------------------------------------------------

    @property
    def active(self) -> bool:
        """True while the connection stands, as far as anyone has noticed."""
        return not self._closed and self._transport is not None and self._transport.is_active()

    def close(self) -> None:
        """Close the connection and everything on it; wait for its threads. May be called again, from any thread."""
        self._closed = True
        if isinstance(self._sock, socket.socket):
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)  # wakes paramiko's reading thread at once
        if self._transport is not None:
            # A handshake that never ended has a timer thread that would hold up the exit of the interpreter.
            self._transport.packetizer.complete_handshake()
            self._transport.close()
        if self._sock is not None:
            self._sock.close()
        if self._jump is not None:
            self._jump.close()
        if self._transport is not None and self._transport.ident is not None:
            self._transport.join(_JOIN_S)
        with self._lock:
            pumps, self._pumps = self._pumps, []
        for pump in pumps:
            pump.join(_JOIN_S)

    def ping(self) -> None:
        """Ask the SSH server for a sign of life; returns when it came, or when the connection ended.

        There is no time limit in here (paramiko has none): the caller closes the connection when it takes too long.
        """
        if self._transport is not None:
            with contextlib.suppress(*BROKEN):
                self._transport.global_request("keepalive@openssh.com", wait=True)

    # -- channels --------------------------------------------------------------------------------------------------

    def open_unix(self, path: str, timeout: float) -> socket.socket:
        """Connect to a UNIX socket of the host; see :meth:`qmp_migrate.hosts.base.Host.open_unix`."""
        transport = self._alive()
        try:
            channel = transport.open_streamlocal(path, timeout)
        except BROKEN as error:
            raise self._refused(error, f"the socket {path}", _UNIX_HINTS) from error
        return self._pump(channel, "unix")

    def open_process(self, command: str, timeout: float) -> socket.socket:
        """Start a command whose standard input and output are the returned socket, until either side closes."""
        channel = self.session(timeout)
        try:
            channel.exec_command(command)
        except BROKEN as error:
            raise self.lost("starting a process") from error
        return self._pump(channel, "process")

    def open_tcp(self, address: str, port: int, timeout: float) -> paramiko.Channel:
        """Connect from the host onwards to ``address``: how a jump host is used."""
        origin = ("127.0.0.1", 0)
        try:
            return self._alive().open_channel("direct-tcpip", (address, port), origin, timeout=timeout)
        except BROKEN as error:
            raise HostUnreachable(
                f"cannot connect to {address}:{port} from here: {error}",
                hint="check address and port, and AllowTcpForwarding on the jump host",
                host=self._name,
            ) from error

    def session(self, timeout: float) -> paramiko.Channel:
        """Open a session channel; :class:`~qmp_migrate.hosts.ssh.remote_process.Execution` runs a command on it."""
        transport = self._alive()
        try:
            return transport.open_command(timeout)
        except BROKEN as error:
            raise self._refused(error, "a session", _SESSION_HINTS) from error

    def lost(self, what: str) -> ConnectionLost:
        """Return the error that says: ``what`` was under way, and nobody knows how it ended."""
        return ConnectionLost(
            f"the SSH connection to {self._where} ended before {what} was through{self._reason()}",
            hint="whether it ran to its end is not known; connect again and look",
            host=self._name,
        )

    def _reason(self) -> str:
        if self._closed or self._transport is None:
            return " (it was closed here)"
        if self._transport.farewell:
            return f" (it was closed there: {self._transport.farewell})"
        error = self._transport.saved_exception
        return f": {str(error) or type(error).__name__}" if error is not None else " (it was closed there)"

    def _alive(self) -> SshTransport:
        if self._transport is None or not self.active:
            raise self.lost("the call")
        return self._transport

    def _pump(self, channel: paramiko.Channel, kind: str) -> socket.socket:
        pump = Pump(channel, f"{self._name}-{kind}")
        with self._lock:
            self._pumps = [known for known in self._pumps if known.alive]
            self._pumps.append(pump)
        return pump.near

    def _refused(self, error: Exception, what: str, hints: dict[int, str]) -> ChannelRefused | ConnectionLost:
        if not self.active:
            return self.lost(f"opening {what}")
        if not isinstance(error, paramiko.ChannelException):
            return ChannelRefused(
                f"no answer to the request for {what}: {error}",
                hint="the host is overloaded, or its sshd hangs",
                host=self._name,
            )
        return ChannelRefused(f"the host refused {what}: {error.text}", hint=hints.get(error.code), host=self._name)


# OpenSSH answers 2 whatever the reason is: absent, nobody listens, not permitted, switched off.
_UNIX_HINTS = {
    1: "sshd forbids it: set AllowStreamLocalForwarding yes, and no 'restrict' on the key",
    2: "nobody listens there (the guest is not running on this host), it belongs to another user, or sshd forbids it "
    "(AllowStreamLocalForwarding, 'restrict' on the key: then use qmp-hostagent relay)",
    4: "the host is out of resources for channels",
}
_SESSION_HINTS = {
    1: "sshd forbids commands for this key, or all its sessions are in use (MaxSessions in sshd_config, default 10)",
    2: "all sessions of this connection are in use (MaxSessions in sshd_config, default 10)",
    4: "the host is out of resources for channels",
}
