"""Encryption of the migration stream: one TLS pre-shared key per migration (DESIGN rule 9).

The controller makes 32 random bytes and puts them on both hosts over SSH, in a 0600 file that QEMU's ``tls-creds-psk``
reads (one line ``identity:hexkey``, the format of GnuTLS' ``psktool``). The server side reads the file at the handshake,
so it stays until the copying has begun and is removed then. A key is used for one migration and never again.

A pre-shared key also keeps strangers out: one plain TCP connect to an unencrypted incoming port kills the destination,
while one with TLS-PSK survives it and still takes the right source (seen on 7.2 and 10.0).
"""

from __future__ import annotations

import secrets
from typing import Any, Final, Literal

from qmp_migrate.errors import MonitorError, QmpCommandFailed
from qmp_migrate.qemu.monitor import Monitor

IDENTITY: Final = "qmp-migrate"
KEY_BYTES: Final = 32
KEY_FILE: Final = "keys.psk"
"""The name is QEMU's: it looks for this file in the object's ``dir``."""

GROUP_FILE: Final = "dh-params.pem"
"""Beside the key of a server: without it QEMU up to 10.1 makes a Diffie-Hellman group of its own first, 0.4 s of CPU."""

GROUP: Final = b"""\
-----BEGIN DH PARAMETERS-----
MIIBCAKCAQEA//////////+t+FRYortKmq/cViAnPTzx2LnFg84tNpWp4TZBFGQz
+8yTnc4kmz75fS/jY2MMddj2gbICrsRhetPfHtXV/WVhJDP1H18GbtCFY2VVPe0a
87VXE15/V8k1mE8McODmi3fipona8+/och3xWKE2rec1MKzKT0g6eXq8CrGCsyT7
YdEIqUuyyOP7uWrat2DX9GgdT0Kj3jlN9K5W7edjcrsZCwenyO4KbXCeAvzhzffi
7MA0BM0oNC9hkXL+nOmFg/+OTxIy7vKBg8P+OxtMb61zO7X8vC7CIAXFjvGDfRaD
ssbzSibBsu/6iGtCOGEoXJf//////////wIBAg==
-----END DH PARAMETERS-----
"""
"""ffdhe2048 of RFC 7919, appendix A.1, as PKCS#3. Public, and the same for everyone; not a secret."""


def wants_group(version: str) -> bool:
    """Tell whether a QEMU makes its own group unless one lies beside the key; from 10.2 on it does not, and warns of one.

    Args:
        version: Of the server, for example ``7.2.22``.
    """
    major, minor = (int(part) for part in version.split(".")[:2])
    return (major, minor) < (10, 2)


def make_key_file() -> bytes:
    """Return the content of a new key file. A secret: never logged, never in an argv, never on the bus."""
    return f"{IDENTITY}:{secrets.token_hex(KEY_BYTES)}\n".encode()


async def add_credentials(monitor: Monitor, name: str, directory: str, endpoint: Literal["client", "server"]) -> None:
    """Create the ``tls-creds-psk`` object and put it in force for the next migration.

    Args:
        monitor: The source's (``client``) or the destination's (``server``).
        name: Object id, one per migration.
        directory: The directory on that host which holds `KEY_FILE`.
        endpoint: Which side this is.

    Raises:
        QmpCommandFailed: This QEMU has no TLS-PSK, or cannot read the file.
    """
    arguments: dict[str, Any] = {"qom-type": "tls-creds-psk", "id": name, "dir": directory, "endpoint": endpoint}
    if endpoint == "client":
        arguments["username"] = IDENTITY
    try:
        await monitor.execute("object-add", arguments)
    except QmpCommandFailed as error:
        raise QmpCommandFailed(
            f"TLS cannot be set up: {error.desc}",
            command=error.command,
            error_class=error.error_class,
            desc=error.desc,
            hint="a QEMU built without GnuTLS cannot encrypt; --no-encrypt moves the guest in the clear",
            host=monitor.host,
        ) from error


async def verify(monitor: Monitor, name: str) -> None:
    """Prove that encryption is in force: what is believed without looking is off one day (OSSN-0089).

    Raises:
        MonitorError: It is not.
    """
    parameters = await monitor.execute("query-migrate-parameters")
    if not isinstance(parameters, dict) or parameters.get("tls-creds") != name:
        raise MonitorError(
            "encryption was set but is not in force",
            hint="nothing was sent; do not use --no-encrypt to get around this, report it",
            host=monitor.host,
        )


async def remove_credentials(monitor: Monitor, name: str) -> None:
    """Take encryption out of force and delete the object, so that the next migration starts clean.

    Raises:
        MonitorError: QEMU refused or did not answer.
    """
    await monitor.execute("migrate-set-parameters", {"tls-creds": ""})
    try:
        await monitor.execute("object-del", {"id": name})
    except QmpCommandFailed as error:
        if "not found" not in error.desc:  # gone already: a controller that died had got this far
            raise
