"""The `jump` setting."""

from __future__ import annotations

import pytest

from qmp_migrate.errors import ConfigError
from qmp_migrate.hosts.base import HostAddress
from qmp_migrate.hosts.ssh.jump_host import Jump


@pytest.mark.parametrize(
    ("text", "jump"),
    [
        ("gate", Jump("gate")),
        ("gate:2222", Jump("gate", 2222)),
        ("me@gate", Jump("gate", user="me")),
        ("me@corp@gate:2222", Jump("gate", 2222, "me@corp")),
        ("2001:db8::1", Jump("2001:db8::1")),
        ("[2001:db8::1]", Jump("2001:db8::1")),
        ("me@[2001:db8::1]:2222", Jump("2001:db8::1", 2222, "me")),
    ],
)
def test_what_can_be_read(text: str, jump: Jump) -> None:
    assert Jump.parse(text) == jump


@pytest.mark.parametrize("text", ["", "@gate", "gate:", "gate:ssh", "gate:0", "gate:65536", "[::1", "[::1]22", "me@"])
def test_what_cannot(text: str) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        Jump.parse(text, host="a")


def test_the_jump_host_is_reached_like_the_target() -> None:
    target = HostAddress("a", "10.0.0.1", 2200, "root", jump="gate", connect_timeout_s=3)
    reached = Jump.parse("me@gate:2222").address(target)
    assert (reached.address, reached.port, reached.user, reached.jump) == ("gate", 2222, "me", None)
    assert reached.connect_timeout_s == 3
    assert Jump.parse("gate").address(target).user == "root"
