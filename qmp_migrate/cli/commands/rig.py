"""``qmp-migrate rig``: a lab of several hosts on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qmp_migrate.cli.context import put, run, say
from qmp_migrate.rig.guest.images import GuestKind

if TYPE_CHECKING:
    from qmp_migrate.rig.lab import RigStatus
    from qmp_migrate.rig.state import RigState

app = typer.Typer(help="A lab on this machine: hosts, a broker, agents, a test guest.", no_args_is_help=True)

Dir = Annotated[
    Path | None,
    typer.Option("--dir", metavar="DIR", help="Where it is; default: in $XDG_RUNTIME_DIR or /tmp.", file_okay=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to standard output.")]


def _directory(given: Path | None) -> Path:
    from qmp_migrate.rig.addresses import default_directory

    return given if given is not None else default_directory()


@app.command()
def up(
    directory: Dir = None,
    hosts: Annotated[int, typer.Option(min=1, max=26, help="How many hosts.")] = 2,
    guest: Annotated[
        GuestKind, typer.Option(help="Test guest of guest.toml: Linux, or one without an operating system.")
    ] = "linux",
    hosts_as_vms: Annotated[
        bool,
        typer.Option("--hosts-as-vms", help="Each host a virtual machine with a kernel of its own (experimental)."),
    ] = False,
    own_directory: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", help="Each host has a directory of its own there, empty at first (root only)."),
    ] = None,
    agents: Annotated[
        bool, typer.Option("--agents/--no-agents", help="With --hosts-as-vms: start an agent in each host.")
    ] = True,
    json: Json = False,
) -> None:
    """Bring the lab up and write its settings and its test guests' specs."""

    async def work() -> RigState:
        from qmp_migrate.errors import UsageError
        from qmp_migrate.rig import lab
        from qmp_migrate.rig.vm_hosts import machines

        if hosts_as_vms and own_directory:
            raise UsageError("hosts that are machines share no directory", hint="leave --own-directory out")
        if hosts_as_vms:
            return await machines.up(_directory(directory), hosts, guest=guest, agents=agents)
        if not agents:
            raise UsageError("only hosts that are machines can be without an agent", hint="add --hosts-as-vms")
        return await lab.up(_directory(directory), hosts, guest=guest, own_directories=own_directory or ())

    state = run(work(), as_json=json)
    if json:
        put(
            {
                "schema": "rig/1",
                "directory": str(state.directory),
                "settings": str(state.settings_file),
                "guest": str(state.guest_file),
                "bare_guest": str(state.bare_guest_file),
                "broker": state.broker_url,
                "hosts": [host.name for host in state.hosts],
                "warnings": list(state.warnings),
            }
        )
        return
    console = say()
    for warning in state.warnings:
        console.print(f"[yellow]warning:[/] {warning}")
    console.print(f"[bold]rig is up[/] in {state.directory}: hosts {', '.join(host.name for host in state.hosts)}")
    console.print(f"try:  export QMP_MIGRATE_CONFIG={state.settings_file}")
    console.print(f"      qmp-migrate vm start {state.guest_file} --on a")
    console.print("      qmp-migrate migrate web1 --to b")
    console.print("      qmp-migrate rig down" + (f" --dir {directory}" if directory is not None else ""))


@app.command()
def down(directory: Dir = None, json: Json = False) -> None:
    """Take the lab down: its guests, its processes, its files."""

    async def work() -> tuple[str, ...] | None:
        from qmp_migrate.rig import lab

        return await lab.down(_directory(directory))

    ended = run(work(), as_json=json)
    if json:
        put({"schema": "rig-down/1", "ended": list(ended) if ended is not None else None})
    elif ended is None:
        say().print(f"there is no rig in {_directory(directory)}")
    else:
        say().print(f"rig is down: {', '.join(ended) or 'nothing was running any more'}")


@app.command()
def status(directory: Dir = None, json: Json = False) -> None:
    """Tell which parts of the lab are alive."""

    async def work() -> RigStatus | None:
        from qmp_migrate.rig import lab

        return await lab.status(_directory(directory))

    found = run(work(), as_json=json)
    if found is None:
        if json:
            put({"schema": "rig-status/1", "directory": str(_directory(directory)), "parts": {}, "guests": []})
        say().print(f"there is no rig in {_directory(directory)}")
        raise typer.Exit(1)
    machines = found.machines.items()
    if json:
        put(
            {
                "schema": "rig-status/1",
                "directory": str(found.state.directory),
                "settings": str(found.state.settings_file),
                "parts": found.alive,
                "guests": sorted(found.guests),
                **({"hosts": {n: {"power": h.power, "agent": h.agent} for n, h in machines}} if machines else {}),
            }
        )
    else:
        typer.echo(f"rig in {found.state.directory}")
        for name, alive in found.alive.items():
            if not name.startswith("machine-"):
                typer.echo(f"  {name:<10} {'alive' if alive else 'DEAD'}")
        for name, host in machines:
            agent = "" if host.power != "on" else ", agent serves" if host.agent else ", no agent yet"
            typer.echo(f"  host {name:<5} {host.power}{agent}")
        for name in sorted(found.guests):
            typer.echo(f"  guest {name} pid {found.guests[name].pid}")
    # A host without power is what was asked for, most likely.
    if not all(alive for name, alive in found.alive.items() if not name.startswith("machine-")):
        raise typer.Exit(1)


@app.command()
def power(
    host: Annotated[str, typer.Argument(metavar="HOST", help="The host.")],
    action: Annotated[
        str,
        typer.Argument(
            metavar="off|on|reset|hang|resume",
            help="off and hang come without warning; on and reset wait until it answers on SSH.",
        ),
    ],
    silent: Annotated[
        bool, typer.Option("--silent", help="With off: connections to the host hang instead of being refused.")
    ] = False,
    directory: Dir = None,
) -> None:
    """Switch a host that is a machine off or on, reset it, let it hang or go on."""

    async def work() -> None:
        from qmp_migrate.rig.vm_hosts.power import act

        await act(_directory(directory), host, action, silent=silent)

    run(work())
    say().print(f"host {host}: {action}")


@app.command()
def link(
    host: Annotated[str, typer.Argument(metavar="HOST", help="The host.")],
    state: Annotated[str, typer.Argument(metavar="up|down", help="Whether its cables are plugged in.")],
    network: Annotated[
        str, typer.Option(metavar="control|hosts|both", help="SSH and the broker; guests' memory and disks; or both.")
    ] = "both",
    directory: Dir = None,
) -> None:
    """Pull the network cables of a host that is a machine, or plug them in."""

    async def work() -> None:
        from qmp_migrate.rig.vm_hosts import power

        await power.link(_directory(directory), host, state, network)

    run(work())
    say().print(f"host {host}: {network} {state}")


@app.command()
def demo(
    directory: Dir = None,
    no_encrypt: Annotated[bool, typer.Option("--no-encrypt", help="Send the guest's memory in the clear.")] = False,
) -> None:
    """Show one live migration from end to end in a lab of its own, and leave nothing behind."""

    async def work() -> bool:
        from qmp_migrate.cli.commands.demo import show

        return await show(directory, encrypt=not no_encrypt)

    if not run(work()):
        raise typer.Exit(1)
