"""The bench of the bus with few agents: nothing lost, everything measured. `make bench SET=bus` for the real thing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.real.brokers import find_mosquitto

pytestmark = pytest.mark.skipif(
    find_mosquitto() is None, reason="mosquitto is not installed: apt-get install mosquitto"
)


def test_few_agents_lose_nothing_and_everything_is_measured(tmp_path: Path) -> None:
    out = tmp_path / "bus.json"
    words = [
        "--agents",
        "20",
        "--guests",
        "5",
        "--migrations",
        "10",
        "--seconds",
        "2",
        "--real-guests",
        "0",
        "--out",
        str(out),
    ]
    ran = subprocess.run([sys.executable, "-m", "bench.bus", *words], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    report = json.loads(out.read_text())
    assert (report["schema"], report["lost_states"], report["refused"], report["conflicts"]) == ("bench.bus/1", 0, 0, 0)
    assert report["compared"] == 90  # the others have lost their connection, in the test of wills
    assert report["latency"]["migration.progress"]["count"] >= 40
    assert "| guest states lost | 0 of 90 |" in ran.stdout


@pytest.mark.full
def test_an_agent_of_many_guests_stays_small(tmp_path: Path) -> None:
    """Its memory, and how much it does while nothing happens: loosely, since machines differ."""
    from bench.bus.real_agent import measure

    figures = measure(20, 3.0, lambda _: None, warm_s=5.0)
    assert figures["known"] == 20
    assert figures["rss_mb"] < 60
    assert figures["cpu_percent"] < 10
