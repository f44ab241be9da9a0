"""From the settings of the controller to what one host needs: its agent's settings, its identity, the key that may log in."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qmp_migrate.errors import ConfigError, HostUnknown, UsageError
from qmp_migrate.fleet.provisioning import plan
from qmp_migrate.fleet.provisioning.plan import DEFAULT_RUN_DIR, DEFAULT_USER, ENVIRONMENT, ETC, File, Package, Wish
from qmp_migrate.settings import HostSettings, Settings

DEFAULT_ROOT: Final = "qmp-migrate/v1"
DEFAULT_QEMU: Final = "/usr/bin/qemu-system-x86_64"
PUBLIC_KEYS: Final = ("id_ed25519.pub", "id_ecdsa.pub", "id_rsa.pub")
_PLAIN: Final = re.compile(r"[A-Za-z0-9_@%+=:,./\[\]-]+")


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line asks for beside the settings.

    Attributes:
        package: To install; None: what is there stays.
        broker_directory: Where `broker init` keeps the identities; None: the agent gets none.
        key: Public key that may log in; None: the one that the settings log in with.
        url: The broker as the host sees it; None: as the settings see it.
        metrics: Where the agent serves metrics; None: nowhere.
        agent: Set up an agent.
    """

    package: Package | None = None
    broker_directory: Path | None = None
    key: Path | None = None
    url: str | None = None
    metrics: str | None = None
    agent: bool = True


def make_wish(settings: Settings, name: str, asked: Asked) -> Wish:
    """Return what a host of these settings shall be.

    Raises:
        HostUnknown: The settings have no such host.
        ConfigError: Something that is needed is not in the settings, or cannot be read.
        UsageError: A public key that is none; a host that is this machine itself.
    """
    host = settings.hosts.get(name)
    if host is None:
        known = ", ".join(sorted(settings.hosts)) or "none"
        raise HostUnknown(f"no host {name!r} in the settings", hint=f"known: {known}; add [hosts.{name}] first")
    if host.address == "local":
        raise UsageError(
            f"{name} is this machine itself",
            hint='give it an address (127.0.0.1 will do) instead of "local", or do it by hand',
        )
    user = host.user or ""
    if user == "root" or not plan.USER_NAME.fullmatch(user):
        raise ConfigError(
            f"[hosts.{name}] logs in as {user or 'whoever runs the controller'}: guests need a user of their own",
            hint=f'set user = "{DEFAULT_USER}"; the setup makes it',
        )
    url = asked.url or settings.mqtt.url
    if asked.agent and url is None:
        raise ConfigError(
            "no broker in the settings, so an agent would have nobody to tell",
            hint="set url in [mqtt], or say --mqtt URL, or --no-agent",
        )
    key = _public_key(host, asked.key)
    plan.key_blob(key)
    if host.access == "relay":
        key = f'restrict,command="/usr/bin/qmp-hostagent relay" {key}'
    files = tuple(_boot(user, host.run_dir))
    if asked.agent:
        assert url is not None
        files += tuple(_agent_files(settings, name, host, url, asked))
    return Wish(
        host=name,
        user=user,
        run_dir=host.run_dir,
        qemu=host.qemu,
        key=key,
        package=asked.package,
        agent=asked.agent,
        files=files,
    )


def _public_key(host: HostSettings, asked: Path | None) -> str:
    if asked is not None:
        tried = [asked]
    elif host.identity_file is not None:
        tried = [Path(f"{host.identity_file.expanduser()}.pub")]
    else:
        tried = [Path.home() / ".ssh" / name for name in PUBLIC_KEYS]
    for path in tried:
        try:
            return path.expanduser().read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError):
            continue
    raise ConfigError(
        f"no public key to let in: {', '.join(map(str, tried))}",
        hint="make one: ssh-keygen -t ed25519 -N '' -f FILE, set identity_file, or say --key FILE.pub",
    )


def _boot(user: str, run_dir: str) -> list[File]:
    """Return what makes RUN_DIR anew at each boot; the package has it for the usual one."""
    if (user, run_dir) == (DEFAULT_USER, DEFAULT_RUN_DIR):
        return []
    line = f"d {run_dir} 0700 {user} - -\n"
    return [File("/etc/tmpfiles.d/qmp-migrate-host.conf", line.encode())]


def _agent_files(settings: Settings, name: str, host: HostSettings, url: str, asked: Asked) -> list[File]:
    files = []
    variables = {"HOST": name, "MQTT": url, "RUN_DIR": host.run_dir}
    if settings.mqtt.root != DEFAULT_ROOT:
        variables["ROOT"] = settings.mqtt.root
    if host.qemu != DEFAULT_QEMU and " " not in host.qemu:
        variables["QEMU"] = host.qemu
    if asked.metrics:
        from qmp_migrate.exposition import parse_listen

        parse_listen(asked.metrics)
        variables["METRICS"] = asked.metrics
    if asked.broker_directory is not None:
        from qmp_migrate.bus.broker.pki import Authority

        identity = Authority.open(asked.broker_directory).find(name)
        if identity.revoked or identity.days_left < 0:
            raise ConfigError(
                f"the identity {name} is {'revoked' if identity.revoked else 'expired'}",
                hint=f"qmp-migrate broker renew {asked.broker_directory} {name}",
            )
        files += [
            File(f"{ETC}/ca.crt", _read(asked.broker_directory / "ca.crt")),
            File(f"{ETC}/agent.crt", _read(identity.certificate)),
            File(f"{ETC}/agent.key", _read(identity.key), 0o640, secret=True, for_user=True),
        ]
        variables |= {
            f"MQTT_{what}_FILE": f"{ETC}/{file}"
            for what, file in (("CA", "ca.crt"), ("CERT", "agent.crt"), ("KEY", "agent.key"))
        }
    elif settings.mqtt.ca_file is not None:
        files.append(File(f"{ETC}/ca.crt", _read(settings.mqtt.ca_file.expanduser())))
        variables["MQTT_CA_FILE"] = f"{ETC}/ca.crt"
    text = "# Written by `qmp-migrate host setup`; what you add goes to hostagent.local.env.\n"
    text += "".join(f"QMP_HOSTAGENT_{key}={_quoted(value)}\n" for key, value in variables.items())
    if (host.user, host.run_dir) != (DEFAULT_USER, DEFAULT_RUN_DIR):
        drop_in = f"[Service]\nUser={host.user}\nReadWritePaths={_quoted(host.run_dir)}\n"
        files.append(File(f"/etc/systemd/system/{plan.AGENT}.d/50-setup.conf", drop_in.encode()))
    # The settings come last: the unit's condition is that they are there.
    return [*files, File(ENVIRONMENT, text.encode(), 0o640, for_user=True)]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


def _quoted(value: str) -> str:
    """Return a value as systemd's files take it."""
    if _PLAIN.fullmatch(value):
        return value
    if any(not character.isprintable() for character in value):
        raise ConfigError(f"{value!r} cannot stand in a file of systemd")
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
