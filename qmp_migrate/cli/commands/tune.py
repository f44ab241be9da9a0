"""How far a policy may go: options of ``migrate``, ``check`` and ``forecast``; and ``tune``, which changes it on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from qmp_migrate.cli.context import Context, put, run, say

if TYPE_CHECKING:
    from qmp_migrate.settings import Settings

Policy = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="What is done about a guest that dirties memory faster than the link carries it: gentle, default or finish "
        "(or what others do: proxmox, nova, ovirt, ganeti, kubevirt).",
    ),
]
AllowPostcopy = Annotated[
    bool | None,
    typer.Option(
        "--allow-postcopy/--no-postcopy", help="May the policy turn to post-copy? Default: as the policy says."
    ),
]
AllowStop = Annotated[
    bool | None,
    typer.Option(
        "--allow-stop/--no-stop",
        help="May the policy stop the guest for longer than the downtime limit? Default: as the policy says.",
    ),
]
MaxThrottle = Annotated[
    str | None,
    typer.Option(
        metavar="PERCENT", help="How much the policy may slow the guest down, 0% to 99%; default: as it says."
    ),
]
MaxBandwidth = Annotated[
    str | None, typer.Option(metavar="RATE", help="Up to where the policy may raise --bandwidth; default: not at all.")
]
SwitchoverBandwidth = Annotated[
    str | None,
    typer.Option(
        metavar="RATE", help="What the link carries while the guest stands still, where --bandwidth is less (QEMU 8.2)."
    ),
]
Timeout = Annotated[
    str | None,
    typer.Option(
        metavar="TIME", help="After this time post-copy or a stop, where allowed; else it is given up. Default: never."
    ),
]


def wanted(
    settings: Settings,
    *,
    policy: str | None,
    allow_postcopy: bool | None,
    allow_stop: bool | None,
    max_throttle: str | None,
    max_bandwidth: str | None,
    switchover_bandwidth: str | None,
    timeout: str | None,
) -> dict[str, Any]:
    """Return the fields of a request that these options mean.

    Raises:
        UsageError, InvalidQuantity: One of them asks for what does not exist.
        ConfigError: The settings name a policy that does not exist.
    """
    from qmp_migrate.vm.units import parse_rate, parse_time_ms

    return {
        "policy": policy or _of_settings(settings),
        "allow_postcopy": allow_postcopy,
        "allow_stop": allow_stop,
        "max_throttle_percent": _percent("--max-throttle", max_throttle) if max_throttle is not None else None,
        "max_bandwidth_bytes_per_s": parse_rate(max_bandwidth) if max_bandwidth is not None else None,
        "switchover_bandwidth_bytes_per_s": parse_rate(switchover_bandwidth) if switchover_bandwidth is not None else 0,
        "timeout_ms": parse_time_ms(timeout) if timeout is not None else 0,
    }


def _of_settings(settings: Settings) -> str:
    """Return the policy of the settings. They cannot judge it themselves: they know nothing of migrations."""
    from qmp_migrate.errors import ConfigError, UsageError
    from qmp_migrate.migration.convergence import policies

    try:
        return policies.find(settings.migration.policy).name
    except UsageError as error:
        raise ConfigError(f"[migration] policy in the settings: {error}", hint=error.hint) from None


def _percent(flag: str, text: str) -> int:
    from qmp_migrate.errors import InvalidQuantity

    number = text.strip().removesuffix("%").strip()
    if not (number.isascii() and number.isdigit()):
        raise InvalidQuantity(f"{flag} {text} is no percentage", hint=f"for example {flag} 30%")
    return int(number)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(tune)


def tune(
    context: typer.Context,
    migration: Annotated[str, typer.Argument(metavar="ID", help="A migration's id, or a unique beginning of it.")],
    bandwidth: Annotated[str | None, typer.Option(metavar="RATE", help="The rate limit from now on.")] = None,
    downtime_limit: Annotated[str | None, typer.Option(metavar="TIME", help="The longest pause allowed.")] = None,
    throttle: Annotated[
        str | None, typer.Option(metavar="PERCENT", help="Slow the guest down by so much; 0%: no longer.")
    ] = None,
    policy: Annotated[str | None, typer.Option(metavar="NAME", help="Another policy from now on.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON to standard output.")] = False,
) -> None:
    """Retune a migration while memory is copied.

    Also one of another process. Waits until it is in force.
    """

    async def work() -> dict[str, Any]:
        from qmp_migrate.fleet.controller import Controller
        from qmp_migrate.vm.units import parse_rate, parse_time_ms

        options: Context = context.obj
        changes = {
            "bandwidth_bytes_per_s": parse_rate(bandwidth) if bandwidth is not None else None,
            "downtime_limit_ms": parse_time_ms(downtime_limit) if downtime_limit is not None else None,
            "max_throttle_percent": _percent("--throttle", throttle) if throttle is not None else None,
            "policy": policy,
        }
        async with Controller.open(options.settings()) as controller:
            return await controller.tune(migration, **changes)

    in_force = run(work(), as_json=json)
    if json:
        put({"schema": "tuned/1", "in_force": in_force})
    else:
        from qmp_migrate.migration.lifecycle.tuning import in_words

        say().print(f"in force: {in_words(in_force)}")
