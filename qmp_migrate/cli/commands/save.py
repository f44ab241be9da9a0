"""``save`` and ``restore``: a guest into a file, and out of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from qmp_migrate.cli.context import Context, put, run, say, tell
from qmp_migrate.cli.signals import end_as_by_ctrl_c, go_on_without_terminal
from qmp_migrate.errors import QmpMigrateError, UsageError

if TYPE_CHECKING:
    from qmp_migrate.migration.savefile.restore_request import RestoreResult
    from qmp_migrate.migration.savefile.save_request import SaveResult

_R = TypeVar("_R")

Json = Annotated[bool, typer.Option("--json", help="Print JSON to standard output.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (save, restore):
        app.command()(command)


def save(
    context: typer.Context,
    vm: Annotated[str, typer.Argument(metavar="VM", help="The guest's name.")],
    file: Annotated[str, typer.Argument(metavar="FILE", help="The file: an absolute path on the guest's host.")],
    on: Annotated[str | None, typer.Option("--on", metavar="HOST", help="Where it is, if two hosts have it.")] = None,
    format: Annotated[
        str,
        typer.Option(
            metavar="FORMAT",
            help="mapped-ram: RAM at fixed places, written by several threads (QEMU 9.0 and later). stream: every QEMU "
            "can read it. auto: the first where this QEMU has it.",
        ),
    ] = "auto",
    channels: Annotated[
        int | None, typer.Option(metavar="N", help="Threads that write mapped-ram; 0: without multifd. Default: 2.")
    ] = None,
    json: Json = False,
) -> None:
    """Save a guest's memory to a file on its host, and end its QEMU. Its disks are not in the file."""

    async def work() -> SaveResult:
        from qmp_migrate.fleet.controller import Controller

        if format not in {"auto", "mapped-ram", "stream"}:
            raise UsageError(f"--format {format} does not exist", hint="it is one of: auto, mapped-ram, stream")
        options: Context = context.obj
        async with Controller.open(options.settings()) as controller:
            return await controller.save(
                vm,
                file,
                on=on,
                format=format,  # type: ignore[arg-type]  # checked above
                channels=channels,
                tell=_tell,
            )

    result = _run(work, json)
    if json:
        put(result.to_dict())
        return
    from qmp_migrate.vm.units import about_size

    _warnings(result.warnings)
    say().print(
        f"[bold]{result.vm}[/] is saved in {result.file} on {result.host}: {about_size(result.stored_bytes)} on the disk, "
        f"{result.total_ms / 1000:.1f} s; its QEMU has ended. Back again: qmp-migrate restore {result.file} "
        f"--on {result.host}"
    )


def restore(
    context: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE", help="The file: an absolute path on that host.")],
    on: Annotated[str, typer.Option("--on", metavar="HOST", help="Host that the guest is to be on.")],
    paused: Annotated[bool, typer.Option("--paused", help="Do not let it go on.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also over disks that have changed since: they may be damaged by it.")
    ] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the file, under another name.")] = False,
    json: Json = False,
) -> None:
    """Restore a guest from a file that `save` wrote. Afterwards the file is gone: it must not be restored twice."""

    async def work() -> RestoreResult:
        from qmp_migrate.fleet.controller import Controller

        options: Context = context.obj
        async with Controller.open(options.settings()) as controller:
            return await controller.restore_file(file, on=on, paused=paused, force=force, keep=keep, tell=_tell)

    result = _run(work, json)
    if json:
        put(result.to_dict())
        return
    _warnings(result.warnings)
    kept = f"; the file is kept as {result.kept}" if result.kept else ""
    say().print(
        f"[bold]{result.vm}[/] is {result.state} on {result.host} (checksum {result.verify_ms / 1000:.1f} s, "
        f"reading {result.load_ms / 1000:.1f} s, {result.total_ms / 1000:.1f} s in all){kept}"
    )


def _tell(line: str) -> None:
    say().print(line, markup=False)


def _warnings(warnings: list[str]) -> None:
    for line in warnings:
        say().print("[yellow]warning:[/]", end=" ")
        say().print(line, markup=False)


def _run(work: Callable[[], Coroutine[Any, Any, _R]], json: bool) -> _R:
    """Run to the end; an error ends the process with its exit code, with ``--json`` after the result document."""

    async def call() -> _R:
        go_on_without_terminal()
        end_as_by_ctrl_c()
        try:
            return await work()
        except QmpMigrateError as error:
            if json and error.result is not None:
                put(error.result.to_dict())
                tell(error)
                sys.exit(error.exit_code)
            raise

    return run(call(), as_json=json)
