"""Messages: the golden payloads stay readable for ever, and nothing that arrives can do harm."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmp_migrate.bus.messages.codec import MAX_DEPTH, MAX_PAYLOAD_BYTES, decode, encode
from qmp_migrate.bus.messages.field_types import rfc3339
from qmp_migrate.bus.messages.registry import MODELS, HostStatus, HostVm, MigrationEvent, MigrationProgress
from qmp_migrate.bus.messages.topics import Kind, Topics
from qmp_migrate.errors import BusError
from tests.support.data.golden_messages import GOLDEN, golden, golden_of

PAYLOADS = sorted(GOLDEN.glob("*.json"))
TOPICS = Topics()
STATUS_TOPIC = TOPICS.host_status("a")


def topic_of(kind: Kind, document: dict[str, Any]) -> str:
    owner = {"host.": document.get("host"), "migra": document.get("id"), "contr": document.get("controller")}
    if kind is Kind.HOST_VM:
        return TOPICS.host_vm(document["host"], document["vm"])
    if kind is Kind.HOST_TOKEN:
        return TOPICS.host_token(document["host"], document["migration"])
    if kind is Kind.HOST_EVENT:
        return TOPICS.host_event("a")
    if kind is Kind.MIGRATION_EVENT:
        return TOPICS.migration_event("m-1")
    return f"{TOPICS.root}/{kind.replace('.', f'/{owner[kind[:5]]}/')}"


def status(**changes: Any) -> bytes:
    return json.dumps({**golden("host.status-1.0"), **changes}).encode()


@pytest.mark.parametrize("path", PAYLOADS, ids=lambda path: path.stem)
def test_a_golden_payload_reads_and_writes_unchanged(path: Path) -> None:
    document = json.loads(path.read_text())
    kind = Kind(document["schema"].partition("/")[0])
    _, message = decode(TOPICS, topic_of(kind, document), path.read_bytes())
    assert message is not None
    assert type(message) is MODELS[kind]
    again = json.loads(encode(message))
    assert {name: again[name] for name in document} == document
    if document["schema"] == MODELS[kind].model_fields["schema_id"].default:
        assert again == document


def test_every_schema_that_is_written_has_a_golden_payload_with_all_its_fields() -> None:
    stems = {path.stem for path in PAYLOADS}
    for kind, model in MODELS.items():
        schema = model.model_fields["schema_id"].default
        assert schema.startswith(f"{kind}/")
        name = schema.replace("/", "-")
        assert name in stems, (
            f"write tests/data/bus_messages/{name}.json: a schema was changed without raising its version"
        )
        fields = {field.alias or key for key, field in model.model_fields.items()}
        assert set(golden(name)) == fields


def test_a_newer_minor_with_unknown_fields_is_read() -> None:
    payload = status(schema="host.status/1.9", colour="blue", nested={"a": [1, {"b": None}]})
    _, message = decode(TOPICS, STATUS_TOPIC, payload)
    assert isinstance(message, HostStatus)
    assert (message.state, message.schema_id) == ("ready", "host.status/1.9")


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (status(schema="host.status/2.0"), "bus_other_schema"),
        (status(schema="host.vm/1.0"), "bus_other_schema"),
        (status(schema="host.status"), "bus_no_schema"),
        (status(schema=7), "bus_no_schema"),
        (b"[]", "bus_no_schema"),
        (b"null", "bus_no_schema"),
        (b"{", "bus_not_json"),
        (b'{"schema":"host.status/1.0","x":NaN}', "bus_not_json"),
        (b"\xff\xfe", "bus_not_json"),
        (b"[" * 60_000, "bus_not_json"),
        (status(x=json.loads("[" * MAX_DEPTH + "]" * MAX_DEPTH)), "bus_not_json"),
        (b" " * (MAX_PAYLOAD_BYTES + 1), "bus_too_large"),
        (status(host="b"), "bus_wrong_speaker"),
        (status(host="a/b"), "bus_bad_field"),
        (status(state="excellent"), "bus_bad_field"),
        (status(interval_s="5"), "bus_bad_field"),
        (status(interval_s=-1), "bus_bad_field"),
        (status(interval_s=1e300), "bus_bad_field"),
        (status(at=1_700_000_000), "bus_bad_field"),
        (status(at="20261123"), "bus_bad_field"),
        (status(at="2026-11-23T18:02:03"), "bus_bad_field"),
        (status(at="0001-01-01T00:00:00+14:00"), "bus_bad_field"),
        (status(session="x"), "bus_bad_field"),
        (b'{"schema":"host.status/1.0"}', "bus_bad_field"),
    ],
)
def test_what_is_refused_says_why(payload: bytes, code: str) -> None:
    with pytest.raises(BusError) as refused:
        decode(TOPICS, STATUS_TOPIC, payload)
    assert refused.value.code == code
    assert len(refused.value.message) < 600
    assert refused.value.hint


def test_a_guest_speaks_only_on_its_own_topic() -> None:
    payload = json.dumps(golden("host.vm-1.0")).encode()
    with pytest.raises(BusError) as refused:
        decode(TOPICS, TOPICS.host_vm("a", "web2"), payload)
    assert refused.value.code == "bus_wrong_speaker"


def test_an_empty_payload_means_cleared_and_a_strange_topic_is_refused() -> None:
    address, message = decode(TOPICS, TOPICS.host_vm("a", "web1"), b"")
    assert (address.kind, address.vm, message) == (Kind.HOST_VM, "web1", None)
    with pytest.raises(BusError) as refused:
        decode(TOPICS, "elsewhere/host/a/status", b"")
    assert refused.value.code == "bus_topic"


def test_words_that_a_later_version_adds_are_no_error() -> None:
    document = golden("host.vm-1.0") | {"runstate": "dreaming", "migration_status": "postcopy-recover-setup"}
    _, message = decode(TOPICS, TOPICS.host_vm("a", "web1"), json.dumps(document).encode())
    assert isinstance(message, HostVm)
    assert message.runstate == "dreaming"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def test_progress_of_an_older_writer_is_read() -> None:
    older = golden("migration.progress-1.1") | {"schema": "migration.progress/1.0"}
    del older["disk_transferred_bytes"], older["disk_total_bytes"]
    _, message = decode(TOPICS, topic_of(Kind.MIGRATION_PROGRESS, older), json.dumps(older).encode())
    assert isinstance(message, MigrationProgress)
    assert (message.disk_transferred_bytes, message.disk_total_bytes) == (0, 0)


@given(st.data())
def test_no_payload_raises_anything_but_our_error(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(list(Kind)))
    document = golden_of(kind)
    topic = topic_of(kind, document)
    for key in data.draw(st.lists(st.sampled_from(sorted(document)), max_size=3, unique=True)):
        if data.draw(st.booleans()):
            document[key] = data.draw(json_values)
        else:
            del document[key]
    payload = bytearray(json.dumps(document).encode())
    for _ in range(data.draw(st.integers(0, 2))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    try:
        _, message = decode(TOPICS, topic, bytes(payload))
    except BusError:
        return
    assert message is not None
    assert decode(TOPICS, topic, encode(message))[1] == message


@given(st.binary(max_size=300))
def test_garbage_is_refused(garbage: bytes) -> None:
    if garbage:
        with pytest.raises(BusError):
            decode(TOPICS, STATUS_TOPIC, garbage)


def test_times_are_written_in_utc_with_milliseconds() -> None:
    east = datetime(2026, 11, 23, 20, 2, 3, 123_999, timezone(timedelta(hours=2)))
    assert rfc3339(east) == "2026-11-23T18:02:03.123Z"
    message = HostStatus.model_validate({**golden("host.status-1.0"), "at": "2026-11-23T20:02:03.1239+02:00"})
    assert message.at == datetime(2026, 11, 23, 18, 2, 3, 123_000, UTC)
    assert b'"at":"2026-11-23T18:02:03.123Z"' in encode(message)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ({"text": "x" * MAX_PAYLOAD_BYTES}, "bus_too_large"),
        ({"half": "\ud800"}, "bus_bad_field"),
        ({"o": object()}, "bus_bad_field"),
    ],
)
def test_what_cannot_be_written_is_refused(data: dict[str, Any], code: str) -> None:
    event = MigrationEvent.model_validate(golden("migration.event-1.0")).model_copy(update={"data": data})
    with pytest.raises(BusError) as refused:
        encode(event)
    assert refused.value.code == code
