"""The settings file: what is read from where, and what a mistake in it says."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmp_migrate import settings
from qmp_migrate.errors import ConfigError, HostUnknown, InvalidName
from qmp_migrate.settings import HostSettings, Settings, find_file, load, parse

EXAMPLE = """\
[controller]
state = "sqlite:////srv/journal.sqlite"

[mqtt]
url = "mqtts://broker.example:8883"

[migration]
downtime_limit = "100ms"
bandwidth = "1Gbit"

[hosts.a]
address = "192.0.2.11"
migration_address = "10.0.0.11"
migration_ports = "49152-49215"
run_dir = "/run/qmp-migrate/"
path_map = { "/srv/a" = "/srv/b" }

[hosts.b]
address = "local"
migration_address = "127.0.0.1"
"""


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the settings of the machine that runs the tests out of them."""
    for name in list(settings.os.environ):
        if name.startswith("QMP_MIGRATE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(text: str, **environment: str) -> Settings:
    return parse(text, source="q.toml", environment=environment)


def refused(text: str, **environment: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read(text, **environment)
    assert caught.value.exit_code == 78
    assert caught.value.hint
    return caught.value


# -- what is read -----------------------------------------------------------------------------------------------------


def test_everything_in_its_place() -> None:
    read_in = read(EXAMPLE)
    assert read_in.controller.state == "sqlite:////srv/journal.sqlite"
    assert read_in.mqtt.url == "mqtts://broker.example:8883"
    assert (read_in.migration.downtime_limit, read_in.migration.bandwidth) == ("100ms", "1Gbit")
    a = read_in.host("a")
    assert (a.address, a.port, a.migration_address, a.ports) == ("192.0.2.11", 22, "10.0.0.11", (49152, 49215))
    assert a.run_dir == "/run/qmp-migrate"
    assert a.path_map == {"/srv/a": "/srv/b"}
    assert read_in.host("b").ports is None


def test_nothing_at_all_is_a_whole_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings.os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_STATE_HOME", "/home/me/state")
    empty = load()
    assert empty.hosts == {}
    assert empty.mqtt.url is None
    assert empty.mqtt.root == "qmp-migrate/v1"
    assert (empty.migration.downtime_limit, empty.migration.bandwidth) == ("300ms", None)
    assert empty.controller.state == "sqlite:////home/me/state/qmp-migrate/journal.sqlite"
    monkeypatch.setattr(settings.os, "geteuid", lambda: 0)
    assert load().controller.state == "sqlite:////var/lib/qmp-migrate/journal.sqlite"


def test_the_environment_lies_over_the_file() -> None:
    over = read(
        EXAMPLE, QMP_MIGRATE_MIGRATION__BANDWIDTH="80MiB", QMP_MIGRATE_CONTROLLER__STATE="sqlite:////x", HOME="/x"
    )
    assert over.migration.bandwidth == "80MiB"
    assert over.migration.downtime_limit == "100ms"
    assert over.controller.state == "sqlite:////x"
    assert read("", QMP_MIGRATE_MQTT__URL="mqtt://h:1883").mqtt.url == "mqtt://h:1883"


def test_a_host_that_is_not_there_is_answered_with_the_nearest() -> None:
    read_in = read('[hosts.alpha]\naddress = "x"\n[hosts.beta]\naddress = "y"\n')
    with pytest.raises(HostUnknown) as caught:
        read_in.host("alhpa")
    assert "did you mean 'alpha'" in (caught.value.hint or "")
    assert "alpha, beta" in (caught.value.hint or "")
    with pytest.raises(InvalidName):
        read_in.host("../alpha")


# -- which file -------------------------------------------------------------------------------------------------------


def test_the_nearest_file_is_taken(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_file(None) is None or str(find_file(None)).startswith("/etc/")
    user = nowhere / "xdg/qmp-migrate/config.toml"
    user.parent.mkdir(parents=True)
    user.write_text('[hosts.user]\naddress = "x"\n')
    assert list(load().hosts) == ["user"]
    (nowhere / "qmp-migrate.toml").write_text('[hosts.here]\naddress = "x"\n')
    assert list(load().hosts) == ["here"]
    named = nowhere / "other.toml"
    named.write_text('[hosts.named]\naddress = "x"\n')
    monkeypatch.setenv("QMP_MIGRATE_CONFIG", str(named))
    assert list(load().hosts) == ["named"]
    flag = nowhere / "flag.toml"
    flag.write_text('[hosts.flag]\naddress = "x"\n')
    assert list(load(flag).hosts) == ["flag"]


def test_a_file_that_was_named_must_be_there(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (nowhere / "qmp-migrate.toml").write_text("")
    with pytest.raises(ConfigError, match=r"absent\.toml is not there"):
        load(Path("absent.toml"))
    monkeypatch.setenv("QMP_MIGRATE_CONFIG", str(nowhere / "absent.toml"))
    with pytest.raises(ConfigError, match="is not there"):
        load()


def test_a_file_that_cannot_be_read_as_text(nowhere: Path) -> None:
    path = nowhere / "x.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot read"):
        load(path)


# -- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "where", "key", "near"),
    [
        ('[migration]\nbandwith = "1Gbit"\n', "q.toml:2", "migration.bandwith", "'bandwidth'"),
        ('\n[mqtt]\n# url\nurll = "mqtt://x"\n', "q.toml:4", "mqtt.urll", "'url'"),
        ('[hosts.a]\naddress = "x"\n\n[hosts.b]\naddress = "y"\nusr = "me"', "q.toml:6", "hosts.b.usr", "'user'"),
        ('hosts.a = { address = "x", prot = 22 }\n', "q.toml:1", "hosts.a.prot", "'port'"),
        ("[controler]\n", "q.toml:1", "controler", "'controller'"),
        ('[hosts."a"]\naddress = "x"\nrundir = "/x"\n', "q.toml:3", "hosts.a.rundir", "'run_dir'"),
    ],
)
def test_a_key_that_is_not_known_is_named_with_line_and_the_nearest(text: str, where: str, key: str, near: str) -> None:
    error = refused(text)
    assert error.message == f"{where}: unknown key {key!r}"
    assert error.hint == f"did you mean {near}?"


def test_a_key_that_is_misspelt_is_not_called_absent() -> None:
    error = refused('[hosts.a]\nadress = "y"\n')
    assert error.message == "q.toml:2: unknown key 'hosts.a.adress'"
    assert error.hint == "did you mean 'address'?"


def test_where_nothing_is_near_all_are_named() -> None:
    error = refused("[controller]\nzzz = 1\n")
    assert error.hint == "known keys here: state"


def test_a_key_that_is_not_known_in_the_environment() -> None:
    assert "mqtt.urll" in refused("", QMP_MIGRATE_MQTT__URLL="mqtt://x").message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[controller]\nstate = "mysql://x"\n', "q.toml:2: controller.state: must start with sqlite:///"),
        ('[mqtt]\nroot = "x"\nurl = "http://x"\n', "q.toml:3: mqtt.url: must start with mqtt://"),
        ("[hosts.a]\n", "q.toml:1: hosts.a.address: Field required"),
        ('[hosts.a]\naddress = "x"\nport = 0\n', "q.toml:3: hosts.a.port: Input should be greater than or equal to 1"),
        ('[hosts.a]\naddress = "x"\nport = "many"\n', "q.toml:3: hosts.a.port: Input should be a valid integer"),
        ('[hosts.a]\naddress = "x;reboot"\n', "q.toml:2: hosts.a.address: is not a host name or an IP address"),
        ('[hosts.a]\naddress = "x"\nrun_dir = "run"\n', "q.toml:3: hosts.a.run_dir: must be an absolute path"),
        ('[hosts.a]\naddress = "x"\nqemu = "qemu"\n', "q.toml:3: hosts.a.qemu: must be an absolute path"),
        (
            '[hosts.a]\naddress = "x"\nmigration_ports = "5-4"\n',
            "q.toml:3: hosts.a.migration_ports: must be FIRST-LAST",
        ),
        ('[hosts.a]\naddress = "x"\nmigration_ports = "0-70000"\n', "q.toml:3: hosts.a.migration_ports"),
        ('[hosts.a]\naddress = "local"\n', 'q.toml:1: hosts.a: address = "local" needs a migration_address'),
        (
            '[[hook]]\nat = "done"\ncommand = "/bin/true"\n',
            "q.toml:1: hook.0.command: Input should be a list of strings",
        ),
        ("hosts = 5\n", "q.toml:1: hosts: Input should be a valid dictionary"),
        ("mqtt = 5\n", "q.toml:1: mqtt: Input should be a valid dictionary"),
        ("[hosts\n", "q.toml: not TOML"),
    ],
)
def test_a_value_that_cannot_be_is_named_with_its_line(text: str, says: str) -> None:
    assert refused(text).message.startswith(says)


