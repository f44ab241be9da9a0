"""``qmp-migrate broker``: a small authority, and the configuration of a Mosquitto that believes it."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qmp_migrate.cli.context import Context, data, fail, put, run, say
from qmp_migrate.errors import ConfigError, QmpMigrateError, UsageError

if TYPE_CHECKING:
    from qmp_migrate.bus.broker.pki import Authority, Identity, Role

app = typer.Typer(
    name="broker",
    help="A Mosquitto with TLS and one identity each: certificates, configuration, access list.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Directory = Annotated[Path, typer.Argument(metavar="DIR", help="Where the authority and the files of the broker are.")]
Hosts = Annotated[list[str] | None, typer.Option("--host", metavar="NAME", help="A host's agent; repeatable.")]
Controllers = Annotated[list[str] | None, typer.Option("--controller", metavar="NAME", help="Repeatable.")]
Subscribers = Annotated[
    list[str] | None, typer.Option("--subscriber", metavar="NAME", help="Who may read everything; repeatable.")
]
Bridges = Annotated[
    list[str] | None,
    typer.Option("--bridge", metavar="NAME", help="Who may tell Home Assistant of everything; repeatable."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document.")]
MARK = "qmp-migrate.broker"


@app.command()
def init(
    context: typer.Context,
    directory: Directory,
    address: Annotated[
        list[str] | None,
        typer.Option("--address", metavar="NAME", help="DNS name or IP address of the broker; repeatable."),
    ] = None,
    host: Hosts = None,
    controller: Controllers = None,
    subscriber: Subscribers = None,
    bridge: Bridges = None,
    port: Annotated[int, typer.Option(help="MQTT over TLS.", min=1, max=65535)] = 8883,
    websockets: Annotated[int, typer.Option(metavar="PORT", help="Websockets, too; 0: none.", min=0, max=65535)] = 0,
    bind: Annotated[str, typer.Option(metavar="ADDRESS", help="Listen there only.")] = "",
    installed_as: Annotated[
        str, typer.Option("--installed-as", metavar="DIR", help="Where the files are on the broker's machine.")
    ] = "",
    state: Annotated[str, typer.Option(metavar="DIR", help="Where the broker keeps its state.")] = "/var/lib/mosquitto",
    run_as: Annotated[str, typer.Option("--run-as", metavar="USER", help="User of the broker.")] = "",
    json: Json = False,
) -> None:
    """Make the authority, the broker's certificate, identities, mosquitto.conf and the access list.

    May be run again: what is there stays, what is missing is added, the two files are written anew. The identities of hosts
    come from --host and from the settings, where there are some.
    """
    options: Context = context.obj
    try:
        hosts, root = _from_settings(options, host)
        settings = _remembered(directory)
        settings |= {
            "address": address or settings.get("address") or ["localhost", "127.0.0.1", "::1"],
            "port": port,
            "websockets": websockets,
            "bind": bind,
            "installed_as": installed_as or settings.get("installed_as") or str(directory.absolute()),
            "state": state,
            "run_as": run_as,
            "root": root,
        }
        for name in ("installed_as", "state", "bind", "run_as"):
            _one_word(name, settings[name])
        from qmp_migrate.bus.broker.pki import Authority

        wanted = _wanted(hosts, controller or ["main"], subscriber, bridge)
        authority = Authority.create(directory)
        with authority.locked():
            authority.issue_broker(settings["address"])
            _remember(directory, settings)
            new = _issue(authority, wanted)
            _render(authority, settings)
    except QmpMigrateError as error:
        fail(error, as_json=json)
    _tell(authority, new, json)
    if not json:
        where = settings["installed_as"]
        say().print(f"Start it: mosquitto -c {where}/mosquitto.conf   (or include it from /etc/mosquitto/conf.d)")
        key = f"{where}/broker.key"
        say().print(f"The broker's user must be able to read its key: chgrp mosquitto {key} && chmod 640 {key}")
        say().print(f"ca.key stays here, and in a backup. Try it all: qmp-migrate broker check {directory}")


@app.command()
def add(
    directory: Directory,
    host: Hosts = None,
    controller: Controllers = None,
    subscriber: Subscribers = None,
    bridge: Bridges = None,
    json: Json = False,
) -> None:
    """Add identities, and write the access list anew (the broker has to read it again: SIGHUP)."""
    try:
        from qmp_migrate.bus.broker.pki import Authority

        wanted = _wanted(host, controller, subscriber, bridge)
        if not wanted:
            raise UsageError("nobody to add", hint="--host NAME, --controller NAME, --subscriber NAME or --bridge NAME")
        authority = Authority.open(directory)
        with authority.locked():
            new = _issue(authority, wanted)
            _render(authority, _remembered(directory))
    except QmpMigrateError as error:
        fail(error, as_json=json)
    _tell(authority, new, json)


@app.command("list")
def list_(directory: Directory, json: Json = False) -> None:
    """Show the identities, and when they expire."""
    try:
        from qmp_migrate.bus.broker.pki import Authority

        authority = Authority.open(directory)
        identities = authority.identities()
    except QmpMigrateError as error:
        fail(error, as_json=json)
    if json:
        put({"schema": f"{MARK}/1", "identities": [_document(entry) for entry in identities]})
        return
    from rich.table import Table

    table = Table("identity", "may", "expires", "", box=None, pad_edge=False)
    may = {
        "agent": "write under its host",
        "controller": "read hosts, write migrations",
        "subscriber": "read everything",
        "bridge": "read everything, write Home Assistant's",
    }
    for entry in identities:
        table.add_row(entry.name, may[entry.role], entry.expires_at.strftime("%Y-%m-%d"), _state(entry))
    data().print(table)


@app.command()
def renew(
    directory: Directory,
    identity: Annotated[
        list[str] | None, typer.Argument(metavar="[IDENTITY…]", help="Default: all that end within 30 days.")
    ] = None,
    json: Json = False,
) -> None:
    """Give identities, and the broker itself, a new key and certificate; the old ones are revoked."""
    try:
        from qmp_migrate.bus.broker.pki import WARN_DAYS, Authority

        authority = Authority.open(directory)
        with authority.locked():
            settings = _remembered(directory)
            authority.issue_broker(settings["address"])
            found = (
                [authority.find(name) for name in identity]
                if identity
                else [entry for entry in authority.identities() if not entry.revoked and entry.days_left < WARN_DAYS]
            )
            new = [authority.issue(entry.role, entry.name.rpartition("@")[2], renew=True)[0].name for entry in found]
            _render(authority, settings)
    except QmpMigrateError as error:
        fail(error, as_json=json)
    _tell(authority, new, json)


@app.command()
def revoke(
    directory: Directory, identity: Annotated[str, typer.Argument(metavar="IDENTITY")], json: Json = False
) -> None:
    """Lock an identity out, for good; the broker has to read crl.pem again: restart it."""
    try:
        from qmp_migrate.bus.broker.pki import Authority

        authority = Authority.open(directory)
        with authority.locked():
            entry = authority.revoke(identity)
            _render(authority, _remembered(directory))
    except QmpMigrateError as error:
        fail(error, as_json=json)
    if json:
        put({"schema": f"{MARK}/1", "identities": [_document(entry)]})
    else:
        say().print(f"{entry.name} is revoked. Copy crl.pem and qmp-migrate.acl to the broker, and restart it.")


@app.command()
def check(
    directory: Directory,
    url: Annotated[str, typer.Option(help="Default: the first address of the broker.")] = "",
    json: Json = False,
) -> None:
    """Try the running broker as each identity: what must be allowed, and what must be refused."""

    async def work() -> list[Any]:
        from qmp_migrate.bus.broker.acl_check import probe
        from qmp_migrate.bus.broker.pki import Authority
        from qmp_migrate.bus.messages.topics import Topics

        authority = Authority.open(directory)
        settings = _remembered(directory)
        where = url or f"mqtts://{_bracketed(settings['address'][0])}:{settings['port']}"
        return await probe(where, Topics(settings["root"]), directory / "ca.crt", authority.identities())

    trials = run(work(), as_json=json)
    if json:
        fields = ("identity", "what", "wanted", "seen", "passed")
        put({"schema": f"{MARK}-check/1", "trials": [{f: getattr(t, f) for f in fields} for t in trials]})
    else:
        for trial in trials:
            mark = "[green][ OK ][/]" if trial.passed else "[bold red][FAIL][/]"
            data().print(mark.replace("[ OK ]", r"\[ OK ]").replace("[FAIL]", r"\[FAIL]"), end=" ")
            data().print(f"{trial.identity or '(nobody)'}: {trial.what}: {trial.seen}", markup=False)
    if not all(trial.passed for trial in trials):
        raise typer.Exit(1)


# -- what the commands share ------------------------------------------------------------------------------------


def _from_settings(options: Context, host: list[str] | None) -> tuple[list[str], str]:
    """Return the hosts that are given, or those of the settings; and the topics' root."""
    from qmp_migrate.bus.messages.topics import DEFAULT_ROOT

    try:
        settings = options.settings()
    except ConfigError:
        if options.config is not None or not host:
            raise
        return host, DEFAULT_ROOT
    return host or sorted(settings.hosts), settings.mqtt.root


