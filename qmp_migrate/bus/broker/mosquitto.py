"""The configuration of a Mosquitto that keeps the bus: one identity each, and nobody writes under another's name.

Rendered, not edited: ``broker init`` and ``broker add`` write both files anew from the identities that there are.
``contrib/mosquitto`` holds what comes out for an example.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from qmp_migrate.bus.broker.pki import Identity, role_of
from qmp_migrate.bus.messages.codec import MAX_PAYLOAD_BYTES
from qmp_migrate.bus.messages.topics import Topics
from qmp_migrate.bus.publish.home_assistant import DEFAULT_PREFIX, node_of

MAX_PACKET_BYTES: Final = MAX_PAYLOAD_BYTES + 4096
"""A payload with its topic and headers."""
QUEUE_MESSAGES: Final = 100_000
"""What waits for one subscriber. Retained states count: with fewer, one that joins late loses some of a large fleet."""
QUEUE_BYTES: Final = 256 * 1024 * 1024
CONNECTIONS: Final = 4096


@dataclass(frozen=True, slots=True)
class Listeners:
    """Where the broker listens.

    Attributes:
        port: MQTT over TLS.
        websockets_port: MQTT over websockets over TLS, for browsers; 0: none.
        bind: Address to listen on; ``""``: all.
    """

    port: int = 8883
    websockets_port: int = 0
    bind: str = ""


def configuration(directory: PurePosixPath, state: PurePosixPath, listeners: Listeners, *, run_as: str = "") -> str:
    """Return ``mosquitto.conf``.

    Args:
        directory: Where the authority's files are on the broker's machine.
        state: Where the broker keeps what it must remember.
        listeners: Where it listens.
        run_as: User that it runs as; ``""``: its own default.
    """
    tls = f"""\
cafile {directory}/ca.crt
certfile {directory}/broker.crt
keyfile {directory}/broker.key
crlfile {directory}/crl.pem
tls_version tlsv1.2
require_certificate true
use_identity_as_username true
max_connections {CONNECTIONS}
"""
    bind = f" {listeners.bind}" if listeners.bind else ""
    text = f"""\
# The broker of qmp-migrate. Written by `qmp-migrate broker init`; do not edit, it is written anew.
# TLS alone, one identity per certificate, the access list in qmp-migrate.acl.
per_listener_settings false
allow_anonymous false
acl_file {directory}/qmp-migrate.acl

# Our payloads have at most 64 KiB; a subscriber that is slow or away costs no more memory than this.
message_size_limit {MAX_PAYLOAD_BYTES}
max_packet_size {MAX_PACKET_BYTES}
max_inflight_messages 200
max_queued_messages {QUEUE_MESSAGES}
max_queued_bytes {QUEUE_BYTES}
persistent_client_expiration 1d
max_keepalive 300
set_tcp_nodelay true

persistence true
persistence_location {state}/
autosave_interval 60
check_retain_source true

log_type error
log_type warning
log_type notice
connection_messages true

listener {listeners.port}{bind}
{tls}"""
    if listeners.websockets_port:
        text += f"\nlistener {listeners.websockets_port}{bind}\nprotocol websockets\n{tls}"
    if run_as:
        text += f"\nuser {run_as}\n"
    return text


def access_list(topics: Topics, identities: Sequence[Identity | str]) -> str:
    """Return the access list.

    Args:
        topics: The topics in use.
        identities: Everybody who is to have more than the pattern gives; revoked ones are left out.
    """
    names = [entry if isinstance(entry, str) else entry.name for entry in identities if not _revoked(entry)]
    root = topics.root
    lines = [
        "# Who may say what on the bus of qmp-migrate. Written by `qmp-migrate broker`; do not edit.",
        "# What is not listed is refused, $SYS among it.",
        "",
        "# Every agent: its own host, which is its user name (the common name of its certificate), and nothing else.",
        f"pattern readwrite {root}/host/%u/#",
    ]
    for name in sorted(names):
        lines += ["", f"user {name}", *(f"topic {rule}" for rule in _RULES[role_of(name)](root))]
    return "\n".join(lines) + "\n"


def _revoked(entry: Identity | str) -> bool:
    return isinstance(entry, Identity) and entry.revoked


def _agent(root: str) -> list[str]:
    return [f"read {root}/host/+/token/+"]


def _controller(root: str) -> list[str]:
    return [f"read {root}/host/#", f"readwrite {root}/migration/#", f"readwrite {root}/controller/#"]


def _subscriber(root: str) -> list[str]:
    return [f"read {root}/#", *(f"read {topic}" for topic in _of_home_assistant(root))]


def _bridge(root: str) -> list[str]:
    return [f"read {root}/#", *(f"readwrite {topic}" for topic in _of_home_assistant(root))]


def _of_home_assistant(root: str) -> list[str]:
    node = node_of(root)
    return [f"{DEFAULT_PREFIX}/+/{node}/+/config", f"{DEFAULT_PREFIX}/{node}/#"]


_RULES: Final = {"agent": _agent, "controller": _controller, "subscriber": _subscriber, "bridge": _bridge}
