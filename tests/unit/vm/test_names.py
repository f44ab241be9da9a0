"""Names and socket paths: what is let in, and what the refusal tells."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmp_migrate.errors import ConfigError, InvalidName
from qmp_migrate.vm.names import check_socket_path, validate_name


@pytest.mark.parametrize("name", ["a", "0", "web1", "web-1.example_x", "a" * 63, "a.b", "a-"])
def test_good_names_come_back(name: str) -> None:
    assert validate_name(name, "guest name") == name


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "empty"),
        ("web1\n", r"contains '\n'"),
        ("Web1", "starts with 'W'"),
        ("weB", "contains 'B'"),
        ("a" * 64, "64 characters"),
        ("a..b", "'..' is not allowed"),
        ("../etc", "'..' is not allowed"),
        (".hidden", "starts with '.'"),
        ("-rf", "starts with '-'"),
        ("a/b", "contains '/'"),
        ("a b", "contains ' '"),
        ("a,b=c", "contains ','"),
        ("a+#", "contains '+'"),
        ("é", "starts with 'é'"),
        ("a١", "contains '١'"),
        ("a\0", r"contains '\x00'"),
    ],
)
def test_bad_names_are_refused_with_the_reason(name: str, reason: str) -> None:
    with pytest.raises(InvalidName) as caught:
        validate_name(name, "guest name")
    assert caught.value.hint is not None
    assert reason in caught.value.hint


def test_the_hint_names_one_that_would_do() -> None:
    with pytest.raises(InvalidName) as caught:
        validate_name("My Guest!", "guest name")
    assert "'my-guest' would do" in (caught.value.hint or "")


@given(st.text(max_size=80))
def test_whatever_is_accepted_is_safe_as_a_path_a_topic_and_an_option(name: str) -> None:
    with suppress(InvalidName):
        accepted = validate_name(name, "guest name")
        assert not set(accepted) & set("/+#,= \0\n'\"$\\")
        assert not accepted.startswith((".", "-"))
        assert ".." not in accepted


@given(st.text("abcXYZ019_.- /é\n", max_size=80))
def test_whatever_the_hint_suggests_would_do(name: str) -> None:
    hint = ""
    try:
        validate_name(name, "guest name")
    except InvalidName as error:
        hint = error.hint or "no hint"
    suggestion = hint.partition("; '")[2].removesuffix("' would do")
    assert hint != "no hint"
    assert not suggestion or validate_name(suggestion, "guest name")


def test_socket_path_limit_counts_bytes() -> None:
    assert check_socket_path("/" + "a" * 106)
    with pytest.raises(ConfigError, match="108 bytes"):
        check_socket_path("/" + "a" * 107)
    with pytest.raises(ConfigError, match="109 bytes"):
        check_socket_path("/" + "é" * 54)


@pytest.mark.parametrize("path", ["qmp.sock", "", "/run/a\0b"])
def test_socket_path_must_be_absolute(path: str) -> None:
    with pytest.raises(ConfigError):
        check_socket_path(path)
