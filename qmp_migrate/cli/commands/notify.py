"""``qmp-migrate notify``: the standing service that tells others what happens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qmp_migrate.cli.context import Context, run, say
from qmp_migrate.cli.signals import until_stopped
from qmp_migrate.errors import ConfigError

if TYPE_CHECKING:
    from qmp_migrate.fleet.notifications.service import Target
    from qmp_migrate.settings import Settings


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(notify)


def notify(
    context: typer.Context,
    test: Annotated[bool, typer.Option("--test", help="Tell every receiver something now, and end.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the settings, and say who is told what.")] = False,
    state: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where is kept what was told. [default: beside the journal]"),
    ] = None,
) -> None:
    """Tell others what happens to guests, hosts and migrations, as [[notify]] says. Runs until it is stopped."""
    options: Context = context.obj

    async def work() -> int:
        settings = options.settings()
        targets = _targets(settings)
        if dry_run:
            for target in targets:
                where = (
                    ""
                    if (target.filter.vm, target.filter.host) == ("*", "*")
                    else f" (guests {target.filter.vm}, hosts {target.filter.host})"
                )
                say().print(f"{target.receiver}: {', '.join(target.filter.on)}{where}", markup=False)
            return 0
        if test:
            return await _test(targets)
        await _serve(settings, targets, state)
        return 0

    code = run(work())
    if code:
        raise typer.Exit(code)


def _targets(settings: Settings) -> list[Target]:
    from qmp_migrate.fleet.notifications.delivery import Command, Receiver, Webhook, read_secret
    from qmp_migrate.fleet.notifications.rules import Filter
    from qmp_migrate.fleet.notifications.service import Target
    from qmp_migrate.vm.units import parse_time_ms

    if not settings.notify:
        raise ConfigError(
            "the settings name nobody to tell", hint='add [[notify]] with on = ["migration.*"] and url or command'
        )
    targets = []
    for each in settings.notify:
        timeout_s = parse_time_ms(each.timeout) / 1000
        receiver: Receiver
        if each.url is not None:
            secret = read_secret(each.secret_file) if each.secret_file is not None else b""
            receiver = Webhook(each.url, secret, timeout_s, each.ca_file)
        else:
            receiver = Command(each.command or (), timeout_s)
        targets.append(Target(receiver, Filter(each.on, each.vm, each.host), parse_time_ms(each.deadline) / 1000))
    return targets


async def _test(targets: list[Target]) -> int:
    import secrets

    from qmp_migrate.fleet.notifications.delivery import deliver
    from qmp_migrate.fleet.notifications.rules import Notice

    failed = 0
    for target in targets:
        text = "this is a test of qmp-migrate notify"
        notice = Notice(f"test.{secrets.token_hex(8)}", "migration.completed", "test", None, text, {"test": True})
        why = await deliver(target.receiver, notice, deadline_s=target.deadline_s, tries=1)
        say().print(f"{target.receiver}: {'delivered' if why is None else f'not delivered: {why}'}", markup=False)
        failed += why is not None
    return 1 if failed else 0


async def _serve(settings: Settings, targets: list[Target], state: Path | None) -> None:
    from qmp_migrate.bus.client.address import BrokerAddress
    from qmp_migrate.bus.client.client import BusClient
    from qmp_migrate.bus.messages.topics import Topics
    from qmp_migrate.fleet.notifications.service import Delivered, Notifier

    mqtt = settings.mqtt
    address = BrokerAddress.of(mqtt)
    delivered = Delivered(state or _beside_the_journal(settings))
    say().print(f"telling {len(targets)} receivers what {address.url} says (Ctrl-C ends)", style="dim")
    async with BusClient(address, Topics(mqtt.root), role="notify") as client:
        await until_stopped(Notifier(targets, delivered).run(client))


def _beside_the_journal(settings: Settings) -> Path | None:
    url = settings.controller.state
    if not url.startswith("sqlite:///"):
        return None
    journal = Path(url.removeprefix("sqlite:///"))
    return journal.with_name(f"{journal.stem}.notified.json") if journal.parent.is_dir() else None
