"""What every command shares: its options, where output goes, and how errors are told."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from qmp_migrate.errors import QmpMigrateError

if TYPE_CHECKING:
    from rich.console import Console

    from qmp_migrate.settings import Settings

_T = TypeVar("_T")


@dataclass(slots=True)
class Context:
    """The options before the command.

    Attributes:
        config: ``--config``.
        verbose: How often ``-v`` was given.
    """

    config: Path | None = None
    verbose: int = 0

    def settings(self) -> Settings:
        """Load the settings. Raises `ConfigError`."""
        from qmp_migrate.settings import load

        return load(self.config)


def say() -> Console:
    """Return the console for people: standard error. Obeys ``NO_COLOR`` and draws no live bars in pipes."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def data() -> Console:
    """Return the console for data: standard output. Wide where it is no terminal: a table in a pipe is not folded."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 240)


def put(document: Any) -> None:
    """Print one JSON document to standard output."""
    json.dump(document, sys.stdout, indent=2 if sys.stdout.isatty() else None, ensure_ascii=False)
    sys.stdout.write("\n")
    sys.stdout.flush()


def set_up_logging(verbose: int) -> None:
    """Send our log to standard error: warnings, with ``-v`` the story, with ``-vv`` everything."""
    import structlog

    level = {0: logging.WARNING, 1: logging.INFO}.get(verbose, logging.DEBUG)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty() and "NO_COLOR" not in os.environ),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def fail(error: QmpMigrateError, *, as_json: bool = False) -> NoReturn:
    """Tell an error (message, host, QEMU's own words, hint) and exit with its code."""
    if as_json:
        put({"schema": "error/1", "error": error.to_dict()})
    tell(error)
    sys.exit(error.exit_code)


def tell(error: QmpMigrateError) -> None:
    """Tell an error to a person."""
    from rich.markup import escape
    from rich.text import Text

    console = say()
    console.print(f"[bold red]error:[/] {escape(str(error))}")
    for failure in getattr(error, "failures", ())[1:]:
        console.print(Text(f"       {failure}"))
    stderr = getattr(error, "stderr", "")
    if stderr:
        for line in stderr.strip().splitlines()[-15:]:
            console.print(Text(f"     | {line}", style="dim"))
    if error.hint:
        console.print(f"[bold]hint:[/]  {escape(error.hint)}")


def run(work: Coroutine[Any, Any, _T], *, as_json: bool = False) -> _T:
    """Run a command's coroutine to its end; errors of ours end the process with their exit code."""
    try:
        return asyncio.run(work)
    except QmpMigrateError as error:
        fail(error, as_json=as_json)
    except (KeyboardInterrupt, asyncio.CancelledError):
        if as_json:
            told = {"code": "interrupted", "message": "interrupted", "hint": "see: qmp-migrate status", "host": None}
            put({"schema": "error/1", "error": told})
        say().print("interrupted")
        sys.exit(130)
