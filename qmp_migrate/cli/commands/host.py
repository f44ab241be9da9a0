"""``qmp-migrate host``: make a machine one of our hosts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qmp_migrate.cli.context import Context, data, put, run, say

if TYPE_CHECKING:
    from qmp_migrate.fleet.provisioning.plan import Step, Wish

app = typer.Typer(
    name="host",
    help="Make a machine a host: user, key, run directory, agent.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
MARKS = {
    "ok": r"[green]\[ OK ][/]",
    "change": r"[cyan]\[ DO ][/]",
    "warn": r"[yellow]\[WARN][/]",
    "fail": r"[bold red]\[FAIL][/]",
}
REFUSED = 3


@app.callback()
def _root() -> None:
    """Take the options that stand before the command."""


@app.command()
def setup(
    context: typer.Context,
    host: Annotated[str, typer.Argument(metavar="HOST", help="Its name in the settings.")],
    login: Annotated[
        str, typer.Option("--login", metavar="USER", help="Root, or who may use sudo without asking.")
    ] = "root",
    login_key: Annotated[
        Path | None,
        typer.Option("--login-key", metavar="FILE", help="Private key of that user; default: the SSH agent, ~/.ssh."),
    ] = None,
    package: Annotated[
        Path | None,
        typer.Option("--package", metavar="FILE", help="The .deb of `make dist`; none: what is there stays."),
    ] = None,
    broker_dir: Annotated[
        Path | None,
        typer.Option("--broker-dir", metavar="DIR", help="Of `broker init`: the agent's identity is there."),
    ] = None,
    mqtt: Annotated[
        str | None, typer.Option("--mqtt", metavar="URL", help="The broker as the host sees it; default: [mqtt].")
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option("--metrics", metavar="ADDRESS", help="The agent serves metrics there, e.g. 127.0.0.1:9177."),
    ] = None,
    key: Annotated[
        Path | None, typer.Option("--key", metavar="FILE", help="Public key that may log in; default: identity_file's.")
    ] = None,
    agent: Annotated[bool, typer.Option(help="With an agent.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Look, and tell what would be done.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Make a machine ready for guests, install its agent and give it its identity, over SSH.

    It may be run again at any time: what is as it should be is left alone, and a new package or a renewed certificate
    restarts the agent and nothing else. Guests are never touched.
    """
    options: Context = context.obj

    async def work() -> tuple[list[Step], bool]:
        from qmp_migrate.fleet.provisioning.apply import read_package
        from qmp_migrate.fleet.provisioning.host_spec import Asked, make_wish

        asked = Asked(
            package=read_package(package) if package else None,
            broker_directory=broker_dir,
            key=key,
            url=mqtt,
            metrics=metrics,
            agent=agent,
        )
        return await _set_up(options, make_wish(options.settings(), host, asked), login, login_key, dry_run, quiet=json)

    steps, touched = run(work(), as_json=json)
    failed = any(step.state == "fail" for step in steps)
    if json:
        put(
            {
                "schema": "host.setup/1",
                "host": host,
                "dry_run": dry_run,
                "changed": touched,
                "ready": not failed and not any(step.state == "change" for step in steps),
                "steps": [step.to_dict() for step in steps],
            }
        )
    elif failed and not touched:
        say().print("nothing was touched")
    elif dry_run:
        what = sum(step.state == "change" for step in steps)
        say().print(f"{what} of {len(steps)} steps would change something; nothing was touched (--dry-run)")
    elif not failed:
        say().print(f"[bold]{host}[/] is ready" + ("" if touched else ": nothing was to be done"))
    if failed:
        raise typer.Exit(REFUSED if not touched else 1)


async def _set_up(
    options: Context, wish: Wish, login: str, login_key: Path | None, dry_run: bool, *, quiet: bool
) -> tuple[list[Step], bool]:
    """Return the steps, as they are in the end, and whether anything was done."""
    import dataclasses

    from qmp_migrate.fleet.inventory import address_of
    from qmp_migrate.fleet.provisioning.apply import Root, look, take
    from qmp_migrate.fleet.provisioning.plan import plan
    from qmp_migrate.hosts import make_host

    address = address_of(wish.host, options.settings().hosts[wish.host])
    there = make_host(
        dataclasses.replace(address, user=login, identity_file=login_key.expanduser() if login_key else None)
    )

    def tell(step: Step, how: str) -> None:
        if quiet:
            return
        if how == "begin":
            say().print(f"       {step.text} …", markup=False)
        elif how != "done":
            say().print(f"       {step.text}: {how}", markup=False)

    try:
        await there.connect()
        root = Root(there, sudo=login != "root")
        steps = plan(wish, await look(root, wish))
        if not quiet:
            for step in steps:
                _show(step)
        todo = [step for step in steps if step.state == "change"]
        if dry_run or not todo or any(step.state == "fail" for step in steps):
            return steps, False
        steps = await take(root, wish, steps, tell)
        if not quiet:
            changed = {(step.id, step.file and step.file.path) for step in todo}
            for step in steps:
                if (step.id, step.file and step.file.path) in changed or step.state in {"warn", "fail"}:
                    _show(step)
        return steps, True
    finally:
        await there.close()


def _show(step: Step) -> None:
    data().print(MARKS[step.state], end=" ")
    data().print(f"{step.id}: {step.text}", markup=False)
    if step.hint and step.state != "ok":
        data().print(f"       hint: {step.hint}", markup=False)
