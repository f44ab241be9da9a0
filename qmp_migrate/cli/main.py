"""``qmp-migrate``: live migration of plain QEMU guests, without libvirt."""

from __future__ import annotations

import atexit
import gc
from pathlib import Path
from typing import Annotated

import typer

from qmp_migrate.cli.commands import (
    adopt,
    broker,
    doctor,
    events,
    forecast,
    history,
    home_assistant,
    host,
    metrics,
    migrate,
    notify,
    rig,
    save,
    tune,
    vm,
)
from qmp_migrate.cli.context import Context, fail, set_up_logging
from qmp_migrate.errors import QmpMigrateError

app = typer.Typer(
    name="qmp-migrate",
    help="Move running QEMU guests between hosts over QMP and SSH. No libvirt.",
    no_args_is_help=True,
    rich_markup_mode=None,  # boxes squeeze the text of many options into a third of a terminal of 80 columns
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 done, 1 failed, 2 usage, 3 preflight refused, 4 failed but safe at the source, 5 unknown, "
    "6 cancelled, 69 unreachable, 75 busy, 78 settings, 130 interrupted.",
)
app.add_typer(rig.app, name="rig")
app.add_typer(vm.app, name="vm")
app.add_typer(host.app, name="host")
app.add_typer(broker.app, name="broker")
migrate.register(app)
tune.register(app)
forecast.register(app)
history.register(app)
save.register(app)
adopt.register(app)
events.register(app)
metrics.register(app)
notify.register(app)
home_assistant.register(app)
doctor.register(app)


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        typer.echo(f"qmp-migrate {version('qmp-migrate')}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="Settings file.", envvar="QMP_MIGRATE_CONFIG", dir_okay=False)
    ] = None,
    verbose: Annotated[int, typer.Option("--verbose", "-v", count=True, help="Tell more; twice: everything.")] = 0,
    _show_version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Take the options that stand before the command."""
    context.obj = Context(config=config, verbose=verbose)
    if context.invoked_subcommand is not None:
        set_up_logging(verbose)


def main() -> None:
    """Run the command line; the entry point of the distribution."""
    atexit.register(gc.freeze)  # Python's last collection takes 0.1 s and gives back what the system takes anyway
    try:
        app()
    except QmpMigrateError as error:
        fail(error)
