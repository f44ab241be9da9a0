"""One settings model: a TOML file, then the environment (``QMP_MIGRATE_*``), then what flags say.

The file is ``--config FILE``, else ``./qmp-migrate.toml``, else ``$XDG_CONFIG_HOME/qmp-migrate/config.toml``, else
``/etc/qmp-migrate/config.toml`` (DESIGN §6). An unknown key is an error that names the key, its line and the nearest
known one: a typo in a bandwidth limit must not be silently no limit.

Environment names follow the file's: ``QMP_MIGRATE_CONTROLLER__STATE``, ``QMP_MIGRATE_MQTT__URL``.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from qmp_migrate.errors import ConfigError, HostUnknown, InvalidName, InvalidQuantity
from qmp_migrate.notice_kinds import check_kinds
from qmp_migrate.vm.names import validate_name
from qmp_migrate.vm.units import parse_rate, parse_time_ms

ENV_PREFIX: Final = "QMP_MIGRATE_"

MIN_WATCHDOG_MS: Final = 1000
"""QEMU's numbers are asked for four times a second; a shorter limit would see standstill where there is none."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _quantity(parse: Callable[[str], int], text: str) -> str:
    """Check a quantity within a model: pydantic tells the key of a ValueError, not of an error of ours."""
    try:
        parse(text)
    except InvalidQuantity as error:
        raise ValueError(f"{error.message}; {error.hint}") from error
    return text


def default_state() -> str:
    """Return the default journal: under ``/var/lib`` for root, else under ``$XDG_STATE_HOME``."""
    if os.geteuid() == 0:
        return "sqlite:////var/lib/qmp-migrate/journal.sqlite"
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local/state")
    return f"sqlite:///{base}/qmp-migrate/journal.sqlite"


class ControllerSettings(_Section):
    """``[controller]``.

    Attributes:
        state: SQLAlchemy URL of the journal: ``sqlite:///…`` or ``postgresql+psycopg://…``.
    """

    state: str = Field(default_factory=default_state)

    @field_validator("state")
    @classmethod
    def _known_store(cls, value: str) -> str:
        if not value.startswith(("sqlite:///", "postgresql+psycopg://")):
            raise ValueError("must start with sqlite:/// or postgresql+psycopg://")
        return value


class MqttSettings(_Section):
    """``[mqtt]``: the broker that is told what happens. Without a ``url`` nothing is published.

    Attributes:
        url: ``mqtt://HOST:PORT``, ``mqtts://HOST:PORT``, or ``ws://`` and ``wss://`` for websockets.
        root: First levels of every topic.
        username: User name for the broker.
        password_file: File that holds the password (never in the URL, never on the command line).
        ca_file, cert_file, key_file: TLS material for ``mqtts``.
    """

    url: str | None = None
    root: str = "qmp-migrate/v1"
    username: str | None = None
    password_file: Path | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None

    @field_validator("url")
    @classmethod
    def _known_scheme(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("mqtt://", "mqtts://", "ws://", "wss://")):
            raise ValueError("must start with mqtt://, mqtts://, ws:// or wss://")
        return value


class MetricsSettings(_Section):
    """``[metrics]``: figures of migrations, for Prometheus.

    Attributes:
        textfile: Written anew after each migration, for node_exporter's textfile collector.
    """

    textfile: Path | None = None


class MigrationSettings(_Section):
    """``[migration]``: what `migrate` does unless its flags say otherwise.

    Attributes:
        downtime_limit: The longest blackout the user allows, for example ``300ms``.
        bandwidth: Rate limit, for example ``1Gbit``; absent: as fast as the link goes.
        policy: What is done about a guest that dirties memory faster than the link carries it: ``--policy``.
        handover_by_agents: The hosts' agents may hand a guest over, should the controller die when it runs nowhere.
        guarded: Stop at pre-switchover until lock and destination are proven there; see `MigrationRequest.guarded`.
        announce_initial: Before the guest's network addresses are announced a second time at the destination.
        announce_max: Between two announcements at most.
        announce_rounds: How many there are.
        announce_step: What is added after each.
    """

    downtime_limit: str = "300ms"
    bandwidth: str | None = None
    policy: str = "default"
    handover_by_agents: bool = True
    guarded: bool = False
    announce_initial: str = "50ms"
    announce_max: str = "550ms"
    announce_rounds: int = Field(default=5, ge=1, le=1000)
    announce_step: str = "100ms"

    @property
    def announce(self) -> tuple[int, int, int, int]:
        """`MigrationRequest.announce`."""
        first, most, step = (parse_time_ms(t) for t in (self.announce_initial, self.announce_max, self.announce_step))
        return first, most, self.announce_rounds, step

    @field_validator("downtime_limit", "announce_initial", "announce_max", "announce_step")
    @classmethod
    def _time(cls, value: str) -> str:
        return _quantity(parse_time_ms, value)

    @field_validator("bandwidth")
    @classmethod
    def _rate(cls, value: str | None) -> str | None:
        return value if value is None else _quantity(parse_rate, value)


