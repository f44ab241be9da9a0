"""Which lines of a known_hosts file speak of a host."""

from __future__ import annotations

import base64
import hashlib
import hmac
from pathlib import Path

import pytest

from qmp_migrate.errors import HostKeyError
from qmp_migrate.hosts.ssh.host_keys import KnownKeys

ED, RSA, OTHER = "AAAAC3ed", "AAAAB3rsa", "AAAAC3other"


class _Key:
    def __init__(self, kind: str, text: str) -> None:
        self._kind, self._text = kind, text

    def get_name(self) -> str:
        return self._kind

    def get_base64(self) -> str:
        return self._text

    def asbytes(self) -> bytes:
        return self._text.encode()


def known(tmp_path: Path, text: str, address: str = "host.example", port: int = 22) -> KnownKeys:
    file = tmp_path / "known_hosts"
    file.write_text(text)
    return KnownKeys.load(address, port, file)


def hashed(name: str) -> str:
    salt = b"0123456789abcdefghij"
    mac = hmac.new(salt, name.encode(), hashlib.sha1).digest()
    return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(mac).decode()}"


@pytest.mark.parametrize(
    ("field", "address", "port", "matches"),
    [
        ("host.example", "host.example", 22, True),
        ("HOST.example", "host.Example", 22, True),
        ("host.example", "host.example", 2222, False),
        ("[host.example]:2222", "host.example", 2222, True),
        ("[host.example]:2222", "host.example", 22, False),
        ("other,host.example,192.0.2.1", "192.0.2.1", 22, True),
        ("*.example", "host.example", 22, True),
        ("*.example,!host.example", "host.example", 22, False),
        ("!host.example,*.example", "host.example", 22, False),
        ("host?example", "host.example", 22, True),
        ("host", "host.example", 22, False),
        ("[h]ost.example", "host.example", 22, False),
        (hashed("host.example"), "host.example", 22, True),
        (hashed("[host.example]:2222"), "host.example", 2222, True),
        (hashed("host.example"), "other.example", 22, False),
        ("|1|not|base64", "host.example", 22, False),
        ("2001:db8::1", "2001:db8::1", 22, True),
    ],
)
def test_the_first_field_of_a_line(tmp_path: Path, field: str, address: str, port: int, matches: bool) -> None:
    keys = known(tmp_path, f"{field} ssh-ed25519 {ED} comment\n", address, port)
    assert keys.trusted == ([("ssh-ed25519", ED)] if matches else [])


def test_lines_that_say_nothing_are_passed_over(tmp_path: Path) -> None:
    text = (
        f"# host.example ssh-ed25519 {ED}\n\nhost.example\nhost.example ssh-ed25519\n\x00\xff\n"
        f"@cert-authority host.example ssh-ed25519 {ED}\n"
    )
    keys = known(tmp_path, text)
    assert (keys.trusted, keys.revoked) == ([], set())


def test_every_key_of_a_host_is_good_and_a_revoked_one_never(tmp_path: Path) -> None:
    text = f"host.example ssh-ed25519 {ED}\nhost.example ssh-ed25519 {OTHER}\nhost.example ssh-rsa {RSA}\n"
    keys = known(tmp_path, text)
    for key in (ED, OTHER):
        keys.verify(_Key("ssh-ed25519", key), "a")
    keys.verify(_Key("ssh-rsa", RSA), "a")
    keys = known(tmp_path, f"{text}@revoked * ssh-ed25519 {ED}\n")
    with pytest.raises(HostKeyError, match="revoked"):
        keys.verify(_Key("ssh-ed25519", ED), "a")


def test_unknown_and_changed_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(HostKeyError, match="is not known") as caught:
        known(tmp_path, "", port=2222).verify(_Key("ssh-ed25519", ED), "a")
    assert "ssh-keyscan -p 2222 host.example >>" in (caught.value.hint or "")
    assert "SHA256:" in caught.value.message
    with pytest.raises(HostKeyError, match="CHANGED") as caught:
        known(tmp_path, f"host.example ssh-ed25519 {OTHER}\n").verify(_Key("ssh-ed25519", ED), "a")
    assert "ssh-keygen -R host.example" in (caught.value.hint or "")
    assert caught.value.host == "a"


def test_an_absent_file_knows_nobody(tmp_path: Path) -> None:
    with pytest.raises(HostKeyError, match="is not known"):
        KnownKeys.load("host.example", 22, tmp_path / "absent").verify(_Key("ssh-ed25519", ED), "a")


def test_known_types_are_asked_for_first(tmp_path: Path) -> None:
    offered = ["ssh-ed25519", "ecdsa-sha2-nistp256", "rsa-sha2-512", "rsa-sha2-256"]
    keys = known(tmp_path, f"host.example ssh-rsa {RSA}\n")
    assert keys.preferred_types(offered) == ["rsa-sha2-512", "rsa-sha2-256", "ssh-ed25519", "ecdsa-sha2-nistp256"]
    assert known(tmp_path, "").preferred_types(offered) == offered
