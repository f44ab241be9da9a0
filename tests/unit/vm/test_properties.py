"""QEMU's ``key=value`` lists and JSON: read alike, rewritten in place."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmp_migrate.errors import UsageError
from qmp_migrate.vm.commandline.properties import added, canonical, escape, read, rewrite, without

_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1, max_size=5), inner, max_size=3),
    max_leaves=8,
)
_object = st.dictionaries(st.text(min_size=1, max_size=5), _json, max_size=4)


@given(st.text(), st.sampled_from(["", "driver"]))
def test_rewriting_nothing_changes_nothing(text: str, implied: str) -> None:
    assert rewrite(text, lambda _key, value: value, implied=implied) == text


@given(st.lists(st.tuples(st.from_regex(r"[a-z][a-z.-]{0,6}", fullmatch=True), st.text(max_size=8)), min_size=1))
def test_values_with_any_commas_read_back(pairs: list[tuple[str, str]]) -> None:
    text = ",".join(f"{key}={escape(value)}" for key, value in pairs)
    assert list(read(text).items) == pairs


@given(_object, st.booleans(), st.booleans())
def test_json_keeps_its_style(value: dict[str, object], spaced: bool, ascii_only: bool) -> None:
    separators = (", ", ": ") if spaced else (",", ":")
    text = json.dumps(value, separators=separators, ensure_ascii=ascii_only)
    changed = rewrite(text, lambda _key, old: old + "!", takes_json=True)
    assert json.loads(changed) == _shouted(value)
    assert json.dumps(json.loads(changed), separators=separators, ensure_ascii=ascii_only) == changed
    assert rewrite(text, lambda _key, old: old, takes_json=True) == text


def _shouted(value: object) -> object:
    if isinstance(value, dict):
        return {key: _shouted(member) for key, member in value.items()}
    if isinstance(value, list):
        return [_shouted(member) for member in value]
    return value + "!" if isinstance(value, str) else value


@pytest.mark.parametrize(
    ("text", "implied", "items"),
    [
        ("qcow2,file=f0", "driver", [("driver", "qcow2"), ("file", "f0")]),
        ("driver=qcow2", "driver", [("driver", "qcow2")]),
        ("socket,server,nowait", "backend", [("backend", "socket"), ("server", "on"), ("nowait", "on")]),
        ("file=a,,b.img,if=none", "", [("file", "a,b.img"), ("if", "none")]),
        ("a,,,b=c", "x", [("x", "a,"), ("b", "c")]),
        ("file=x=y", "", [("file", "x=y")]),
        ("a,,b=c", "romfile", [("romfile", "a,b=c")]),
        ("", "driver", []),
        ("a=b,", "", [("a", "b")]),
        ("snapshot", "", [("snapshot", "on")]),
    ],
)
def test_reading(text: str, implied: str, items: list[tuple[str, str]]) -> None:
    assert list(read(text, implied=implied).items) == items


@pytest.mark.parametrize("text", ['{ "a":  "x" }', '{"a": "x","b":1}', '{"\\u0061":"x"}'])
def test_json_that_does_not_change_keeps_even_odd_spelling(text: str) -> None:
    assert rewrite(text, lambda _key, value: value, takes_json=True) == text
    assert '"y"' in rewrite(text, lambda _key, _value: "y", takes_json=True)


def test_nested_json_reads_like_dotted_keys() -> None:
    text = '{"driver":"qcow2","file":{"driver":"file","filename":"/a","locking":true},"l":[1,{"x":null,"y":"z"}]}'
    given = read(text, takes_json=True)
    assert given.get("file.filename") == "/a"
    assert given.flag("file.locking") is True
    assert given.get("l.0") == "1"
    assert given.get("l.1.y") == "z"
    assert given.get("l.1.x") is None


def test_json_is_text_where_an_option_does_not_take_it() -> None:
    assert read("{a}=b").get("{a}") == "b"


@pytest.mark.parametrize("text", ["{'driver':'file'}", '{"a":1', '{"a":1,"a":2}', "{" * 5000])
def test_bad_json_is_an_error_with_a_hint(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(text, takes_json=True)
    assert "double quotes" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("server", True),
        ("noserver", False),
        ("server=on", True),
        ("server=yes", True),
        ("server=off", False),
        ("server=auto", None),
        ("server=on,server=off", False),
        ("x=1", None),
    ],
)
def test_booleans(text: str, expected: bool | None) -> None:
    assert read(text).flag("server") is expected


def test_an_implied_value_that_gains_an_equals_sign_gets_its_key() -> None:
    """``-drive``-like text would otherwise read the new value as a key."""
    rewritten = rewrite("/a,x=y", lambda _key, value: value.replace("/a", "/b=c,d"), implied="file")
    assert rewritten == "file=/b=c,,d,x=y"
    assert read(rewritten, implied="file").get("file") == "/b=c,d"


def test_canonical_forgets_spelling_only() -> None:
    assert canonical('{ "b": 1, "a": "x"}', takes_json=True) == canonical('{"a":"x","b":1}', takes_json=True)
    assert canonical("b=1,a=x", takes_json=True) == "b=1,a=x"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("scsi-cd,id=c,drive=d", "scsi-cd,id=c"),
        ("drive=d,,e,id=c", "id=c"),
        ('{"driver":"scsi-cd","drive":"d"}', '{"driver":"scsi-cd"}'),
        ("scsi-cd,id=c", "scsi-cd,id=c"),
    ],
)
def test_properties_are_left_out_and_the_rest_keeps_its_spelling(text: str, left: str) -> None:
    assert without(text, frozenset({"drive"}), implied="driver", takes_json=True) == left


def test_properties_are_added_in_the_notation_that_is_there() -> None:
    assert added("e1000,id=n", {"addr": "0x4", "romfile": "a,b"}) == "e1000,id=n,addr=0x4,romfile=a,,b"
    assert added('{"driver": "e1000"}', {"lun": 1}, takes_json=True) == '{"driver": "e1000", "lun": 1}'
