"""``qmp-migrate vm``: guests on hosts."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qmp_migrate.cli.context import Context, data, put, run, say
from qmp_migrate.errors import SpecError

if TYPE_CHECKING:
    from qmp_migrate.fleet.guests import Guest

app = typer.Typer(help="Start, list, show and stop guests.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON to standard output.")]
On = Annotated[str | None, typer.Option("--on", metavar="HOST", help="Only this host.")]


@app.command()
def start(
    context: typer.Context,
    spec: Annotated[
        Path,
        typer.Argument(metavar="SPEC.toml|VM", help="The guest's spec; or the name of one that is shut down there."),
    ],
    on: Annotated[str, typer.Option("--on", metavar="HOST", help="Host to start it on.")],
    json: Json = False,
) -> None:
    """Start a guest on a host from its spec, or one that is shut down there from its definition."""

    async def work() -> Guest:
        from qmp_migrate.fleet.controller import Controller
        from qmp_migrate.vm.names import NAME_PATTERN
        from qmp_migrate.vm.spec.guest_spec import parse_spec

        options: Context = context.obj
        named = NAME_PATTERN.fullmatch(str(spec)) and spec.suffix != ".toml"
        if named and not spec.exists():
            async with Controller.open(options.settings()) as controller:
                return await controller.start_defined(spec.name, on=on)
        try:
            text = spec.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SpecError(f"cannot read {spec}: {error}", hint="is it a text file that you may read?") from None
        parsed = parse_spec(text, source=str(spec), base_dir=str(spec.resolve().parent))
        async with Controller.open(options.settings()) as controller:
            return await controller.start(parsed, on=on)

    guest = run(work(), as_json=json)
    if json:
        put({"schema": "guest/1", **asdict(guest)})
    else:
        say().print(f"[bold]{guest.name}[/] is {guest.state} on {guest.host} (pid {guest.pid}, {guest.directory})")
    for line in guest.warnings:
        say().print(f"[yellow]warning:[/] {line}")


@app.command("list")
def list_(context: typer.Context, on: On = None, json: Json = False) -> None:
    """List the guests of all hosts."""

    async def work() -> tuple[list[Guest], list[str]]:
        from qmp_migrate.fleet.controller import Controller

        options: Context = context.obj
        async with Controller.open(options.settings()) as controller:
            return await controller.list_guests(on=on)

    from qmp_migrate.fleet.guests import conflicts

    guests, unreachable = run(work(), as_json=json)
    twice = conflicts(guests)
    if json:
        listed = [asdict(guest) for guest in guests]
        put({"schema": "guests/1", "guests": listed, "unreachable": unreachable, "conflicts": twice})
    else:
        _table(guests)
    for found in twice:
        say().print(f"[bold red]conflict:[/] {found['text']}")
    for line in unreachable:
        say().print(f"[yellow]warning:[/] {line}")
    if unreachable:
        raise typer.Exit(69)


@app.command()
def show(
    context: typer.Context,
    vm: Annotated[str, typer.Argument(metavar="VM", help="The guest's name.")],
    on: On = None,
    json: Json = False,
) -> None:
    """Show one guest."""

    async def work() -> Guest:
        from qmp_migrate.fleet.controller import Controller

        options: Context = context.obj
        async with Controller.open(options.settings()) as controller:
            return await controller.show(vm, on=on)

    guest = run(work(), as_json=json)
    if json:
        put({"schema": "guest/1", **asdict(guest)})
    else:
        _table([guest])


@app.command()
def stop(
    context: typer.Context,
    vm: Annotated[str, typer.Argument(metavar="VM", help="The guest's name.")],
    on: On = None,
    force: Annotated[bool, typer.Option("--force", help="End its QEMU at once, like pulling the plug.")] = False,
    timeout: Annotated[str, typer.Option(help="How long the guest has to power off.")] = "30s",
) -> None:
    """Power a guest off (or end it) and remove what its host keeps of it."""

    async def work() -> None:
        from qmp_migrate.fleet.controller import Controller
        from qmp_migrate.vm.units import parse_time_ms

        options: Context = context.obj
        async with Controller.open(options.settings()) as controller:
            await controller.stop(vm, on=on, force=force, timeout=parse_time_ms(timeout) / 1000)

    run(work())
    say().print(f"[bold]{vm}[/] is stopped")


def _table(guests: list[Guest]) -> None:
    from rich.table import Table

    from qmp_migrate.vm.units import about_size

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("NAME", "HOST", "STATE", "MEMORY", "VCPUS", "PID", "UUID"):
        table.add_column(heading, justify="right" if heading in {"MEMORY", "VCPUS", "PID"} else "left")
    for guest in guests:
        state = f"{guest.state}, migration {guest.migration}" if guest.migration else guest.state
        table.add_row(
            guest.name,
            guest.host,
            state,
            about_size(guest.memory_bytes) if guest.memory_bytes else "-",
            str(guest.vcpus or "-"),
            str(guest.pid or "-"),
            guest.uuid or "-",
        )
    data().print(table)
