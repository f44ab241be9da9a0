"""Where guests are: the hosts of the settings, connected to when first asked, and what runs on them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qmp_migrate.errors import CommandFailed, GuestExists, GuestUnknown, TransportError
from qmp_migrate.fleet import guests
from qmp_migrate.fleet.guests import Guest
from qmp_migrate.hosts import Host, HostAddress, make_host
from qmp_migrate.migration.endpoint.endpoint import Side
from qmp_migrate.migration.journal.store import Journal
from qmp_migrate.settings import HostSettings, Settings
from qmp_migrate.vm.names import validate_name

if TYPE_CHECKING:
    from qmp_migrate.vm.spec.guest_spec import GuestSpec


def address_of(name: str, settings: HostSettings) -> HostAddress:
    """Return how a host is reached, from its settings."""
    return HostAddress(
        name=name,
        address=settings.address,
        port=settings.port,
        user=settings.user,
        identity_file=settings.identity_file.expanduser() if settings.identity_file else None,
        known_hosts=settings.known_hosts.expanduser() if settings.known_hosts else None,
        jump=settings.jump,
        local=settings.address == "local",
        relay=settings.access == "relay",
        time_factor=settings.time_factor,
    )


@dataclass(slots=True)
class Inventory:
    """The hosts and their guests.

    Attributes:
        settings: Name the hosts.
        journal: Remembers what their QEMUs can do.
    """

    settings: Settings
    journal: Journal
    _hosts: dict[str, Host] = field(default_factory=dict)

    async def _close_hosts(self) -> None:
        hosts, self._hosts = self._hosts, {}
        await asyncio.gather(*(host.close() for host in hosts.values()), return_exceptions=True)

    # -- places ---------------------------------------------------------------------------------------------------

    def host(self, name: str) -> Host:
        """Return the connection to a host (made when first used; shared).

        Raises:
            HostUnknown, InvalidName: The settings do not have it.
        """
        settings = self.settings.host(name)
        if name not in self._hosts:
            self._hosts[name] = make_host(address_of(name, settings))
        return self._hosts[name]

    def side(self, host: str, vm: str) -> Side:
        """Return one side: a guest's name on a host, nothing asked yet."""
        return Side(self.host(host), self.settings.host(host), vm)

    async def find(self, vm: str, *, on: str | None = None) -> Side:
        """Find the host that a guest is on, by asking all of them (or the one named).

        Raises:
            GuestUnknown: None of those that answered, or it is shut down: then the error says where.
            LockBusy: It is being migrated.
            ConfigError: More than one.
            TransportError: The host that was named cannot be asked.
        """
        validate_name(vm, "guest name")
        names = [on] if on is not None else list(self.settings.hosts)
        if on is not None:
            await self.host(on).connect()
        sides = [self.side(name, vm) for name in names]
        found, unreachable = await guests.look_for(sides)
        try:
            return await guests.one_place(vm, found, unreachable)
        except GuestUnknown as error:
            raise await guests.unknown(vm, sides) or error from None

    # -- guests ---------------------------------------------------------------------------------------------------

    async def start(self, spec: GuestSpec, *, on: str) -> Guest:
        """Start a guest on a host; see `guests.start`.

        Raises:
            GuestExists: A host that answers has one of that name.
        """
        names = list(self.settings.hosts)
        side = self.side(on, spec.name)
        await side.host.connect()
        found, _unreachable = await guests.look_for([self.side(name, spec.name) for name in names if name != on])
        if found:
            raise GuestExists(
                f"a guest named {spec.name} is already on {found[0].name}",
                hint="names are unique in a fleet: choose another one",
                host=found[0].name,
            )
        return await guests.start(side, spec, self.journal)

    async def list_guests(self, *, on: str | None = None) -> tuple[list[Guest], list[str]]:
        """Return all guests of all hosts (or one), and a line for each host that could not be asked."""
        names = [on] if on is not None else list(self.settings.hosts)
        for name in names:
            self.settings.host(name)

        async def ask(name: str) -> list[Guest] | str:
            try:
                return await guests.list_host(lambda vm: self.side(name, vm), name)
            except (TransportError, CommandFailed) as error:
                if on is not None:
                    raise
                return str(error)

        answers = await asyncio.gather(*(ask(name) for name in names))
        lost = [answer for answer in answers if isinstance(answer, str)]
        return [guest for answer in answers if not isinstance(answer, str) for guest in answer], lost

    async def show(self, vm: str, *, on: str | None = None) -> Guest:
        """Return one guest as it is now. Raises as `find` does."""
        return await guests.look_at(await self.find(vm, on=on))

    async def stop(self, vm: str, *, on: str | None = None, force: bool = False, timeout: float = 30.0) -> None:
        """Stop a guest; see `guests.stop`. One whose QEMU has ended already is only cleaned up."""
        validate_name(vm, "guest name")
        try:
            side = await self.find(vm, on=on)
        except GuestUnknown:
            listed, _ = await self.list_guests(on=on)
            ended = [guest for guest in listed if guest.name == vm and guest.state == "ended"]
            if not ended:
                raise
            side = self.side(ended[0].host, vm)
        await guests.stop(side, force=force, timeout=timeout)
