"""A forecast of a real guest over a real link, and what came of it."""

from __future__ import annotations

from tests.support.real.lab import Lab, qemus


def test_a_forecast_touches_nothing_and_stands_beside_the_fact_later(lab: Lab) -> None:
    with lab.guest(append="qm.rate=10 qm.ws=64 qm.tick=20") as guest:
        limits = ("--bandwidth", "40MiB", "--json")
        before = qemus(guest.name)
        told = lab.cli("forecast", guest.name, "--to", "b", *limits).doc
        assert told["schema"] == "migration.forecast/1"
        assert told["converges"] is True
        assert told["measured"]["probe"]["encrypted"] is True
        assert (
            1 << 20 < told["measured"]["dirty_bytes_per_s"] < 25 << 20
        )  # on a busy machine it may write less than it would
        assert 64 << 20 < told["measured"]["present_bytes"] < 256 << 20
        assert qemus(guest.name) == before
        for host in ("a", "b"):
            assert not list(lab.run_dir(host).glob(".p*")), "what the probe needed is gone"

        result = lab.cli("migrate", guest.name, "--to", "b", *limits).doc
        assert result["forecast"]["total_ms"] == told["total_ms"]
        assert isinstance(result["forecast"]["error_percent"], float)
        assert abs(told["transferred_bytes"] - result["transferred_bytes"]) < result["transferred_bytes"] / 2
        guest.wait_survived("b")
