"""The contract: schemas fit the golden payloads of every version, and a change that breaks readers is noticed."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from qmp_migrate.bus.messages.registry import MODELS
from qmp_migrate.bus.messages.schemas import ADDRESSES, asyncapi, breaking, file_name, json_schema, schema_id
from qmp_migrate.bus.messages.topics import DEFAULT_ROOT, Kind, Topics
from tests import ROOT
from tests.support.data.golden_messages import GOLDEN

SCHEMAS = ROOT / "docs" / "generated" / "schemas"
PAYLOADS = sorted(GOLDEN.glob("*-*.json"))


def published(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((SCHEMAS / name).read_text())
    return document


@pytest.mark.parametrize("path", PAYLOADS, ids=lambda path: path.stem)
def test_a_golden_payload_is_valid_by_the_schema_of_its_version_and_by_todays(path: Path) -> None:
    payload = json.loads(path.read_text())
    kind = Kind(payload["schema"].partition("/")[0])
    for schema in (published(path.name), json_schema(kind)):
        jsonschema.Draft202012Validator.check_schema(schema)
        jsonschema.Draft202012Validator(schema).validate(payload)


@pytest.mark.parametrize("path", sorted(SCHEMAS.glob("*.json")), ids=lambda path: path.stem)
def test_no_change_breaks_what_was_published_of_the_same_major(path: Path) -> None:
    name, _, version = path.stem.rpartition("-")
    kind = Kind(name)
    today = schema_id(kind).partition("/")[2]
    if version.partition(".")[0] == today.partition(".")[0]:
        assert breaking(published(path.name), json_schema(kind)) == [], "raise the MAJOR of this message"


def _vm() -> dict[str, Any]:
    return copy.deepcopy(json_schema(Kind.HOST_VM))


def _removed(s: dict[str, Any]) -> None:
    del s["properties"]["uuid"]
    s["required"].remove("uuid")


def _retyped(s: dict[str, Any]) -> None:
    s["properties"]["pid"]["type"] = "string"


def _narrowed(s: dict[str, Any]) -> None:
    s["properties"]["role"]["enum"].remove("source")


def _never_null(s: dict[str, Any]) -> None:
    s["properties"]["vcpus"] = {"type": "integer"}


def _now_required(s: dict[str, Any]) -> None:
    s["required"].append("origin")


def _left_out(s: dict[str, Any]) -> None:
    s["required"].remove("pid")


@pytest.mark.parametrize("change", [_removed, _retyped, _narrowed, _never_null, _now_required, _left_out])
def test_what_breaks_a_reader_is_seen(change: Any) -> None:
    changed = _vm()
    change(changed)
    assert breaking(json_schema(Kind.HOST_VM), changed)


def test_a_new_optional_field_breaks_nobody() -> None:
    changed = _vm()
    changed["properties"]["fresh"] = {"type": "string", "default": ""}
    assert breaking(json_schema(Kind.HOST_VM), changed) == []


def test_breaking_looks_into_parts() -> None:
    changed = copy.deepcopy(json_schema(Kind.HOST_LOAD))
    del changed["$defs"]["GuestLoad"]["properties"]["resident_bytes"]
    assert any("resident_bytes" in line for line in breaking(json_schema(Kind.HOST_LOAD), changed))


@pytest.mark.parametrize("kind", list(Kind), ids=str)
def test_every_field_is_described(kind: Kind) -> None:
    schema = json_schema(kind)
    for name, definition in [(kind.value, schema), *schema.get("$defs", {}).items()]:
        for field, told in definition["properties"].items():
            assert told.get("description"), f"{name}.{field}"


def test_every_message_names_its_topic_and_has_a_file() -> None:
    assert set(ADDRESSES) == set(Kind) == set(MODELS)
    names = {"host": "a", "vm": "web1", "migration": "m-1", "controller": "c"}
    for kind, address in ADDRESSES.items():
        parsed = Topics().parse(f"{DEFAULT_ROOT}/{address.format(**names)}")
        assert parsed is not None
        assert parsed.kind is kind
        assert (SCHEMAS / file_name(kind)).is_file()


def test_asyncapi_hangs_together() -> None:
    document = asyncapi("1")
    assert document["asyncapi"] == "3.0.0"
    for reference in _references(document):
        found: Any = document
        for word in reference.removeprefix("#/").split("/"):
            found = found[word]
    assert len(document["channels"]) == len(document["operations"]) == len(Kind)
    for channel in document["channels"].values():
        for parameter in channel["parameters"]:
            assert f"{{{parameter}}}" in channel["address"]


def test_asyncapi_is_what_its_authors_call_one() -> None:
    official = json.loads((ROOT / "tests" / "data" / "asyncapi-3.0.0.json").read_text())
    validator = jsonschema.Draft7Validator(official)
    document = asyncapi("1")
    validator.validate(document)
    document["operations"]["receiveHostVm"]["action"] = "hear"
    assert not validator.is_valid(document), "and it can fail"


def _references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if "$ref" in value else []
        return own + [each for inner in value.values() for each in _references(inner)]
    return [each for inner in value for each in _references(inner)] if isinstance(value, list) else []
