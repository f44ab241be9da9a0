"""``qmp-migrate events``: follow the bus."""

from __future__ import annotations

import contextlib
import json as jsons
import sys
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from qmp_migrate.cli.context import Context, run, say
from qmp_migrate.errors import BusError

if TYPE_CHECKING:
    from qmp_migrate.bus.follow import Followed
    from qmp_migrate.settings import Settings


_SHOWN: Final = (
    *("state", "phase", "outcome", "owner", "runstate", "role", "status", "percent", "transferred_bytes"),
    *("throughput_bytes_per_s", "pass_number", "cpu_percent", "memory_available_bytes"),
)
"""What of a state document is shown to people, in this order."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(events)


def events(
    context: typer.Context,
    vm: Annotated[str | None, typer.Option("--vm", metavar="VM", help="Only what concerns this guest.")] = None,
    progress: Annotated[bool, typer.Option(help="Show migrations' numbers too.")] = True,
    json: Annotated[bool, typer.Option("--json", help="One JSON document per line.")] = False,
) -> None:
    """Follow hosts, guests and migrations over MQTT. Ends with Ctrl-C."""
    options: Context = context.obj

    async def work() -> None:
        settings = options.settings()
        await _follow(settings, vm=vm, progress=progress, json=json)

    with contextlib.suppress(BrokenPipeError):
        run(work(), as_json=json)


async def _follow(settings: Settings, *, vm: str | None, progress: bool, json: bool) -> None:
    from qmp_migrate.bus.address import BrokerAddress
    from qmp_migrate.bus.client import BusClient
    from qmp_migrate.bus.follow import follow
    from qmp_migrate.bus.messages import MigrationProgress
    from qmp_migrate.bus.topics import Topics
    from qmp_migrate.vm.names import validate_name

    if vm is not None:
        validate_name(vm, "guest name")
    mqtt = settings.mqtt
    if mqtt.url is None:
        raise BusError("the settings name no broker", hint='add [mqtt] url = "mqtt://HOST:1883"')
    address = BrokerAddress.parse(
        mqtt.url,
        username=mqtt.username,
        password_file=mqtt.password_file,
        ca_file=mqtt.ca_file,
        cert_file=mqtt.cert_file,
        key_file=mqtt.key_file,
    )
    async with BusClient(address, Topics(mqtt.root), role="events") as client:
        await client.wait_connected()
        if not json:
            say().print(f"following {address.url} (Ctrl-C ends)", style="dim")
        async for news in follow(client, vm=vm):
            if not progress and isinstance(news.received.message, MigrationProgress):
                continue
            sys.stdout.write((jsons.dumps(document(news)) if json else line(news)) + "\n")
            sys.stdout.flush()


def document(news: Followed) -> dict[str, Any]:
    """Return one piece of news for ``events --json``; ``message`` is null where a retained topic was cleared."""
    message = news.received.message
    return {
        "topic": news.received.topic,
        "retained": news.received.retained,
        "missed": news.missed,
        "message": message.model_dump(mode="json", by_alias=True) if message is not None else None,
    }


def line(news: Followed) -> str:
    """Return one piece of news as a line for people."""
    message = news.received.message
    topic = news.received.topic.split("/", 2)[-1]
    gap = f"({news.missed} lost before) " if news.missed else ""
    if message is None:
        return f"{gap}{topic}: gone"
    fields = message.model_dump(mode="json", by_alias=True)
    if "specversion" in fields:
        subject = f" {fields['subject']}" if fields.get("subject") else ""
        data = " ".join(
            f"{key}={value}" for key, value in (fields.get("data") or {}).items() if key not in {"id", "vm"}
        )
        return f"{gap}{topic}: {fields['type'].rpartition('.')[2]}{subject} {data}".rstrip()
    data = " ".join(f"{key}={fields[key]}" for key in _SHOWN if fields.get(key) is not None)
    return f"{gap}{topic}: {data}".rstrip()
