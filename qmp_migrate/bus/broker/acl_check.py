"""Does the broker refuse what it must? Tried as each identity, with real connections.

A refusal to publish is silent in MQTT 3.1.1, so it is seen from its effect: what is refused is followed by something that is
allowed, on the same connection, and a controller that reads everything sees only the second.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiomqtt

from qmp_migrate.bus.broker.pki import Identity
from qmp_migrate.bus.client.address import BrokerAddress
from qmp_migrate.bus.client.connection import Connection
from qmp_migrate.bus.messages.codec import MAX_PAYLOAD_BYTES
from qmp_migrate.bus.messages.topics import Topics
from qmp_migrate.errors import BusError, ConfigError

WAIT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Trial:
    """One thing that was tried.

    Attributes:
        identity: As whom; ``""``: as nobody.
        what: In words.
        wanted: ``allowed`` or ``refused``.
        seen: The same, or why it cannot be told.
    """

    identity: str
    what: str
    wanted: str
    seen: str

    @property
    def passed(self) -> bool:
        """Whether it came as wanted."""
        return self.wanted == self.seen


async def probe(url: str, topics: Topics, ca_file: Path, identities: Sequence[Identity]) -> list[Trial]:
    """Try the broker as each identity.

    Args:
        url: ``mqtts://…`` or ``wss://…``.
        topics: The topics in use.
        ca_file: The authority.
        identities: Whom to try; there must be a controller that is not revoked among them.

    Raises:
        UsageError, ConfigError: The URL or a file cannot be used.
        BusError: The broker cannot be reached as the controller.
    """
    observer = next((entry for entry in identities if entry.role == "controller" and not entry.revoked), None)
    if observer is None:
        raise ConfigError("no controller's identity to watch with", hint="qmp-migrate broker add DIR --controller NAME")
    trials = [await _nobody(url, ca_file)]
    hosts = [entry.name for entry in identities if entry.role == "agent"]
    seen: dict[str, asyncio.Event] = {}
    async with contextlib.AsyncExitStack() as stack:
        try:
            watching = await stack.enter_async_context(_as(url, ca_file, observer))
        except (aiomqtt.MqttError, OSError, ssl.SSLError) as error:
            raise BusError(
                f"{url} cannot be reached as {observer.name}: {error}", hint="is the broker running?"
            ) from error
        await watching.subscribe([(f"{topics.root}/#", 1)])
        task = asyncio.create_task(_watch(watching, seen))
        try:
            for entry in identities:
                trials += await _one(url, topics, ca_file, entry, hosts, seen)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    return trials


async def _watch(connection: Connection, seen: dict[str, asyncio.Event]) -> None:
    async for message in connection.messages:
        payload = message.payload if isinstance(message.payload, bytes) else b""
        if (event := seen.get(payload[:32].decode("ascii", "replace"))) is not None:
            event.set()


def _as(url: str, ca_file: Path, entry: Identity) -> Connection:
    address = BrokerAddress.parse(url, ca_file=ca_file, cert_file=entry.certificate, key_file=entry.key)
    return Connection.to(
        address, identifier=f"qm-probe-{secrets.token_hex(4)}", will=None, keepalive_s=30, timeout_s=WAIT_S
    )


async def _nobody(url: str, ca_file: Path) -> Trial:
    address = BrokerAddress.parse(url, ca_file=ca_file)
    refused = "refused"
    try:
        async with Connection.to(address, identifier="qm-probe", will=None, keepalive_s=30, timeout_s=WAIT_S):
            refused = "allowed"
    except (aiomqtt.MqttError, OSError, ssl.SSLError):
        pass
    return Trial("", "connect without a certificate", "refused", refused)


async def _one(
    url: str, topics: Topics, ca_file: Path, entry: Identity, hosts: list[str], seen: dict[str, asyncio.Event]
) -> list[Trial]:
    try:
        async with _as(url, ca_file, entry) as connection:
            if entry.revoked:
                return [Trial(entry.name, "connect although it is revoked", "refused", "allowed")]
            return await _topics(connection, topics, entry, hosts, seen)
    except (aiomqtt.MqttError, OSError, ssl.SSLError) as error:
        if entry.revoked:
            return [Trial(entry.name, "connect although it is revoked", "refused", "refused")]
        return [Trial(entry.name, "connect", "allowed", f"no: {error}")]


async def _topics(
    connection: Connection, topics: Topics, entry: Identity, hosts: list[str], seen: dict[str, asyncio.Event]
) -> list[Trial]:
    other = next((name for name in hosts if name != entry.name), "another-host")
    own = {
        "agent": f"{topics.root}/host/{entry.name}/broker-check",
        "controller": f"{topics.root}/controller/{entry.name}/broker-check",
        "subscriber": "",
        "bridge": "",  # what it may write, a controller does not see
    }[entry.role]
    forbidden = [("write under another host's name", f"{topics.root}/host/{other}/broker-check")]
    if entry.role != "controller":
        forbidden.append(("write as a controller", f"{topics.root}/migration/broker-check/state"))
    forbidden.append(("write $SYS", "$SYS/broker-check"))
    marks = [secrets.token_hex(16) for _ in forbidden]
    for mark, (_, topic) in zip(marks, forbidden, strict=True):
        seen[mark] = asyncio.Event()
        await connection.publish(topic, mark.encode(), qos=1, retain=False)
    trials: list[Trial] = []
    if own:
        last = secrets.token_hex(16)
        seen[last] = asyncio.Event()
        await connection.publish(own, last.encode(), qos=1, retain=False)
        arrived = await _within(seen[last])
        trials.append(Trial(entry.name, "write under its own name", "allowed", "allowed" if arrived else "refused"))
    else:
        await asyncio.sleep(1.0)  # nothing of its own may follow
    trials += [
        Trial(entry.name, what, "refused", "allowed" if seen[mark].is_set() else "refused")
        for mark, (what, _) in zip(marks, forbidden, strict=True)
    ]
    if own:
        large = secrets.token_hex(16)
        seen[large] = asyncio.Event()
        with contextlib.suppress(aiomqtt.MqttError, OSError):
            async with asyncio.timeout(WAIT_S):
                await connection.publish(own, large.encode().ljust(MAX_PAYLOAD_BYTES + 1, b"x"), qos=1, retain=False)
        await asyncio.sleep(0.2)
        what = f"a payload of {MAX_PAYLOAD_BYTES + 1} bytes"
        trials.append(Trial(entry.name, what, "refused", "allowed" if seen[large].is_set() else "refused"))
    return trials


async def _within(event: asyncio.Event) -> bool:
    try:
        async with asyncio.timeout(WAIT_S):
            await event.wait()
    except TimeoutError:
        return False
    return True
