"""``qmp-migrate adopt``: a guest that somebody else has started becomes one of ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from qmp_migrate.cli.context import Context, data, put, run, say
from qmp_migrate.errors import AdoptionRefused, GuestUnknown, UsageError

if TYPE_CHECKING:
    from qmp_migrate.fleet.adoption.adopt import Adoption
    from qmp_migrate.fleet.adoption.unmanaged import Foreign


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(adopt)


def adopt(
    context: typer.Context,
    on: Annotated[str, typer.Option("--on", metavar="HOST", help="Host that it runs on.")],
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="[PID|SOCKET]", help="Its process, or the path of its QMP monitor. None: list what is there."
        ),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="What to call it; default: its -name.")] = None,
    release: Annotated[
        str | None, typer.Option("--release", metavar="VM", help="Forget an adopted guest again; it runs on.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Also where libvirt has started it.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Look only.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Take in a guest that something else has started: then check, migrate and all else work with it.

    Nothing about the guest is changed: its command line is read from /proc, its monitors are tried for a moment, and a
    directory under RUN_DIR says where they are.
    """
    options: Context = context.obj
    if release is not None:
        if target is not None:
            raise typer.BadParameter("--release names an adopted guest; leave PID or SOCKET out")
        run(_release(options, release, on), as_json=json)
        if json:
            put({"schema": "adoption/1", "vm": release, "host": on, "released": True})
        else:
            say().print(f"[bold]{release}[/] on {on} is forgotten; it runs on")
        return
    if target is None:
        found = run(_list(options, on), as_json=json)
        _show_list(found, on, json)
        return
    adoption = run(_adopt(options, target, on, name, force, dry_run), as_json=json)
    _show(adoption, on, json, dry_run)
    if adoption.refused:
        raise typer.Exit(AdoptionRefused.exit_code)


async def _list(options: Context, on: str) -> list[Foreign]:
    from qmp_migrate.fleet.adoption.unmanaged import list_qemus
    from qmp_migrate.fleet.controller import Controller

    async with Controller.open(options.settings()) as controller:
        return await list_qemus(controller.side(on, "any").host)


async def _adopt(options: Context, target: str, on: str, name: str | None, force: bool, dry_run: bool) -> Adoption:
    from qmp_migrate.fleet.adoption import adopt as adoption_adopt
    from qmp_migrate.fleet.controller import Controller

    async with Controller.open(options.settings()) as controller:
        side = controller.side(on, "any")
        adoption = await adoption_adopt.look(side, target, name=name, force=force)
        if not dry_run and not adoption.refused:
            await adoption_adopt.adopt(side, adoption)
        return adoption


async def _release(options: Context, vm: str, on: str) -> None:
    from qmp_migrate.fleet.adoption import adopt as adoption_adopt
    from qmp_migrate.fleet.controller import Controller
    from qmp_migrate.vm.names import validate_name

    async with Controller.open(options.settings()) as controller:
        side = controller.side(on, validate_name(vm, "guest name"))
        await side.host.connect()
        answer = await adoption_adopt.release(side)
    if answer == "absent":
        raise GuestUnknown(
            f"there is no guest named {vm!r} on {on}", hint=f"see: qmp-migrate vm list --on {on}", host=on
        )
    if answer == "ours":
        raise UsageError(f"{vm} was not adopted: its monitors are its own", hint="qmp-migrate vm stop ends it", host=on)


def _show(adoption: Adoption, on: str, json: bool, dry_run: bool) -> None:
    if json:
        put(_document(adoption, on))
        return
    from qmp_migrate.cli.render import check_lines

    for line in check_lines(adoption.checks):
        data().print(line)
    if adoption.already:
        say().print(f"[bold]{adoption.name}[/] on {on} is one of ours already: nothing to do")
    elif adoption.done:
        say().print(f"[bold]{adoption.name}[/] on {on} is adopted. Next: qmp-migrate check {adoption.name} --to HOST")
    elif adoption.refused:
        say().print("nothing was touched")
    elif dry_run:
        say().print("it can be adopted; nothing was touched (--dry-run)")


def _document(adoption: Adoption, on: str) -> dict[str, Any]:
    return {
        "schema": "adoption/1",
        "vm": adoption.name,
        "host": on,
        "pid": adoption.foreign.process.pid,
        "adopted": adoption.done or adoption.already,
        "already": adoption.already,
        "monitors": adoption.monitors,
        "checks": [check.to_dict() for check in adoption.checks],
    }


def _show_list(found: list[Foreign], on: str, json: bool) -> None:
    if json:
        qemus = [
            {
                "pid": entry.process.pid,
                "uid": entry.uid,
                "name": entry.command.name,
                "monitors": entry.monitor_paths,
                "unit": entry.unit or None,
                "argv": list(entry.argv),
            }
            for entry in found
        ]
        put({"schema": "qemus/1", "host": on, "qemus": qemus})
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("PID", "UID", "NAME", "QMP MONITORS", "UNIT"):
        table.add_column(heading)
    for entry in found:
        monitors = " ".join(entry.monitor_paths) or "-"
        table.add_row(str(entry.process.pid), str(entry.uid), entry.command.name or "-", monitors, entry.unit or "-")
    data().print(table)