def test_a_quantity_that_cannot_be_read_is_named_with_its_line() -> None:
    for key, value in [("downtime_limit", "300"), ("bandwidth", "1Gb"), ("bandwidth", "100M")]:
        assert refused(f'[migration]\n{key} = "{value}"\n').message.startswith(f"q.toml:2: migration.{key}")


def test_a_quantity_that_cannot_be_read_is_a_bad_configuration() -> None:
    assert "it has no unit" in refused('[migration]\ndowntime_limit = "300"\n').message


@pytest.mark.parametrize("name", ["A", "-a", "a/b", "a..b", "x" * 64, ""])
def test_a_host_name_that_cannot_be_is_refused(name: str) -> None:
    assert "is not a host name" in refused(f'[hosts."{name}"]\naddress = "x"\n').message


@pytest.mark.parametrize("address", ["a\nb", "a b", "$(id)", "a;b", "-oProxyCommand=x", "", "a,b", "a/b", "x" * 300])
def test_an_address_is_nothing_but_an_address(address: str) -> None:
    for key in ("address", "migration_address"):
        with pytest.raises(ValueError, match="is not a host name or an IP address"):
            HostSettings.model_validate({"address": "x", key: address})


@pytest.mark.parametrize("address", ["a", "192.0.2.11", "fd00::1", "[fd00::1]", "b-1.example.org"])
def test_these_are_addresses(address: str) -> None:
    assert HostSettings(address=address).address == address


def test_this_machine_needs_an_address_to_receive_on() -> None:
    assert HostSettings(address="local", migration_address="127.0.0.1").address == "local"
    with pytest.raises(ValueError, match="needs a migration_address"):
        HostSettings(address="local")


@given(st.text(alphabet=st.sampled_from('[]{}=".#\n ahostsmqttcontrolleraddress0'), max_size=60))
def test_whatever_stands_in_the_file_it_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(ConfigError):
        read(text)
