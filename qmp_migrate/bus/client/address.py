"""Where the broker is, and how one proves to be somebody there."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import SplitResult, urlsplit

from qmp_migrate.errors import BusError, ConfigError

if TYPE_CHECKING:
    from qmp_migrate.settings import MqttSettings

_PORTS: Final = {"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443}
_EXAMPLE: Final = "write it like mqtt://127.0.0.1:1883 or mqtts://broker.example:8883"


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """A broker and the means to reach it. Made by `parse`, which checks everything that can be checked beforehand.

    Attributes:
        url: As given, without anything secret: fit for logs.
        hostname: Name or IP address.
        port: TCP port.
        transport: ``tcp`` or ``websockets``.
        path: Path of the websocket.
        username: User name, or ``None``.
        password: Password, or ``None``; never shown.
        tls: What to verify the broker by, or ``None`` without TLS.
    """

    url: str
    hostname: str
    port: int
    transport: Literal["tcp", "websockets"] = "tcp"
    path: str = "/mqtt"
    username: str | None = None
    password: str | None = None
    tls: ssl.SSLContext | None = None

    def __repr__(self) -> str:
        return f"BrokerAddress({self.url!r})"

    @classmethod
    def of(cls, mqtt: MqttSettings) -> BrokerAddress:
        """Read the address that the settings name.

        Args:
            mqtt: The section ``[mqtt]``.

        Raises:
            BusError: It names no broker.
            ConfigError: As `parse`.
        """
        if mqtt.url is None:
            raise BusError("the settings name no broker", hint='add [mqtt] url = "mqtt://HOST:1883"')
        return cls.parse(
            mqtt.url,
            username=mqtt.username,
            password_file=mqtt.password_file,
            ca_file=mqtt.ca_file,
            cert_file=mqtt.cert_file,
            key_file=mqtt.key_file,
        )

    @classmethod
    def parse(
        cls,
        url: str,
        *,
        username: str | None = None,
        password_file: Path | None = None,
        ca_file: Path | None = None,
        cert_file: Path | None = None,
        key_file: Path | None = None,
    ) -> BrokerAddress:
        """Read an address. The keywords are those of the ``[mqtt]`` section.

        Args:
            url: ``mqtt://``, ``mqtts://``, ``ws://`` or ``wss://``, with ``[USER@]HOST[:PORT]``.
            username: User name; goes before the one in the URL.
            password_file: File whose first line is the password.
            ca_file: CA certificates (PEM) to verify the broker by; default: those of the system.
            cert_file: Our certificate (PEM), for brokers that want one.
            key_file: Its key (PEM); default: it is in `cert_file`.

        Raises:
            ConfigError: The URL cannot be read, a file cannot be read, or TLS options without TLS.
        """
        parts = _split(url)
        secure = parts.scheme in ("mqtts", "wss")
        if not secure and (ca_file or cert_file or key_file):
            raise ConfigError(
                f"TLS files are given, but {url!r} is not encrypted", hint="use mqtts:// (or wss://) in the URL"
            )
        if parts.password is not None:
            raise ConfigError(
                "the broker URL holds a password", hint="put it into a file of mode 0600 and name that as password_file"
            )
        return cls(
            url=url,
            hostname=parts.hostname or "",
            port=parts.port or _PORTS[parts.scheme],
            transport="websockets" if parts.scheme in ("ws", "wss") else "tcp",
            path=parts.path or "/mqtt",
            username=username or parts.username,
            password=_read_password(password_file) if password_file else None,
            tls=_tls(ca_file, cert_file, key_file) if secure else None,
        )


def _split(url: str) -> SplitResult:
    shown = re.sub(r"(//[^/@]*:)[^/@]*@", r"\1***@", url)
    try:
        parts = urlsplit(url)
        absurd = parts.port == 0  # asking for the port raises where it is no number
    except ValueError as error:
        raise ConfigError(f"broker URL {shown!r}: {error}", hint=_EXAMPLE) from None
    if parts.scheme not in _PORTS:
        raise ConfigError(f"broker URL {shown!r} is of an unknown kind", hint=_EXAMPLE)
    if not parts.hostname or absurd or re.search(r"[\s\x00-\x1f]", url):
        raise ConfigError(f"broker URL {shown!r} names no host and port", hint=_EXAMPLE)
    more = parts.query or parts.fragment or (parts.path not in ("", "/") and not parts.scheme.startswith("ws"))
    if more:
        raise ConfigError(f"broker URL {shown!r} has more than host and port", hint=_EXAMPLE)
    return parts


def _read_password(path: Path) -> str:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read the broker password from {path}: {error}", hint="check password_file"
        ) from error
    if not lines or not lines[0]:
        raise ConfigError(f"{path} holds no password", hint="the first line of password_file is the password")
    return lines[0]


def _tls(ca_file: Path | None, cert_file: Path | None, key_file: Path | None) -> ssl.SSLContext:
    if key_file and not cert_file:
        raise ConfigError("key_file is given without cert_file", hint="give the certificate that belongs to the key")
    try:
        context = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"cannot use the CA file {ca_file}: {error}", hint="ca_file is a PEM file") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.sslsocket_class = _TidySocket
    if cert_file:
        try:
            # An empty password instead of a prompt on the terminal for an encrypted key.
            context.load_cert_chain(cert_file, key_file, password=lambda: "")
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"cannot use the certificate {cert_file} with the key {key_file or cert_file}: {error}",
                hint="cert_file and key_file are PEM files, the key without a passphrase",
            ) from error
    return context


class _TidySocket(ssl.SSLSocket):
    """Closes itself when the handshake fails: paho leaves that to the garbage collector."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise
