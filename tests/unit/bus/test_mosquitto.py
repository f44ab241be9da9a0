"""``broker init``: certificates, files and their modes; what is there is never overwritten."""

from __future__ import annotations

import json
import stat
from pathlib import Path, PurePosixPath

import pytest
from cryptography import x509
from typer.testing import CliRunner

from qmp_migrate.bus.broker.mosquitto import Listeners, access_list, configuration
from qmp_migrate.bus.broker.pki import Authority, identity_name, role_of
from qmp_migrate.bus.messages.topics import Topics
from qmp_migrate.cli.main import app
from qmp_migrate.errors import ConfigError, InvalidName, UsageError
from tests import ROOT

CONTRIB = ROOT / "contrib" / "mosquitto"


def run(*words: str) -> tuple[int, str]:
    ran = CliRunner().invoke(app, ["broker", *words])
    return ran.exit_code, ran.output


def test_the_example_in_contrib_is_what_is_rendered() -> None:
    where, state = PurePosixPath("/etc/mosquitto/qmp-migrate"), PurePosixPath("/var/lib/mosquitto")
    rendered = configuration(where, state, Listeners(8883, 8884))
    rules = access_list(Topics(), ["a", "b", "controller@main", "subscriber@dashboard", "bridge@home"])
    assert (CONTRIB / "mosquitto.conf").read_text() == rendered
    assert (CONTRIB / "qmp-migrate.acl").read_text() == rules


def test_init_twice_changes_nothing_and_adds_what_is_missing(tmp_path: Path) -> None:
    assert run("init", str(tmp_path / "b"), "--host", "a", "--address", "broker.example")[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "b").rglob("*.[ck]*") if path.is_file()}
    code, out = run("init", str(tmp_path / "b"), "--host", "a", "--host", "c", "--json")
    assert code == 0, out
    assert json.loads(out)["new"] == ["c"]
    for path, content in before.items():
        if path.suffix in {".crt", ".key"}:
            assert path.read_bytes() == content, path
    assert "user c\n" in (tmp_path / "b" / "qmp-migrate.acl").read_text()


def test_keys_are_for_nobody_else(tmp_path: Path) -> None:
    run("init", str(tmp_path), "--host", "a", "--address", "localhost")
    keys = list(tmp_path.rglob("*.key"))
    assert len(keys) == 4
    assert {stat.S_IMODE(path.stat().st_mode) for path in keys} == {0o600}


def test_the_brokers_certificate_names_all_its_addresses(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path)
    assert authority.issue_broker(["broker.example", "192.0.2.1", "2001:db8::1"])
    assert not authority.issue_broker(["broker.example", "192.0.2.1", "2001:db8::1"])
    assert authority.issue_broker(["other.example"])
    certificate = x509.load_pem_x509_certificate((tmp_path / "broker.crt").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["other.example"]
    with pytest.raises(UsageError, match="neither a DNS name"):
        authority.issue_broker(["a b"])


@pytest.mark.parametrize("name", ["+", "#", "a/b", "", "A", "controller@x", "a\n", "..", "x" * 64])
def test_an_identity_is_made_out_to_a_name_and_nothing_else(tmp_path: Path, name: str) -> None:
    authority = Authority.create(tmp_path)
    for role in ("agent", "controller", "subscriber"):
        with pytest.raises(InvalidName):
            authority.issue(role, name)  # type: ignore[arg-type]
    assert authority.identities() == []


def test_roles_cannot_be_mixed_up() -> None:
    for role in ("agent", "controller", "subscriber"):
        assert role_of(identity_name(role, "controller")) == role  # type: ignore[arg-type]


def test_a_revoked_identity_is_not_handed_out_again(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path)
    authority.issue("agent", "a")
    assert authority.revoke("a").revoked
    with pytest.raises(UsageError, match="was revoked"):
        authority.issue("agent", "a")
    renewed, new = authority.issue("agent", "a", renew=True)
    assert new
    assert not renewed.revoked
    with pytest.raises(UsageError, match="no identity"):
        authority.revoke("z")


def test_half_an_authority_and_none_are_told_apart_from_a_broken_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no authority"):
        Authority.open(tmp_path)
    Authority.create(tmp_path)
    (tmp_path / "ca.key").write_text("nonsense")
    with pytest.raises(ConfigError, match="cannot be read"):
        Authority.create(tmp_path)
    other = Authority.create(tmp_path / "other")
    (tmp_path / "ca.key").write_bytes((other.directory / "ca.key").read_bytes())
    with pytest.raises(ConfigError, match="do not belong together"):
        Authority.open(tmp_path)


def test_bad_words_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    code, out = run("init", str(tmp_path / "x"), "--host", "a", "--run-as", "root\nallow_anonymous true")
    assert code == 2
    assert "holds spaces" in out
    assert not (tmp_path / "x").exists()
    code, out = run("init", str(tmp_path / "x"), "--host", "a+b")
    assert code != 0
    assert not (tmp_path / "x").exists()