class HookSettings(_Section):
    """``[[hook]]``: a command at a point of every migration; see `qmp_migrate.migration.lifecycle.hooks`.

    Attributes:
        at: ``before``, ``pre-switchover``, ``after-commit``, ``rolled-back`` or ``done``.
        where: ``controller``, ``source`` or ``destination``.
        command: Program (an absolute path) and arguments; never a shell line.
        timeout: It is killed after this.
        required: Its failure takes the guest back; at points before the commit only.
    """

    at: Literal["before", "pre-switchover", "after-commit", "rolled-back", "done"]
    where: Literal["controller", "source", "destination"] = "controller"
    command: tuple[str, ...]
    timeout: str = "10s"
    required: bool = False

    @field_validator("command")
    @classmethod
    def _program(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or not value[0].startswith("/") or any("\0" in word for word in value):
            raise ValueError(
                'must be a list that begins with an absolute path, for example ["/usr/local/bin/flip", "x"]'
            )
        if "=" in value[0]:
            raise ValueError(
                "the program's path must not have an equals sign in it"
            )  # env(1) would take it for a variable
        return value

    @field_validator("timeout")
    @classmethod
    def _time(cls, value: str) -> str:
        return _quantity(parse_time_ms, value)

    @model_validator(mode="after")
    def _required_in_time(self) -> HookSettings:
        if self.required and self.at not in {"before", "pre-switchover"}:
            raise ValueError(f"required is not possible at {self.at}: the guest is where it is by then")
        return self


class NotifySettings(_Section):
    """``[[notify]]``: who is told what by ``qmp-migrate notify``; see `qmp_migrate.fleet.notifications.rules`.

    Attributes:
        on: What is told: words of the list, or patterns (``migration.*``).
        url: Web address that gets each notice in a POST.
        command: Program (an absolute path) and arguments that get each notice on standard input.
        vm: Only of guests of this pattern.
        host: Only of hosts of this pattern.
        secret_file: What web notices are signed with.
        ca_file: CA certificates to verify the web server by; default: those of the system.
        timeout: For one try.
        deadline: How long it is tried.
    """

    on: tuple[str, ...]
    url: str | None = None
    command: tuple[str, ...] | None = None
    vm: str = "*"
    host: str = "*"
    secret_file: Path | None = None
    ca_file: Path | None = None
    timeout: str = "10s"
    deadline: str = "5m"

    @field_validator("on")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        check_kinds(value)
        return value

    @field_validator("url")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        parts = urlsplit(value or "https://x")
        if parts.scheme not in ("https", "http") or not parts.hostname or parts.username:
            raise ValueError("must be like https://example.org/hook, without a user name")
        return value

    @field_validator("command")
    @classmethod
    def _program(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and (not value or not value[0].startswith("/") or any("\0" in word for word in value)):
            raise ValueError('must be a list that begins with an absolute path, for example ["/usr/bin/logger", "-t"]')
        return value

    @field_validator("timeout", "deadline")
    @classmethod
    def _time(cls, value: str) -> str:
        return _quantity(parse_time_ms, value)

    @model_validator(mode="after")
    def _one_way(self) -> NotifySettings:
        if (self.url is None) == (self.command is None):
            raise ValueError("needs either url or command")
        if self.command is not None and (self.secret_file or self.ca_file):
            raise ValueError("secret_file and ca_file belong to a url")
        return self


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a migration may stand still, seconds; see `WatchdogSettings`."""

    connect_s: float = 30.0
    stall_s: float = 20.0
    switchover_s: float = 10.0


class WatchdogSettings(_Section):
    """``[watchdog]``: how long a migration may stand still before it is taken back to the source.

    Attributes:
        connect: From ``migrate`` until the first bytes have travelled: connecting and the TLS handshake.
        stall: Without a byte of progress while memory is copied. A black hole sends no error for many minutes.
        switchover: From STOP at the source, beyond the downtime limit, until both sides say that they have completed.
    """

    connect: str = "30s"
    stall: str = "20s"
    switchover: str = "10s"

    @field_validator("connect", "stall", "switchover")
    @classmethod
    def _time(cls, value: str) -> str:
        _quantity(parse_time_ms, value)
        if parse_time_ms(value) < MIN_WATCHDOG_MS:
            raise ValueError(f"must be at least {MIN_WATCHDOG_MS // 1000}s")
        return value

    @property
    def limits(self) -> Limits:
        """The same in seconds."""
        seconds = {name: parse_time_ms(getattr(self, name)) / 1000 for name in ("connect", "stall", "switchover")}
        return Limits(seconds["connect"], seconds["stall"], seconds["switchover"])


class HostSettings(_Section):
    """``[hosts.NAME]``: how a host is reached and where things are there.

    Attributes:
        address: SSH address; ``local`` means this machine, without SSH.
        port: SSH port.
        user: SSH user; default: the one who runs the controller.
        identity_file: Private key; default: the SSH agent and the usual files.
        known_hosts: Host keys; default ``~/.ssh/known_hosts``. Always verified.
        jump: ``[USER@]HOST[:PORT]`` to go through.
        migration_address: Where guest memory travels: what sources connect to; default: ``address``.
        migration_listen: What QEMU binds to here to receive, where that differs from ``migration_address`` (address
            translation, a forwarded port: then set ``migration_ports`` too); default: ``migration_address``.
        migration_ports: ``FIRST-LAST``, both included, for firewalls; default: a free port of the system's choice.
        run_dir: Where guests' files are on the host.
        qemu: The QEMU binary on the host.
        access: ``shell``: the SSH user has one. ``relay``: its key is bound to ``qmp-hostagent relay``.
        path_map: Where this host's paths differ: ``{"/path/elsewhere" = "/path/here"}``.
        time_factor: By what time limits of SSH, QMP and a QEMU's start are multiplied: more than 1 for a slow host or a
            slow way to it.
    """

    address: str
    port: int = Field(default=22, ge=1, le=65535)
    user: str | None = None
    identity_file: Path | None = None
    known_hosts: Path | None = None
    jump: str | None = None
    migration_address: str | None = None
    migration_listen: str | None = None
    migration_ports: str | None = None
    run_dir: str = "/run/qmp-migrate"
    qemu: str = "/usr/bin/qemu-system-x86_64"
    access: Literal["shell", "relay"] = "shell"
    path_map: dict[str, str] = Field(default_factory=dict)
    time_factor: float = Field(default=1.0, ge=1.0, le=100.0)

    @field_validator("address", "migration_address", "migration_listen")
    @classmethod
    def _plain_address(cls, value: str | None) -> str | None:
        # It becomes a part of a QMP URI: typed fields only (DESIGN rule 10).
        if value is not None and not re.fullmatch(
            r"[A-Za-z0-9]([A-Za-z0-9.:_-]{0,252}[A-Za-z0-9])?", value.strip("[]")
        ):
            raise ValueError("is not a host name or an IP address")
        return value

    @field_validator("run_dir", "qemu")
    @classmethod
    def _absolute(cls, value: str) -> str:
        if not value.startswith("/") or "\n" in value or "\0" in value:
            raise ValueError("must be an absolute path")
        return value.rstrip("/") or "/"

    @field_validator("migration_ports")
    @classmethod
    def _range(cls, value: str | None) -> str | None:
        if value is not None:
            match = re.fullmatch(r"(\d{1,5})-(\d{1,5})", value)
            if not match or not 1 <= int(match[1]) <= int(match[2]) <= 65535:
                raise ValueError("must be FIRST-LAST, for example 49152-49215")
        return value

    @model_validator(mode="after")
    def _receives_somewhere(self) -> HostSettings:
        if self.address == "local" and self.migration_address is None:
            raise ValueError('address = "local" needs a migration_address: where this machine receives guests')
        return self

    @property
    def ports(self) -> tuple[int, int] | None:
        """First and last migration port, or ``None`` for any free one."""
        if self.migration_ports is None:
            return None
        first, last = self.migration_ports.split("-")
        return int(first), int(last)


class Settings(_Section):
    """All settings. Made by `load`; see the sections for what each key means."""

    controller: ControllerSettings = Field(default_factory=ControllerSettings)
    mqtt: MqttSettings = Field(default_factory=MqttSettings)
    migration: MigrationSettings = Field(default_factory=MigrationSettings)
    metrics: MetricsSettings = Field(default_factory=MetricsSettings)
    watchdog: WatchdogSettings = Field(default_factory=WatchdogSettings)
    hook: list[HookSettings] = Field(default_factory=list)
    notify: tuple[NotifySettings, ...] = ()
    hosts: dict[str, HostSettings] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _host_names(self) -> Settings:
        for name in self.hosts:
            try:
                validate_name(name, "host name")
            except InvalidName as error:
                raise ValueError(str(error)) from error
        return self

    def host(self, name: str) -> HostSettings:
        """Return one host's settings.

        Raises:
            InvalidName: The name is not a host name at all.
            HostUnknown: No such section; the hint names the nearest one.
        """
        validate_name(name, "host name")
        try:
            return self.hosts[name]
        except KeyError:
            near = get_close_matches(name, self.hosts, n=1)
            known = ", ".join(sorted(self.hosts)) or "none"
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise HostUnknown(
                f"host {name!r} is not in the settings", hint=f"{hint}known hosts: {known} ([hosts.NAME] sections)"
            ) from None


def find_file(explicit: Path | None) -> Path | None:
    """Return the settings file to use, or ``None`` where there is none.

    Raises:
        ConfigError: A file was named (by flag or ``QMP_MIGRATE_CONFIG``) and is not there.
    """
    named = explicit or (Path(os.environ["QMP_MIGRATE_CONFIG"]) if os.environ.get("QMP_MIGRATE_CONFIG") else None)
    if named is not None:
        if not named.is_file():
            raise ConfigError(f"settings file {named} is not there", hint="check --config, or run: qmp-migrate rig up")
        return named
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    places = (Path("qmp-migrate.toml"), home / "qmp-migrate/config.toml", Path("/etc/qmp-migrate/config.toml"))
    return next((place for place in places if place.is_file()), None)


def load(explicit: Path | None = None) -> Settings:
    """Read the settings: file, then environment.

    Args:
        explicit: What ``--config`` says.

    Raises:
        ConfigError: Absent (where named), unreadable, not TOML, an unknown key, a bad value. Says which key and line.
    """
    path = find_file(explicit)
    text = ""
    if path is not None:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read {path}: {error}", hint="is it a text file that you may read?") from error
    return parse(text, source=str(path) if path else "settings", environment=os.environ)


def parse(text: str, *, source: str, environment: Any = None) -> Settings:
    """Parse settings text and lay the environment over it.

    Raises:
        ConfigError: See `load`.
    """
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also of numbers with 5,000 digits, and 1,000 brackets
        raise ConfigError(
            f"{source}: not TOML: {error}", hint="see docs/reference/settings.md for an example"
        ) from None
    for key, value in (environment or {}).items():
        if key.startswith(ENV_PREFIX) and "__" in key:
            section, _, name = key.removeprefix(ENV_PREFIX).lower().partition("__")
            if section in {"controller", "mqtt", "migration", "watchdog"} and isinstance(
                data.setdefault(section, {}), dict
            ):
                data[section][name] = value
    try:
        return Settings.model_validate(data)
    except ValidationError as error:
        raise _explain(error, text, source) from None


def _explain(error: ValidationError, text: str, source: str) -> ConfigError:
    # A misspelt key also leaves the right one absent: the misspelling is what happened.
    found = error.errors()
    first = next((detail for detail in found if detail["type"] == "extra_forbidden"), found[0])
    location = [str(part) for part in first["loc"]]
    key = ".".join(location) or "settings"
    line = _line_of(text, location)
    where = f"{source}:{line}" if line else source
    if first["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        near = get_close_matches(location[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys here: {', '.join(known)}"
        return ConfigError(f"{where}: unknown key {key!r}", hint=hint)
    reason = first["msg"].removeprefix("Value error, ").replace("a valid tuple", "a list of strings")
    return ConfigError(f"{where}: {key}: {reason}", hint=f"correct {key} in {source}")


def _known_keys(section: list[str]) -> list[str]:
    match section:
        case []:
            return list(Settings.model_fields)
        case ["hosts", _, *_]:
            return list(HostSettings.model_fields)
        case ["hook", _, *_]:
            return list(HookSettings.model_fields)
        case [name, *_] if name in Settings.model_fields:
            model = Settings.model_fields[name].annotation
            return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []
    return []


def _line_of(text: str, location: list[str]) -> int | None:
    """Return the 1-based line of a key: the key under its section header, else the header itself."""
    header = re.compile(r"\s*\[\[?\s*(?P<name>[^\]]+?)\s*\]\]?")
    section: list[str] = []
    found: int | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        match = header.match(line)
        if match:
            section = [part.strip().strip("\"'") for part in match["name"].split(".")]
            if location[: len(section)] == section:
                found = number
            continue
        key = line.partition("=")[0].strip().strip("\"'")
        if key and [*section, *key.split(".")] == location[: len(section) + len(key.split("."))] != section:
            return number
    return found
