"""Metrics: names, units, bounds; what comes out is what Prometheus reads."""

from __future__ import annotations

import asyncio
import json
import re
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from hostagent.telemetry.prometheus import AgentCollector
from qmp_migrate.bus.messages.registry import HostLoad, HostVm
from qmp_migrate.errors import ConfigError, UsageError
from qmp_migrate.exposition import parse_listen, serving, text_of, write_textfile
from qmp_migrate.fleet.integrations.prometheus import MigrationCollector
from qmp_migrate.migration.journal.store import MigrationRecord
from qmp_migrate.migration.model.phases import Phase
from tests import ROOT
from tests.support.data.golden_messages import golden
from tests.support.real.brokers import free_port

DASHBOARD = ROOT / "docs" / "grafana" / "qmp-migrate.json"
RULES = ROOT / "docs" / "grafana" / "alerts.yml"


def agent_page(guests: int = 1) -> str:
    load = HostLoad.model_validate_json(json.dumps(golden("host.load-1.1")))
    vm = HostVm.model_validate_json(json.dumps(golden("host.vm-1.1")))
    states = [vm.model_copy(update={"vm": f"web{n}"}) for n in range(guests)]
    registry = CollectorRegistry(auto_describe=False)
    registry.register(AgentCollector("1.2", lambda: load, lambda: states, lambda: (True, 3, 1), lambda: 42))
    return text_of(registry).decode()


def record(outcome: str | None, phase: Phase = Phase.DONE, **result: Any) -> MigrationRecord:
    return MigrationRecord(
        "m-1",
        "web1",
        "a",
        "b",
        "live",
        phase,
        1,
        1,
        outcome,
        "destination",
        True,
        False,
        {},
        {},
        result or None,
        0.0,
        0.0,
    )


def controller_page(*records: MigrationRecord) -> str:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(MigrationCollector(records))
    return text_of(registry).decode()


def values(page: str) -> dict[tuple[str, str], float]:
    return {
        (sample.name, ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def test_what_an_agent_tells() -> None:
    found = values(agent_page())
    assert found["qmp_migrate_host_cpu_busy_ratio", ""] == 0.125
    assert found["qmp_migrate_guest_cpu_cores", "vm=web1"] == 0.995
    assert found["qmp_migrate_guests", "origin=ours,runstate=running"] == 1
    assert found["qmp_migrate_host_pressure_ratio", "for=memory,who=some"] == 0.015
    assert found["qmp_migrate_host_pressure_seconds_total", "for=cpu,who=full"] == pytest.approx(12e-6)
    assert found["qmp_migrate_agent_bus_dropped_messages_total", ""] == 1
    assert ("qmp_migrate_host_pressure_ratio", "for=io,who=some") not in found


@pytest.mark.parametrize("page", [agent_page(), controller_page(record("completed", total_ms=1, blackout_ms=1.0))])
def test_names_and_texts_are_prometheus_own_way(page: str) -> None:
    for family in text_string_to_metric_families(page):
        assert re.fullmatch(r"qmp_migrate_[a-z0-9_]+", family.name)
        assert family.documentation.endswith(".") or "value is 1" in family.documentation
        assert not family.name.endswith(("_ms", "_percent", "_kb", "_total_total"))
        for sample in family.samples:
            assert not {"id", "migration", "session", "uuid"} & set(sample.labels)


def test_labels_are_bounded() -> None:
    page = agent_page(2000)
    assert len([line for line in page.splitlines() if line.startswith("qmp_migrate_guest_running{")]) == 300


def test_what_came_of_migrations() -> None:
    found = values(
        controller_page(
            record("completed", total_ms=3500, blackout_ms=26.3, transferred_bytes=1 << 28),
            record("completed", total_ms=90_000, blackout_ms=410.0, transferred_bytes=1 << 33),
            record("completed", total_ms=100, blackout_ms=0.0),
            record("rolled_back", Phase.ROLLED_BACK, total_ms=7),
            record(None, Phase.COPYING),
            record("unknown", Phase.PARKED),
        )
    )
    assert found["qmp_migrate_migrations_total", "mode=live,outcome=completed"] == 3
    assert found["qmp_migrate_migrations_total", "mode=live,outcome=rolled_back"] == 1
    assert (found["qmp_migrate_migrations_under_way", ""], found["qmp_migrate_migrations_parked", ""]) == (1, 1)
    assert found["qmp_migrate_migration_blackout_seconds_bucket", "le=0.03"] == 1
    assert found["qmp_migrate_migration_blackout_seconds_bucket", "le=0.5"] == 2
    assert found["qmp_migrate_migration_blackout_seconds_count", ""] == 2
    assert found["qmp_migrate_migration_duration_seconds_bucket", "le=120.0"] == 3
    assert found["qmp_migrate_migration_duration_seconds_sum", ""] == pytest.approx(93.6)
    assert found["qmp_migrate_migration_transferred_bytes_bucket", "le=+Inf"] == 3


def test_a_result_that_makes_no_sense_is_counted_as_nothing() -> None:
    found = values(controller_page(record("completed", total_ms="x", blackout_ms=-1, transferred_bytes=None)))
    assert found["qmp_migrate_migration_blackout_seconds_count", ""] == 0


def test_the_dashboard_and_the_alerts_ask_for_metrics_that_there_are() -> None:
    families = {name for name, _ in values(agent_page() + controller_page(record("completed", blackout_ms=1.0)))}
    asked = set(re.findall(r"\bqmp_migrate_[a-z0-9_]+", DASHBOARD.read_text() + RULES.read_text()))
    assert asked
    optional = {"qmp_migrate_guest_dirty_bytes_per_second"}
    assert asked - optional <= families
    dashboard = json.loads(DASHBOARD.read_text())
    assert dashboard["templating"]["list"][0]["type"] == "datasource"
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("127.0.0.1:9000", ("127.0.0.1", 9000)),
        (":9000", ("127.0.0.1", 9000)),
        ("127.0.0.2", ("127.0.0.2", 9177)),
        ("[::1]:9000", ("::1", 9000)),
        ("[::1]", ("::1", 9177)),
        ("::1", ("::1", 9177)),
        ("", ("127.0.0.1", 9177)),
    ],
)
def test_where_to_listen(text: str, place: tuple[str, int]) -> None:
    assert parse_listen(text) == place


