"""``qmp-hostagent``: the command line of the agent. Thin: options in, service on, exit code out."""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from qmp_migrate.errors import QmpMigrateError

if TYPE_CHECKING:
    from hostagent.app.service import AgentConfig

ENV: Final = "QMP_HOSTAGENT_"
GUARDIAN_LIMIT_MIN_MS: Final = 2000
DIRTY_RATE_MIN_S: Final = 10

app = typer.Typer(
    name="qmp-hostagent",
    help="The agent of one host: tells the MQTT bus about the host and its guests, and takes a guest back whose "
    "controller is gone in a guarded switchover. Changes nothing else.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        typer.echo(f"qmp-hostagent {version('qmp-migrate')}")
        raise typer.Exit


@app.callback()
def _commands(
    _show_version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Take what stands before the command."""


def _variable(name: str) -> str:
    return f"{ENV}{name}"


@app.command()
def run(
    host: Annotated[str, typer.Option(envvar=_variable("HOST"), help="Name of this host on the bus.")],
    mqtt: Annotated[
        str, typer.Option(envvar=_variable("MQTT"), help="Broker: mqtt://HOST:PORT, mqtts://…, ws://…, wss://….")
    ],
    run_dir: Annotated[
        Path | None,
        typer.Option(envvar=_variable("RUN_DIR"), help="Guests' directories. [default: /run/qmp-migrate]"),
    ] = None,
    root: Annotated[
        str, typer.Option(envvar=_variable("ROOT"), help="First levels of every topic.")
    ] = "qmp-migrate/v1",
    interval: Annotated[
        str, typer.Option(envvar=_variable("INTERVAL"), help="Time between load reports, for example 5s.")
    ] = "5s",
    guardian_limit: Annotated[
        str,
        typer.Option(
            envvar=_variable("GUARDIAN_LIMIT"),
            help="A controller without a sign of life for this long is gone: a guest that it holds in pre-switchover "
            "runs on here. At least 2s; 0 turns it off.",
        ),
    ] = "3s",
    qemu: Annotated[
        list[str] | None,
        typer.Option(envvar=_variable("QEMU"), help="QEMU binary to tell about; repeatable. [default: from PATH]"),
    ] = None,
    foreign: Annotated[
        bool,
        typer.Option(envvar=_variable("FOREIGN"), help="Tell of QEMUs, too, that something else has started."),
    ] = True,
    dirty_rate: Annotated[
        str,
        typer.Option(
            envvar=_variable("DIRTY_RATE"), help="Sample each guest's dirty rate this often, at least 10s; 0: no."
        ),
    ] = "0",
    metrics: Annotated[
        str | None,
        typer.Option(
            envvar=_variable("METRICS"), metavar="ADDRESS", help="Serve metrics for Prometheus, e.g. 127.0.0.1:9177."
        ),
    ] = None,
    metrics_textfile: Annotated[
        Path | None,
        typer.Option(envvar=_variable("METRICS_TEXTFILE"), help="Write metrics there, for node_exporter."),
    ] = None,
    mqtt_username: Annotated[
        str | None, typer.Option(envvar=_variable("MQTT_USERNAME"), help="User name for the broker.")
    ] = None,
    mqtt_password_file: Annotated[
        Path | None, typer.Option(envvar=_variable("MQTT_PASSWORD_FILE"), help="File with its password.")
    ] = None,
    mqtt_ca_file: Annotated[
        Path | None, typer.Option(envvar=_variable("MQTT_CA_FILE"), help="CA certificates for mqtts:// (PEM).")
    ] = None,
    mqtt_cert_file: Annotated[
        Path | None, typer.Option(envvar=_variable("MQTT_CERT_FILE"), help="The agent's certificate (PEM).")
    ] = None,
    mqtt_key_file: Annotated[
        Path | None, typer.Option(envvar=_variable("MQTT_KEY_FILE"), help="The certificate's key (PEM).")
    ] = None,
    ready_file: Annotated[
        Path | None, typer.Option(envvar=_variable("READY_FILE"), help="Written (JSON) once the agent serves.")
    ] = None,
) -> None:
    """Serve until SIGTERM or SIGINT. Says 'ready' on standard output; everything else goes to standard error."""
    _log_to_stderr()
    try:
        config = _configure(
            host=host,
            run_dir=run_dir,
            mqtt=mqtt,
            root=root,
            interval=interval,
            guardian_limit=guardian_limit,
            qemu=qemu,
            foreign=foreign,
            dirty_rate=dirty_rate,
            metrics=metrics,
            metrics_textfile=metrics_textfile,
            username=mqtt_username,
            password_file=mqtt_password_file,
            ca_file=mqtt_ca_file,
            cert_file=mqtt_cert_file,
            key_file=mqtt_key_file,
        )
        asyncio.run(_serve(config, ready_file))
    except QmpMigrateError as error:
        sys.stderr.write(f"qmp-hostagent: {error}\n")
        if error.hint:
            sys.stderr.write(f"hint: {error.hint}\n")
        raise typer.Exit(error.exit_code) from None


@app.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def relay(context: typer.Context) -> None:
    """The forced command of a controller's key: no shell, and nothing that is not the controller's. --help tells more."""
    from hostagent.relay.entry import main as entry

    raise typer.Exit(entry(context.args))


@app.command()
def discover(
    run_dir: Annotated[
        Path | None,
        typer.Option(envvar=_variable("RUN_DIR"), help="Guests' directories. [default: /run/qmp-migrate]"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Show the QEMUs that an agent would find here, ours and others'. Touches nothing."""
    import json as jsons

    from hostagent.discovery.guests import discover as ours
    from hostagent.discovery.unmanaged import ForeignQemus

    place = (run_dir or _default_run_dir()).absolute()
    guests = ours(place)
    hidden: list[str] = []
    names, pids = frozenset(guest.name for guest in guests), frozenset(guest.pid for guest in guests)
    guests += ForeignQemus(place, hidden.append).scan(pids, names)
    if json:
        found = [
            {
                "vm": guest.name,
                "pid": guest.pid,
                "origin": "foreign" if guest.foreign else "ours",
                "monitors": list(guest.monitors) if guest.foreign else [str(guest.monitor_path)],
            }
            for guest in guests
        ]
        typer.echo(jsons.dumps({"schema": "discovered/1", "guests": found, "hidden": hidden}))
        return
    for guest in guests:
        where = " ".join(guest.monitors) or "no QMP monitor on a UNIX socket" if guest.foreign else str(guest.directory)
        typer.echo(f"{guest.name:24} pid {guest.pid:<8} {'foreign' if guest.foreign else 'ours':8} {where}")
    for line in hidden:
        typer.echo(f"warning: {line}", err=True)


def _configure(
    *,
    host: str,
    run_dir: Path | None,
    mqtt: str,
    root: str,
    interval: str,
    guardian_limit: str,
    qemu: list[str] | None,
    foreign: bool,
    dirty_rate: str,
    metrics: str | None,
    metrics_textfile: Path | None,
    **broker: Any,
) -> AgentConfig:
    from hostagent.app.service import AgentConfig
    from qmp_migrate.bus.client.address import BrokerAddress
    from qmp_migrate.bus.messages.topics import Topics
    from qmp_migrate.vm.names import validate_name
    from qmp_migrate.vm.units import parse_time_ms

    found = shutil.which(f"qemu-system-{platform.machine()}")
    return AgentConfig(
        host=validate_name(host, "host name"),
        run_dir=(run_dir or _default_run_dir()).absolute(),
        broker=BrokerAddress.parse(mqtt, **broker),
        topics=Topics(root),
        interval_s=parse_time_ms(interval) / 1000,
        guardian_limit_s=_guardian_limit_s(guardian_limit),
        foreign=foreign,
        dirty_rate_s=_dirty_rate_s(dirty_rate),
        metrics=_metrics(metrics),
        metrics_textfile=metrics_textfile,
        qemus=tuple(qemu) if qemu else (found,) if found else (),
    )


def _metrics(text: str | None) -> tuple[str, int] | None:
    if not text:
        return None
    from qmp_migrate.exposition import parse_listen

    return parse_listen(text)


def _dirty_rate_s(text: str) -> float:
    """Return how often dirty rates are sampled, in seconds; 0.0: never."""
    from qmp_migrate.errors import InvalidQuantity
    from qmp_migrate.vm.units import parse_time_ms

    if text.strip() == "0":
        return 0.0
    seconds = parse_time_ms(text) / 1000
    if seconds < DIRTY_RATE_MIN_S:
        raise InvalidQuantity(
            f"a dirty rate every {text} would keep guests' memory busy", hint=f"{DIRTY_RATE_MIN_S}s or more; 0: never"
        )
    return seconds


def _guardian_limit_s(text: str) -> float:
    """Return the guardian's limit in seconds, 0.0 where it is turned off."""
    from qmp_migrate.errors import InvalidQuantity
    from qmp_migrate.vm.units import parse_time_ms

    if text.strip() == "0":
        return 0.0
    limit_ms = parse_time_ms(text)
    if limit_ms < GUARDIAN_LIMIT_MIN_MS:
        raise InvalidQuantity(
            f"a guardian's limit of {text} is too short: a controller gives a sign of life once a second",
            hint="use 2s or more for --guardian-limit, or 0 to turn the guardian off",
        )
    return limit_ms / 1000


def _default_run_dir() -> Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return Path(runtime) / "qmp-migrate" if os.geteuid() != 0 and runtime else Path("/run/qmp-migrate")


async def _serve(config: AgentConfig, ready_file: Path | None) -> None:
    from hostagent.app.sd_notify import ServiceManager
    from hostagent.app.service import HostAgent, write_ready_file

    manager = ServiceManager(os.environ)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def end() -> None:
        manager.say("STOPPING=1")
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)

    def ready(connected: bool) -> None:
        if ready_file is not None:
            write_ready_file(ready_file, host=config.host, connected=connected)
        manager.say("READY=1", f"STATUS={agent.summary}")
        sys.stdout.write("ready\n")
        sys.stdout.flush()

    agent = HostAgent(config)
    alone = _only_one(config.run_dir)
    alive = asyncio.create_task(manager.keep_alive(lambda: agent.summary), name="service manager")
    try:
        await agent.run(stop, ready=ready)
    finally:
        alive.cancel()
        if alone is not None:
            os.close(alone)


def _only_one(run_dir: Path) -> int | None:
    """Lock a RUN_DIR, so that a second agent of the same guests says so instead of speaking over the first.

    Returns:
        What holds the lock, to be closed; ``None`` where there is no directory yet.

    Raises:
        LockBusy: Another agent serves there.
    """
    import fcntl

    from qmp_migrate.errors import LockBusy

    try:
        descriptor = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise LockBusy(
            f"another agent serves {run_dir}",
            hint="systemctl status qmp-hostagent; one agent serves all guests of a host",
        ) from None
    return descriptor


def _log_to_stderr() -> None:
    import structlog

    terminal = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.dev.ConsoleRenderer(colors=terminal) if terminal else structlog.processors.LogfmtRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def main() -> None:
    """Entry point."""
    app()


if __name__ == "__main__":
    main()