def _wanted(
    hosts: list[str] | None, controllers: list[str] | None, subscribers: list[str] | None, bridges: list[str] | None
) -> list[tuple[Role, str]]:
    """Return who is asked for, once all names are checked."""
    from qmp_migrate.bus.broker.pki import identity_name

    given: list[tuple[Role, list[str] | None]] = [
        ("agent", hosts),
        ("controller", controllers),
        ("subscriber", subscribers),
        ("bridge", bridges),
    ]
    wanted: list[tuple[Role, str]] = [(role, name) for role, names in given for name in names or ()]
    for role, name in wanted:
        identity_name(role, name)
    return wanted


def _issue(authority: Authority, wanted: list[tuple[Role, str]]) -> list[str]:
    issued = [authority.issue(role, name) for role, name in wanted]
    return [entry.name for entry, new in issued if new]


def _render(authority: Authority, settings: dict[str, Any]) -> None:
    from qmp_migrate.bus.broker.mosquitto import Listeners, access_list, configuration
    from qmp_migrate.bus.broker.pki import write_file
    from qmp_migrate.bus.messages.topics import Topics

    text = configuration(
        PurePosixPath(settings["installed_as"]),
        PurePosixPath(settings["state"]),
        Listeners(settings["port"], settings["websockets"], settings["bind"]),
        run_as=settings["run_as"],
    )
    write_file(authority.directory / "mosquitto.conf", text.encode(), 0o644)
    rules = access_list(Topics(settings["root"]), authority.identities())
    write_file(authority.directory / "qmp-migrate.acl", rules.encode(), 0o644)


