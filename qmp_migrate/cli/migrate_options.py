"""What can be asked of a migration on the command line: the options that ``check``, ``migrate`` and ``forecast`` share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from qmp_migrate.cli.commands import tune

if TYPE_CHECKING:
    from qmp_migrate.migration.model.request import MigrationRequest
    from qmp_migrate.settings import Settings

Vm = Annotated[str, typer.Argument(metavar="VM", help="The guest's name.")]
To = Annotated[str, typer.Option("--to", metavar="HOST", help="Where it goes.")]
From = Annotated[str | None, typer.Option("--from", metavar="HOST", help="Where it is, if two hosts have the name.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to standard output.")]
NoEncrypt = Annotated[bool, typer.Option("--no-encrypt", help="Send the guest's memory in the clear.")]
Mode = Annotated[
    str,
    typer.Option(
        metavar="MODE",
        help="live: the guest runs while its memory is copied. postcopy: it goes on at the destination before all of its "
        "memory is there. offline: it is suspended while its memory travels.",
    ),
]
DowntimeLimit = Annotated[
    str | None, typer.Option(metavar="TIME", help="Longest pause allowed, for example 300ms (the default).")
]
Bandwidth = Annotated[
    str | None, typer.Option(metavar="RATE", help="Rate limit, for example 1Gbit or 80MiB; default: none.")
]
Channels = Annotated[int, typer.Option(metavar="N", help="Connections that carry memory; more than one: multifd.")]
Compress = Annotated[
    str | None, typer.Option(metavar="METHOD", help="zstd or zlib (over several channels), or xbzrle.")
]
CopyStorage = Annotated[
    str | None,
    typer.Option(
        metavar="[HOW]",
        help="Copy the disks, too: full (the default; chains flattened), or top (over backing files that are there).",
    ),
]
SourceImages = Annotated[
    str, typer.Option(metavar="WHAT", help="What becomes of copied images at the source: keep, rename or remove.")
]
Guarded = Annotated[
    bool | None,
    typer.Option(
        "--guarded/--not-guarded",
        help="Hand over only past a stop at which the source's agent takes the guest back if this program dies.",
    ),
]

_CHOICES: Final = {
    "mode": ("live", "postcopy", "offline"),
    "compress": ("zstd", "zlib", "xbzrle"),
    "copy_storage": ("full", "top"),
    "source_images": ("keep", "rename", "remove"),
}

_STEERING: Final = (
    "policy",
    "allow_postcopy",
    "allow_stop",
    "max_throttle",
    "max_bandwidth",
    "switchover_bandwidth",
    "timeout",
)


def request_of(settings: Settings, given: Mapping[str, Any]) -> MigrationRequest:
    """Return what the options of a command ask for.

    Args:
        settings: What counts where an option is not given.
        given: The command's parameters by name, as they were parsed.

    Raises:
        UsageError, InvalidQuantity, InvalidName: One of them asks for what does not exist.
    """
    from qmp_migrate.errors import UsageError
    from qmp_migrate.migration.model.request import MigrationRequest
    from qmp_migrate.vm.units import parse_rate, parse_time_ms

    if given["source_images"] in {"rename", "remove"} and given["copy_storage"] is None:
        raise UsageError(
            f"--source-images {given['source_images']} means nothing where no disks are copied",
            hint="add --copy-storage, or leave it out",
        )
    rate = given["bandwidth"] if given["bandwidth"] is not None else settings.migration.bandwidth
    return MigrationRequest(
        given["vm"],
        given["to"],
        given["source"],
        downtime_limit_ms=parse_time_ms(given["downtime_limit"] or settings.migration.downtime_limit),
        bandwidth_bytes_per_s=parse_rate(rate) if rate is not None else 0,
        encrypt=not given["no_encrypt"],
        handover_by_agents=settings.migration.handover_by_agents,
        guarded=settings.migration.guarded if given["guarded"] is None else given["guarded"],
        channels=given["channels"],
        limits=settings.watchdog.limits,
        announce=settings.migration.announce,
        **{name: _one_of(name, given[name], known) for name, known in _CHOICES.items()},
        **tune.wanted(settings, **{name: given[name] for name in _STEERING}),
    )


def _one_of(name: str, value: str | None, known: tuple[str, ...]) -> Any:
    if value is not None and value not in known:
        from difflib import get_close_matches

        from qmp_migrate.errors import UsageError

        near = get_close_matches(value, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        flag = "--" + name.replace("_", "-")
        raise UsageError(f"{flag} {value} does not exist", hint=f"{hint}it is one of: {', '.join(known)}")
    return value
