"""A short examination of each host and of the controller: what a migration will need, before one is wanted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from qmp_migrate.errors import BusError, ChannelRefused, ConfigError, JournalError, QmpMigrateError, TransportError
from qmp_migrate.fleet.cleanup import leftovers
from qmp_migrate.hosts.scripts import script
from qmp_migrate.migration.preflight.rules import Check, Status
from qmp_migrate.settings import HostSettings
from qmp_migrate.vm.names import check_socket_path
from qmp_migrate.vm.units import about_size

if TYPE_CHECKING:
    from qmp_migrate.fleet.controller import Controller
    from qmp_migrate.hosts import Host

CLOCK_S: Final = 1.0
SPACE_BYTES: Final = 64 << 20
"""Logs, sockets and keys are small; less than this is soon full."""

BUS_S: Final = 3.0
"""How long agents that have said that they are there are waited for: what they said is retained."""

_FACTS: Final = script("doctor/facts")


@dataclass(frozen=True, slots=True)
class Health:
    """All checks, hosts first; `unreachable`: hosts that could not be asked."""

    checks: list[Check]
    unreachable: tuple[str, ...]

    @property
    def failed(self) -> bool:
        """Whether a check failed."""
        return any(check.status == "fail" for check in self.checks)

    @property
    def exit_code(self) -> int:
        """0: no check failed; 1: one did; 69: a host could not be asked."""
        return 69 if self.unreachable else int(self.failed)


async def examine(controller: Controller, hosts: Sequence[str] = ()) -> Health:
    """Examine hosts and the controller; changes nothing on a host.

    Args:
        controller: Its settings, connections and journal.
        hosts: Which; empty: all.

    Raises:
        HostUnknown, InvalidName: The settings do not have one.
    """
    for name in hosts:
        controller.settings.host(name)
    names = tuple(hosts) or tuple(controller.settings.hosts)
    each = await asyncio.gather(*(_host(controller.host(name), controller.settings.host(name)) for name in names))
    unreachable = tuple(name for name, checks in zip(names, each, strict=True) if checks[0].status == "fail")
    checks = [check for group in each for check in group]
    checks += await _bus(controller, names)
    checks.append(await _journal(controller))
    answering = [name for name in names if name not in unreachable]
    if answering:
        checks.append(await _left(controller, answering))
    return Health(checks, unreachable)


async def _host(host: Host, settings: HostSettings) -> list[Check]:
    try:
        await host.connect()
        begun = time.monotonic()
        await host.script(":")
        trip_ms = (time.monotonic() - begun) * 1000
        asked = time.time()
        text = (await host.script(_FACTS, [settings.run_dir, settings.qemu], timeout=20)).text
        answered = time.time()
    except QmpMigrateError as error:
        return [Check("ssh", "fail", str(error), error.hint or "", host.name)]
    checks = [
        Check("ssh", "ok", f"{host.name} answers, a command there and back takes {trip_ms:.0f} ms", "", host.name)
    ]
    listening = next((line.partition(" ")[2] for line in text.splitlines() if line.startswith("socket ")), "")
    return [*checks, *judge(host.name, settings, text, asked, answered), await _sockets(host, host.name, listening)]


def judge(name: str, settings: HostSettings, text: str, asked: float, answered: float) -> list[Check]:
    """Judge what a host's script printed.

    Args:
        name: The host's name.
        settings: Its settings.
        text: What was printed.
        asked: The controller's clock right before, seconds since the epoch.
        answered: And right after.
    """
    lines = [line.partition(" ") for line in text.splitlines()]
    facts = {key: value.strip() for key, _, value in lines}
    lacking = [value for key, _, value in lines if key == "lacks"]

    def check(id: str, good: bool, yes: str, no: str, hint: str, bad: Status = "fail") -> Check:
        return Check(id, "ok" if good else bad, f"{name}: {yes if good else no}", "" if good else hint, name)

    version = facts.get("qemu", "")
    there = facts.get("run_dir", "")
    space = int(facts["space"]) * 1024 if facts.get("space", "").isdigit() else 0
    return [
        check("qemu", version.startswith("QEMU emulator version"), version, f"no QEMU at {settings.qemu}: {version}",
              "install it there, or correct the host's `qemu` setting"),
        check("run-dir", there in {"there", "absent"}, f"{settings.run_dir} {_USABLE.get(there, '')}",
              f"{settings.run_dir} cannot be used", f"as root there: install -d -m 700 -o USER {settings.run_dir}"),
        _length(name, settings.run_dir),
        check("tools", not lacking, "flock, timeout, setsid are there", f"{', '.join(lacking)} is not installed",
              "Debian: apt-get install util-linux coreutils findutils"),
        check("space", space >= SPACE_BYTES, f"{about_size(space)} free for {settings.run_dir}",
              f"only {about_size(space)} free for {settings.run_dir}", "make room", "warn"),
        _clock(name, facts.get("now", ""), asked, answered),
        Check("userfaultfd", "ok", f"{name}: userfaultfd (for post-copy) is " +
              ("allowed" if facts.get("userfaultfd") in {"yes", "1"} else "not allowed to this user"), "", name),
    ]  # fmt: skip


_USABLE: Final = {"there": "is usable", "absent": "is absent and can be made"}


def _length(name: str, run_dir: str) -> Check:
    try:
        check_socket_path(f"{run_dir}/x/agent.sock")
        check_socket_path(f"{run_dir}/{'x' * 63}/agent.sock")
    except ConfigError as error:
        longest = 107 - len(f"{run_dir}//agent.sock".encode())
        status: Status = "warn" if longest > 0 else "fail"
        text = f"{name}: {run_dir} leaves room for guest names of {max(0, longest)} characters"
        return Check("path-length", status, text, error.hint or "", name)
    return Check("path-length", "ok", f"{name}: {run_dir} leaves room for every guest name", "", name)


def _clock(name: str, text: str, asked: float, answered: float) -> Check:
    try:
        there = float(text)
    except ValueError:
        return Check("clock", "warn", f"{name}: its clock could not be read", "is date(1) GNU's?", name)
    # Anything within the two looks at our own clock may be the truth.
    off = max(asked - there, there - answered, 0.0)
    if off > CLOCK_S:
        return Check("clock", "warn", f"{name}: its clock is {off:.1f} s off", "let both use NTP (chrony)", name)
    return Check("clock", "ok", f"{name}: its clock agrees with ours", "", name)


async def _sockets(host: Host, name: str, listening: str) -> Check:
    """Connect to a socket that surely is there: sshd refuses one that is absent with the same words as a forbidden one."""
    if not listening:
        return Check(
            "forwarding", "ok", f"{name}: nothing listens there now that could show whether sshd forwards sockets"
        )
    try:
        (await host.open_unix(listening)).close()
    except (ChannelRefused, TransportError) as error:
        return Check("forwarding", "fail", str(error), error.hint or "", name)
    return Check("forwarding", "ok", f"{name}: sshd forwards UNIX sockets", "", name)


async def _bus(controller: Controller, names: Sequence[str]) -> list[Check]:
    from qmp_migrate.bus.client.address import BrokerAddress
    from qmp_migrate.bus.client.client import BusClient
    from qmp_migrate.bus.consume.ordered import follow
    from qmp_migrate.bus.messages.registry import HostStatus
    from qmp_migrate.bus.messages.topics import Topics

    mqtt = controller.settings.mqtt
    if mqtt.url is None:
        return []
    seen: dict[str, str] = {}
    try:
        address = BrokerAddress.of(mqtt)
        async with asyncio.timeout(BUS_S), BusClient(address, Topics(mqtt.root), role="doctor") as client:
            await client.wait_connected()
            async for news in follow(client):
                if isinstance(news.received.message, HostStatus) and news.received.address is not None:
                    seen[news.received.address.owner] = news.received.message.state
                if set(names) <= set(seen):
                    break
    except TimeoutError:
        pass
    except BusError as error:
        return [Check("bus", "warn", str(error), error.hint or "a lost broker never touches a guest")]
    hint = "is qmp-hostagent running there? migrations work without it, the guardian does not"
    return [
        Check("agent", "ok", f"{name}: its agent is {seen[name]}", "", name)
        if seen.get(name) in {"ready", "draining"}
        else Check("agent", "warn", f"{name}: its agent is {seen.get(name, 'not seen on the bus')}", hint, name)
        for name in names
    ]


async def _journal(controller: Controller) -> Check:
    url = controller.settings.controller.state
    try:
        await controller.journal.remember_probe("doctor", int(time.time()))
    except JournalError as error:
        return Check("journal", "fail", str(error), error.hint or "is its disk full, or read-only?")
    if not url.startswith("sqlite:///"):
        return Check("journal", "ok", "the journal can be written")
    path = Path(url.removeprefix("sqlite:///"))
    size = sum(part.stat().st_size for part in (path, Path(f"{path}-wal")) if part.exists())
    return Check("journal", "ok", f"the journal can be written; {path} is {about_size(size)}")


async def _left(controller: Controller, names: Sequence[str]) -> Check:
    try:
        found = await leftovers.find(controller, names)
    except QmpMigrateError as error:
        return Check("leftovers", "warn", str(error), error.hint or "")
    left = sum(finding.left for finding in found.findings)
    if left:
        return Check("leftovers", "warn", f"{left} leftovers", "see: qmp-migrate doctor --leftovers")
    return Check("leftovers", "ok", "nothing is left of earlier migrations")