def _remembered(directory: Path) -> dict[str, Any]:
    import json as jsons

    path = directory / "broker.json"
    try:
        found = jsons.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", hint="run broker init again after removing it") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path} is not what broker init wrote", hint="run broker init again after removing it")
    return found


def _remember(directory: Path, settings: dict[str, Any]) -> None:
    import json as jsons

    from qmp_migrate.bus.broker.pki import write_file

    write_file(directory / "broker.json", (jsons.dumps(settings, indent=2) + "\n").encode(), 0o644)


def _one_word(what: str, text: str) -> None:
    if any(character.isspace() or not character.isprintable() for character in text):
        raise UsageError(f"--{what.replace('_', '-')} {text!r} holds spaces", hint="Mosquitto's file could not hold it")


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _state(entry: Identity) -> str:
    if entry.revoked:
        return "revoked"
    return "expired" if entry.days_left < 0 else f"{entry.days_left} days left" if entry.days_left < 30 else ""


def _document(entry: Identity) -> dict[str, Any]:
    return {
        "name": entry.name,
        "role": entry.role,
        "certificate": str(entry.certificate),
        "key": str(entry.key),
        "expires_at": entry.expires_at.isoformat(),
        "revoked": entry.revoked,
    }


def _tell(authority: Authority, new: list[str], json: bool) -> None:
    identities = authority.identities()
    if json:
        put({"schema": f"{MARK}/1", "new": new, "identities": [_document(entry) for entry in identities]})
        return
    for entry in identities:
        say().print(
            f"{'new ' if entry.name in new else 'had '} {entry.name}: {entry.certificate}, {entry.key.name}",
            markup=False,
        )
