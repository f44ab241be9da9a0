"""Which QMP the relay passes on: the controller's, written anew."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hostagent.relay import qmp_filter
from hostagent.relay.argument_rules import Refused
from hostagent.relay.settings import Allowed
from tests.support.data.relay_requests import ANY

INET = {"transport": "socket", "type": "inet", "host": "::1", "port": "1"}


EXEC = {"transport": "exec", "args": ["id"]}


def said(allowed: Allowed, **command: Any) -> bytes:
    return qmp_filter.checked(json.dumps(command).encode(), allowed)


@pytest.mark.parametrize(
    "command",
    [
        {"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}, "id": "1"},
        {"execute": "query-status", "id": 7},
        {"execute": "migrate", "arguments": {"uri": "tcp:10.0.0.2:49152"}},
        {"execute": "migrate", "arguments": {"channels": [{"channel-type": "main", "addr": INET}]}},
        {"execute": "migrate-incoming", "arguments": {"uri": "tcp:[::]:0,to=100"}},
        {"exec-oob": "migrate-pause"},
        {"execute": "set-vcpu-dirty-limit", "arguments": {"dirty-rate": 40}},
        {"execute": "cancel-vcpu-dirty-limit"},
        {"execute": "migrate-set-parameters", "arguments": {"max-bandwidth": 1, "downtime-limit": 300, "tls-creds": "tls0"}},
        {"execute": "human-monitor-command", "arguments": {"command-line": "info network"}},
    ],
)  # fmt: skip
def test_what_the_controller_says_to_a_monitor_passes(command: dict[str, Any], allowed: Allowed) -> None:
    assert json.loads(said(allowed, **command)) == command


@pytest.mark.parametrize(
    "command",
    [
        {"execute": "migrate", "arguments": {"uri": "exec:id"}},
        {"execute": "migrate", "arguments": {"uri": "file:/etc/x"}},
        {"execute": "migrate", "arguments": {"uri": "unix:/tmp/x"}},
        {"execute": "migrate", "arguments": {"uri": "tcp:a:1", "channels": []}},
        {"execute": "migrate", "arguments": {"channels": [{"channel-type": "main", "addr": EXEC}]}},
        {"execute": "migrate-incoming", "arguments": {"uri": "exec:id"}},
        {"execute": "migrate-set-parameters", "arguments": {"cpr-exec-command": ["id"]}},
        {"execute": "migrate-set-parameters", "arguments": {"mode": "cpr-exec"}},
        {"execute": "human-monitor-command", "arguments": {"command-line": "info network\nmigrate exec:id"}},
        {"execute": "human-monitor-command", "arguments": {"command-line": "savevm x"}},
        {"execute": "human-monitor-command", "arguments": {"command-line": ["info network"]}},
        {"execute": "screendump", "arguments": {"filename": "/tmp/x"}},
        {"execute": "pmemsave", "arguments": {"val": 0, "size": 1, "filename": "/tmp/x"}},
        {"execute": "dump-guest-memory", "arguments": {"paging": False, "protocol": "file:/tmp/x"}},
        {"execute": "chardev-add", "arguments": {"id": "c", "backend": {"type": "file", "data": {"out": "/tmp/x"}}}},
        {"execute": "blockdev-add", "arguments": {"driver": "file", "filename": "/etc/shadow", "node-name": "a"}},
        {"execute": "object-add", "arguments": {"qom-type": "secret", "id": "s", "file": "/etc/shadow"}},
        {"execute": "object-add", "arguments": {"qom-type": "tls-creds-psk", "id": "s", "dir": "/etc", "endpoint": "client"}},
        {"execute": "device_add", "arguments": {"driver": "vfio-pci", "host": "01:00.0"}},
        {"execute": "netdev_add", "arguments": {"type": "tap", "id": "n", "script": "/tmp/x"}},
        {"execute": "getfd", "arguments": {"fdname": "x"}},
        {"execute": "qom-set", "arguments": {"path": "/", "property": "x", "value": 1}},
        {"execute": "query-status", "exec-oob": "quit"},
        {"execute": "quit", "arguments": {"x": 1}},
        {"execute": "xen-save-devices-state", "arguments": {"filename": "/x"}},
        {"execute": ["quit"]},
        {"execute": "quit", "more": 1},
        {},
    ],
)  # fmt: skip
def test_what_reaches_beyond_the_guest_does_not(command: dict[str, Any], allowed: Allowed) -> None:
    with pytest.raises(Refused):
        said(allowed, **command)


@pytest.mark.parametrize(
    "line",
    [
        b'{"execute":"query-status","execute":"quit"}',
        b'{"execute":"migrate","arguments":{"uri":"tcp:a:1","uri":"exec:id"}}',
        b'{"execute":"quit"}{"execute":"quit"}',
        b"[" * 10_000,
        b'["quit"]',
        b"quit",
        b"\xff",
        b'{"execute":"quit"',
        b'{"execute":"quit","id":1e999}',
        b'{"execute":"quit","id":-Infinity}',
        b'{"execute":"quit","id":NaN}',
        b'{"execute":"quit","id":[1]}',
        b'{"execute":"quit","id":"' + b"x" * 200 + b'"}',
    ],
)
def test_lines_that_two_would_read_differently_are_refused(line: bytes, allowed: Allowed) -> None:
    with pytest.raises(Refused):
        qmp_filter.checked(line, allowed)


@pytest.mark.timeout(900)
@settings(max_examples=1500, deadline=None)
@given(st.binary(max_size=300))
def test_no_bytes_break_the_look_at_qmp(line: bytes) -> None:
    try:
        passed = qmp_filter.checked(line, ANY)
    except Refused:
        return
    assert json.loads(passed)


def test_a_stream_is_cut_into_objects_wherever_it_is_cut_by_the_network() -> None:
    commands_ = [b'{"execute":"a","arguments":{"x":"}]\\"{"}}', b'{"execute":"b"}', b'{"id":[1,{"y":"\\\\"}]}']
    stream = b"\r\n" + commands_[0] + commands_[1] + b" \n" + commands_[2]
    for size in (1, 2, 3, 7, len(stream)):
        objects, found = qmp_filter.Objects(), []
        for at in range(0, len(stream), size):
            found += objects.feed(stream[at : at + size])
        assert found == commands_
    with pytest.raises(Refused):
        qmp_filter.Objects().feed(b"x")
    with pytest.raises(Refused):
        qmp_filter.Objects().feed(b'{"' + b"x" * (2 << 20))


@pytest.mark.parametrize("depth", [33, 1023, 1025, 5000])
def test_what_is_nested_deeper_than_qemu_reads_is_refused_before_it_ends(depth: int) -> None:
    """QEMU gives up at 1024 levels, and takes what follows for new commands."""
    inner = b'{"execute":"migrate","arguments":{"uri":"exec:id"}}'
    with pytest.raises(Refused, match="nested"):
        qmp_filter.Objects().feed(b'{"execute":"query-status","id":' + b"[" * depth + inner + b"]" * depth + b"}")
    assert len(qmp_filter.Objects().feed(b'{"execute":"x","id":' + b"[" * 20 + b"]" * 20 + b"}")) == 1


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


MEMBERS: dict[str, frozenset[str]] = {
    **qmp_filter.KEYS,
    "migrate": frozenset({"uri", "channels"}),
    "migrate-incoming": frozenset({"uri", "channels"}),
    "migrate-recover": frozenset({"uri"}),
    "migrate-set-parameters": qmp_filter.PARAMETERS,
    "human-monitor-command": frozenset({"command-line"}),
    "object-add": qmp_filter.TLS,
    "query-status": frozenset(),
}


ASKED = st.sampled_from(sorted(MEMBERS)).flatmap(
    lambda name: st.tuples(
        st.just(name),
        st.dictionaries(st.sampled_from(sorted(MEMBERS[name])), VALUES, max_size=4) if MEMBERS[name] else st.just({}),
    )
)


@pytest.mark.timeout(900)
@settings(max_examples=1500, deadline=None)
@given(ASKED, st.text(max_size=8) | st.integers(0, 1 << 60))
def test_whatever_the_values_are_it_is_passed_on_as_it_is_or_refused(
    asked: tuple[str, dict[str, Any]], identifier: Any
) -> None:
    command = {"execute": asked[0], "arguments": asked[1], "id": identifier}
    try:
        line = qmp_filter.checked(json.dumps(command).encode(), ANY)
    except Refused:
        return
    assert json.loads(line) == command
    assert line.count(b"\n") == 1
