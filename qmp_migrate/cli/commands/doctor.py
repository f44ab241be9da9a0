"""``qmp-migrate doctor``: is everything healthy, and is anything left behind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from qmp_migrate.cli.context import Context, data, fail, put, run, say
from qmp_migrate.errors import UsageError

if TYPE_CHECKING:
    from qmp_migrate.fleet.cleanup.leftovers import Leftovers
    from qmp_migrate.migration.preflight.rules import Check

_STYLES: Final = {"ours": "yellow", "maybe-only-copy": "bold red", "not-ours": "dim"}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(doctor)


def doctor(
    context: typer.Context,
    hosts: Annotated[list[str] | None, typer.Argument(metavar="[HOST]…", help="Which hosts; default: all.")] = None,
    leftovers: Annotated[
        bool, typer.Option("--leftovers", help="List what earlier migrations and crashes have left.")
    ] = False,
    remove: Annotated[
        bool, typer.Option("--remove", help="With --leftovers: take away what is ours and no guest's only copy.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON to standard output.")] = False,
) -> None:
    """Check the health of hosts and controller, or find leftovers. Without --remove it changes nothing on a host.

    Exit codes: 0 healthy, or nothing left; 1 something failed, or is left; 69 a host could not be asked.
    """
    if remove and not leftovers:
        fail(
            UsageError("--remove goes with --leftovers", hint="look first: qmp-migrate doctor --leftovers"),
            as_json=json,
        )
    code = run(_leftovers(context.obj, hosts or [], remove, json) if leftovers else _health(context.obj, hosts or [], json),
               as_json=json)  # fmt: skip
    if code:
        raise typer.Exit(code)


async def _health(options: Context, hosts: list[str], json: bool) -> int:
    from qmp_migrate.fleet import doctor as fleet_doctor
    from qmp_migrate.fleet.controller import Controller

    async with Controller.open(options.settings()) as controller:
        found = await fleet_doctor.examine(controller, hosts)
    if json:
        put({"schema": "doctor/1", "ok": not found.failed, "checks": [check.to_dict() for check in found.checks]})
    else:
        _print_checks(found.checks)
    return found.exit_code


def _print_checks(checks: list[Check]) -> None:
    from rich.text import Text

    from qmp_migrate.cli.render import check_lines

    console = data()
    for line in check_lines(checks)[:-1]:  # the last one is the verdict of a preflight
        console.print(line)
    counts = {status: sum(check.status == status for check in checks) for status in ("fail", "warn")}
    console.print(Text(f"{counts['fail']} failed, {counts['warn']} to look at.", style="bold"))


async def _leftovers(options: Context, hosts: list[str], remove: bool, json: bool) -> int:
    from qmp_migrate.fleet.cleanup import leftovers
    from qmp_migrate.fleet.controller import Controller

    async with Controller.open(options.settings()) as controller:
        found = await leftovers.find(controller, hosts)
        if remove:
            found = await leftovers.remove(controller, found)
    if json:
        put(found.to_dict())
    else:
        _show(found, removing=remove)
    return found.exit_code


def _show(found: Leftovers, *, removing: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    console = say()
    if found.findings:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in ("HOST", "GUEST", "WHAT", "DONE" if removing else "WITH --remove", "WHERE", "WHY"):
            table.add_column(heading)
        for finding in found.findings:
            where = finding.path or (f"process {finding.pid}" if finding.pid else "-")
            words: list[Any] = [finding.host, finding.vm or "-", finding.kind.value, finding.action, where, finding.why]
            table.add_row(*(Text(word) for word in words), style=_STYLES[finding.verdict])
        data().print(table)
    for finding in found.findings:
        if finding.left and finding.hint:
            console.print(Text(f"{finding.host}: {finding.vm or finding.path}: {finding.hint}"))
    for host, guests in found.busy.items():
        for vm, who in guests.items():
            console.print(Text(f"{host}: {vm} is busy and was skipped: {who}"))
    for host, problem in found.unreachable.items():
        console.print(Text(f"warning: {host} could not be asked: {problem}"))
    left = sum(finding.left for finding in found.findings)
    if left:
        more = "" if removing else "; what may be taken away goes with: qmp-migrate doctor --leftovers --remove"
        console.print(Text(f"{left} left{more}", style="bold"))
    elif not found.unreachable:
        console.print(Text("nothing left", style="bold"))
