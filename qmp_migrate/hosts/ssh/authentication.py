"""Which keys are offered to an SSH server, in which order, and what is said when none of them does."""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterator
from pathlib import Path

from paramiko.pkey import UnknownKeyType

from qmp_migrate.errors import AuthenticationFailed
from qmp_migrate.hosts.base import HostAddress
from qmp_migrate.hosts.ssh.paramiko_import import paramiko

#: What ``except`` lists wherever paramiko is called: it lets EOFError and plain socket errors through as they come.
BROKEN = (paramiko.SSHException, OSError, EOFError)

_DEFAULT_KEYS = ("~/.ssh/id_ed25519", "~/.ssh/id_ecdsa", "~/.ssh/id_rsa")


def authenticate(transport: paramiko.Transport, address: HostAddress) -> None:
    """Authenticate with a public key: the identity file where one is set, else the agent's keys, then the user's.

    Raises:
        AuthenticationFailed: No key was accepted; the message lists what was tried.
    """
    user = address.user or getpass.getuser()
    tried: list[str] = []
    agent = paramiko.Agent() if os.environ.get("SSH_AUTH_SOCK") else None
    try:
        for label, key in _keys(address.identity_file, agent, tried):
            tried.append(label)
            try:
                if not transport.auth_publickey(user, key):
                    return
                tried[-1] += " (accepted, but the host wants more than a key)"
            except paramiko.BadAuthenticationType as error:
                tried[-1] += f" (the host allows only: {', '.join(error.allowed_types)})"
            except BROKEN:
                if not transport.is_active():
                    tried.append("then the host hung up: too many keys, or not within its time limit")
                    break
    finally:
        if agent is not None:
            agent.close()
    raise AuthenticationFailed(
        f"{user}@{address.address}:{address.port} accepted none of our keys: " + ("; ".join(tried) or "there are none"),
        hint="put the public key into ~/.ssh/authorized_keys on the host, or set identity_file and user",
        host=address.name,
    )


def _keys(
    identity_file: Path | None, agent: paramiko.Agent | None, tried: list[str]
) -> Iterator[tuple[str, paramiko.PKey]]:
    """Yield the keys to try; note in ``tried`` which ones could not be."""
    if identity_file is None and agent is not None:
        for key in agent.get_keys():
            yield f"agent key {key.fingerprint}", key
    for path in (str(identity_file),) if identity_file else _DEFAULT_KEYS:
        path = os.path.expanduser(path)
        if identity_file is None and not os.path.exists(path):
            continue
        try:
            yield path, paramiko.PKey.from_path(path)
        except (TypeError, paramiko.PasswordRequiredException):
            # Protected by a passphrase: the agent may hold the same key unlocked.
            public = _public_half(path)
            held = agent.get_keys() if agent else ()
            match = next((key for key in held if key.get_base64() == public), None)
            if match is None:
                tried.append(f"{path} (protected by a passphrase; load it with: ssh-add {path})")
            else:
                yield f"{path} (by the agent)", match
        except (OSError, ValueError, paramiko.SSHException, UnknownKeyType) as error:
            tried.append(f"{path} ({error})")


def _public_half(path: str) -> str:
    try:
        with open(f"{path}.pub", encoding="utf-8") as file:
            return [*file.read().split(), "", ""][1]
    except OSError:
        return ""
