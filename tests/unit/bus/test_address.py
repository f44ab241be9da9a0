"""Broker addresses: read completely, or refused with a hint, and never leaking a password."""

from __future__ import annotations

from pathlib import Path

import pytest
import trustme

from qmp_migrate.bus.client.address import BrokerAddress
from qmp_migrate.bus.client.backoff import MAX_DELAY_S, Outage
from qmp_migrate.errors import ConfigError


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("mqtt://broker.example", ("broker.example", 1883, "tcp", False)),
        ("mqtt://127.0.0.1:18831", ("127.0.0.1", 18831, "tcp", False)),
        ("mqtt://[::1]:1884/", ("::1", 1884, "tcp", False)),
        ("mqtts://broker.example", ("broker.example", 8883, "tcp", True)),
        ("ws://broker.example/bus", ("broker.example", 80, "websockets", False)),
        ("wss://broker.example:9443", ("broker.example", 9443, "websockets", True)),
    ],
)
def test_urls(url: str, expected: tuple[str, int, str, bool]) -> None:
    address = BrokerAddress.parse(url)
    assert (address.hostname, address.port, address.transport, address.tls is not None) == expected


@pytest.mark.parametrize(
    "url",
    [
        "",
        "broker:1883",
        "http://broker",
        "mqtt://",
        "mqtt://:1883",
        "mqtt://broker:0",
        "mqtt://broker:99999",
        "mqtt://broker:port",
        "mqtt://broker/path",
        "mqtt://broker?x=1",
        "mqtt://bro ker",
        "mqtt://broker\n",
        "mqtt://[::1",
    ],
)
def test_a_url_that_is_none_is_refused_with_an_example(url: str) -> None:
    with pytest.raises(ConfigError) as refused:
        BrokerAddress.parse(url)
    assert "mqtt" in (refused.value.hint or "")


def test_a_password_is_read_from_a_file_and_shown_nowhere(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("hush\nrest\n")
    address = BrokerAddress.parse("mqtt://user@broker", password_file=file)
    assert (address.username, address.password) == ("user", "hush")
    assert "hush" not in repr(address) + str(address)
    for url in ("mqtt://user:hush@broker", "http://user:hush@broker", "mqtt://user:hush@broker:99999"):
        with pytest.raises(ConfigError) as refused:
            BrokerAddress.parse(url)
        assert "hush" not in f"{refused.value}{refused.value.hint}"


def test_tls_files_are_checked_beforehand(tmp_path: Path) -> None:
    ca, client = trustme.CA(), trustme.CA().issue_cert("agent-a")
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    client.private_key_and_cert_chain_pem.write_to_path(tmp_path / "client.pem")
    address = BrokerAddress.parse("mqtts://broker", ca_file=tmp_path / "ca.pem", cert_file=tmp_path / "client.pem")
    assert address.tls is not None
    assert address.tls.check_hostname
    with pytest.raises(ConfigError, match="not encrypted"):
        BrokerAddress.parse("mqtt://broker", ca_file=tmp_path / "ca.pem")
    with pytest.raises(ConfigError, match="CA file"):
        BrokerAddress.parse("mqtts://broker", ca_file=tmp_path / "absent.pem")
    with pytest.raises(ConfigError, match="certificate"):
        BrokerAddress.parse("mqtts://broker", cert_file=tmp_path / "ca.pem")
    with pytest.raises(ConfigError, match="without cert_file"):
        BrokerAddress.parse("mqtts://broker", key_file=tmp_path / "client.pem")


def test_retries_become_rarer_and_quick_again_after_a_connection_that_lasted() -> None:
    outage = Outage("mqtt://broker")
    delays = [outage.began("refused", lasted_s=0) for _ in range(20)]
    assert 0.1 <= delays[0] <= 0.2
    assert MAX_DELAY_S / 2 <= delays[-1] <= MAX_DELAY_S
    assert max(delays) <= MAX_DELAY_S
    outage.ended()
    assert outage.began("lost", lasted_s=0.1) > 1, "a broker that flaps is not hammered"
    outage.ended()
    assert outage.began("lost", lasted_s=600) <= 0.2
