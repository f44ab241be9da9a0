"""``qmp-migrate metrics``: what came of migrations, for Prometheus."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer

from qmp_migrate.cli.context import Context, run, say


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(metrics)


def metrics(
    context: typer.Context,
    textfile: Annotated[
        Path | None, typer.Option("--textfile", metavar="PATH", help="Write them there, for node_exporter.")
    ] = None,
    listen: Annotated[
        str | None, typer.Option("--listen", metavar="ADDRESS", help="Serve them, for example on 127.0.0.1:9178.")
    ] = None,
) -> None:
    """Print the metrics of this controller's journal, write them into a file, or serve them."""
    options: Context = context.obj

    async def work() -> None:
        from qmp_migrate.exposition import is_loopback, parse_listen, serving, write_textfile
        from qmp_migrate.fleet.integrations.prometheus import page
        from qmp_migrate.migration.journal.store import Journal

        settings = options.settings()
        place = parse_listen(listen) if listen is not None else None
        async with await Journal.open(settings.controller.state) as journal:
            content = await page(journal)
            if textfile is not None:
                write_textfile(textfile, content)
            if place is None:
                if textfile is None:
                    sys.stdout.write(content.decode())
                return
            current = [content]
            async with serving(*place, lambda: current[0]):
                if not is_loopback(place[0]):
                    say().print(f"[yellow]warning:[/] whoever reaches {place[0]} can read the metrics")
                say().print(f"serving http://{place[0]}:{place[1]}/metrics (Ctrl-C ends)", style="dim")
                while True:
                    await asyncio.sleep(5)
                    current[0] = await page(journal)

    run(work())
