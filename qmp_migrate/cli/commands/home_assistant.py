"""``qmp-migrate home-assistant``: hosts and guests as devices of Home Assistant, by MQTT discovery."""

from __future__ import annotations

import json as jsons
import sys
from typing import Annotated

import typer

from qmp_migrate.cli.context import Context, run, say
from qmp_migrate.cli.signals import until_stopped


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(home_assistant)


def home_assistant(
    context: typer.Context,
    vm: Annotated[
        list[str] | None,
        typer.Option("--vm", metavar="PATTERN", help="Only these guests, as a shell pattern; repeatable."),
    ] = None,
    prefix: Annotated[str, typer.Option(help="Discovery prefix of Home Assistant.")] = "homeassistant",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be published now, one line each, and end.")
    ] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Take away all that was published, and end.")] = False,
) -> None:
    """Announce hosts and guests to Home Assistant, and tell it where each guest is. Runs until it is stopped.

    Home Assistant has to use the same broker. Nothing that it publishes is listened to.
    """
    options: Context = context.obj

    async def work() -> None:
        from qmp_migrate.bus.client.address import BrokerAddress
        from qmp_migrate.bus.client.client import BusClient, Sign
        from qmp_migrate.bus.messages.topics import Topics
        from qmp_migrate.bus.publish.home_assistant import HomeAssistant
        from qmp_migrate.fleet.integrations import home_assistant as service

        mqtt = options.settings().mqtt
        address, topics = BrokerAddress.of(mqtt), Topics(mqtt.root)
        devices = HomeAssistant(topics, prefix, vm or ["*"])
        if dry_run:
            async with BusClient(address, topics, role="hass") as client:
                for topic, payload in sorted((await service.gather(client, devices)).items()):
                    sys.stdout.write(jsons.dumps({"topic": topic, "payload": jsons.loads(payload)}) + "\n")
            return
        if remove:
            async with BusClient(address, topics, role="hass") as client:
                say().print(f"{await service.remove(client, devices)} topics cleared", markup=False)
            return
        say().print(f"telling Home Assistant what {address.url} says (Ctrl-C ends)", style="dim")
        async with BusClient(address, topics, role="hass", sign=Sign(devices.status_topic)) as client:
            await until_stopped(service.Announcer(devices).run(client))

    run(work())