@pytest.mark.parametrize("text", ["host:1", "127.0.0.1:0", "127.0.0.1:x", "1.2.3:4", "127.0.0.1:99999", "*:9177"])
def test_where_not(text: str) -> None:
    with pytest.raises(UsageError):
        parse_listen(text)


def test_a_textfile_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "qmp.prom"
    write_textfile(path, b"one\n")
    write_textfile(path, b"two\n")
    assert path.read_bytes() == b"two\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["qmp.prom"]
    with pytest.raises(ConfigError):
        write_textfile(tmp_path / "none" / "qmp.prom", b"")


async def _raw(port: int, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    try:
        return await asyncio.wait_for(reader.read(), 60)
    finally:
        writer.close()


async def test_the_endpoint_answers_what_it_is_for_and_turns_away_the_rest() -> None:
    port = free_port()
    async with serving("127.0.0.1", port, lambda: b"qmp 1\n"):
        url = f"http://127.0.0.1:{port}/metrics"

        def get() -> tuple[bytes, str]:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return answer.read(), answer.headers["Content-Type"]

        body, kind = await asyncio.to_thread(get)
        assert body == b"qmp 1\n"
        assert kind.startswith("text/plain; version=")
        assert (await _raw(port, b"GET / HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 404")
        assert (await _raw(port, b"POST /metrics HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 405")
        assert (await _raw(port, b"nonsense\r\n\r\n")).startswith(b"HTTP/1.1 400")
        assert (await _raw(port, b"GET /metrics HTTP/1.1\r\nX: " + b"a" * 20_000 + b"\r\n\r\n"))[:12] in (
            b"HTTP/1.1 431",
            b"",
        )
        assert (await _raw(port, b"HEAD /metrics HTTP/1.1\r\n\r\n")).endswith(b"\r\n\r\n")


async def test_connections_that_say_nothing_keep_nobody_out() -> None:
    port = free_port()
    async with serving("127.0.0.1", port, lambda: b"qmp 1\n", request_s=1.0):
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(40)]
        for reader, writer in silent:
            assert await asyncio.wait_for(reader.read(), 60) == b""
            writer.close()
        assert b"qmp 1" in await _raw(port, b"GET /metrics HTTP/1.1\r\n\r\n")


async def test_an_address_in_use_is_said() -> None:
    port = free_port()
    async with serving("127.0.0.1", port, lambda: b""):
        with pytest.raises(ConfigError, match="cannot listen"):
            async with serving("127.0.0.1", port, lambda: b""):
                pass
