"""``qmp-migrate events``: follow the bus."""

from __future__ import annotations

import contextlib
import json as jsons
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from qmp_migrate.cli.context import Context, run, say

if TYPE_CHECKING:
    from qmp_migrate.bus.consume.ordered import Followed
    from qmp_migrate.settings import Settings


_SHOWN: Final = (
    *("state", "phase", "outcome", "owner", "runstate", "role", "status", "percent", "transferred_bytes"),
    *("throughput_bytes_per_s", "pass_number", "cpu_percent", "memory_available_bytes"),
)
"""What of a state document is shown to people, in this order."""


LOOK_S: Final = 1.0
"""How often it is looked whether a host has fallen silent."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(events)


def events(
    context: typer.Context,
    vm: Annotated[str | None, typer.Option("--vm", metavar="VM", help="Only what concerns this guest.")] = None,
    host: Annotated[
        str | None, typer.Option("--host", metavar="HOST", help="Only what this host's agent says.")
    ] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(
            "--type", metavar="WORD", help="Only a schema (host.vm), or a part of an event's type; repeatable."
        ),
    ] = None,
    state: Annotated[bool, typer.Option(help="Show first how things are.")] = True,
    progress: Annotated[bool, typer.Option(help="Show migrations' numbers too.")] = True,
    schema: Annotated[
        str | None,
        typer.Option("--schema", metavar="NAME", help="Print the JSON Schema of a message, for example host.vm."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document per line.")] = False,
) -> None:
    """Follow hosts, guests and migrations over MQTT. Ends with Ctrl-C."""
    options: Context = context.obj
    if schema is not None:
        _print_schema(schema, json)
        return
    wanted = Wanted(host, tuple(kind or ()), state=state, progress=progress)

    async def work() -> None:
        settings = options.settings()
        await _follow(settings, vm=vm, wanted=wanted, json=json)

    with contextlib.suppress(BrokenPipeError):
        run(work(), as_json=json)


def _print_schema(name: str, json: bool) -> None:
    from qmp_migrate.bus.messages.schemas import json_schema
    from qmp_migrate.bus.messages.topics import Kind
    from qmp_migrate.cli.context import fail, put
    from qmp_migrate.errors import UsageError

    known = {kind.value: kind for kind in Kind}
    if name not in known:
        fail(UsageError(f"there is no message {name!r}", hint=f"there are: {', '.join(known)}"), as_json=json)
    put(json_schema(known[name]))


@dataclass(frozen=True, slots=True)
class Wanted:
    """What of the news is shown.

    Attributes:
        host: Only this host's; None: all.
        kinds: Schemas, or parts of events' types; empty: all.
        state: Also what was so before.
        progress: Also numbers.
    """

    host: str | None = None
    kinds: tuple[str, ...] = ()
    state: bool = True
    progress: bool = True

    def admits(self, news: Followed) -> bool:
        """Tell whether a piece of news is shown."""
        from qmp_migrate.bus.messages.topics import Kind

        address, message = news.received.address, news.received.message
        if address is None or (news.received.retained and not self.state):
            return False
        if not self.progress and address.kind is Kind.MIGRATION_PROGRESS:
            return False
        if self.host is not None and not (address.kind.value.startswith("host.") and address.owner == self.host):
            return False
        words = f"{address.kind.value} {getattr(message, 'type', '')}"
        return not self.kinds or any(kind in words for kind in self.kinds)


async def _follow(settings: Settings, *, vm: str | None, wanted: Wanted, json: bool) -> None:
    from qmp_migrate.bus.client.address import BrokerAddress
    from qmp_migrate.bus.client.client import BusClient
    from qmp_migrate.bus.consume.name_conflicts import Conflicts
    from qmp_migrate.bus.consume.ordered import follow
    from qmp_migrate.bus.consume.staleness import Silence, with_pauses
    from qmp_migrate.bus.messages.topics import Topics
    from qmp_migrate.vm.names import validate_name

    if vm is not None:
        validate_name(vm, "guest name")
    mqtt = settings.mqtt
    address = BrokerAddress.of(mqtt)
    async with BusClient(address, Topics(mqtt.root), role="events") as client:
        await client.wait_connected()
        if not json:
            say().print(f"following {address.url} (Ctrl-C ends)", style="dim")
        silence, conflicts, looked = Silence(), Conflicts(), 0.0
        async for news in with_pauses(follow(client, vm=vm), LOOK_S):
            if news is not None:
                silence.hear(news.received, time.monotonic())
                conflicts.hear(news.received, time.monotonic())
                if news.missed:
                    _write(gap(news), json)
                if wanted.admits(news):
                    _write(document(news) if json else line(news), json)
            if (now := time.monotonic()) - looked < LOOK_S:
                continue
            looked = now
            for told in (*silence.fallen(now), *conflicts.found(now)):
                if wanted.host is None or wanted.host in (told.get("host"), *told.get("hosts", ())):
                    _write(told, json)


def _write(told: dict[str, Any] | str, json: bool) -> None:
    text = told if isinstance(told, str) else jsons.dumps(told) if json or "text" not in told else told["text"]
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def gap(news: Followed) -> dict[str, Any]:
    """Return the mark of a gap, which stands before the message that showed it."""
    return {
        "schema": "events.gap/1",
        "topic": news.received.topic,
        "missed": news.missed,
        "text": f"{news.received.topic.split('/', 2)[-1]}: {news.missed} lost",
    }


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
    if message is None:
        return f"{topic}: gone"
    fields = message.model_dump(mode="json", by_alias=True)
    if "specversion" in fields:
        subject = f" {fields['subject']}" if fields.get("subject") else ""
        data = " ".join(
            f"{key}={value}" for key, value in (fields.get("data") or {}).items() if key not in {"id", "vm"}
        )
        return f"{topic}: {fields['type'].rpartition('.')[2]}{subject} {data}".rstrip()
    data = " ".join(f"{key}={fields[key]}" for key in _SHOWN if fields.get(key) is not None)
    return f"{topic}: {data}".rstrip()
