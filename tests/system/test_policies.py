"""A guest that dirties more than the link carries, and a migration that is retuned on the way, on real QEMU."""

from __future__ import annotations

import json

from tests.support.real.lab import Lab
from tests.support.real.lab_journal import wait_for_phase


def test_finish_ends_where_gentle_would_give_up(lab: Lab) -> None:
    with lab.guest(append="qm.rate=100 qm.ws=48 qm.tick=10") as guest:
        words = (
            "migrate",
            guest.name,
            "--to",
            "b",
            "--bandwidth",
            "15MiB",
            "--policy",
            "finish",
            "--no-postcopy",
            "--json",
        )
        result = lab.cli(*words).doc
        assert (result["outcome"], result["owner"]) == ("completed", "destination")
        assert any("the guest is stopped" in step for step in result["steps"]), result["steps"]
        guest.wait_survived("b")


def test_another_process_retunes_it_and_is_told_what_is_in_force(lab: Lab) -> None:
    with lab.guest(append="qm.rate=0 qm.ws=64 qm.tick=10") as guest:
        words = ("migrate", guest.name, "--to", "b", "--bandwidth", "4MiB", "--policy", "gentle", "--json")
        process = lab.popen(*words)
        record = wait_for_phase(lab, guest, "copying")
        refused = lab.cli("tune", record["id"], "--throttle", "30%", code=2)
        assert "begun with the policy gentle" in refused.err
        tuned = lab.cli("tune", record["id"], "--bandwidth", "1GiB", "--downtime-limit", "1s", "--json").doc["in_force"]
        assert (tuned["max-bandwidth"], tuned["allowed-downtime-limit"]) == (1 << 30, 1000)
        out, err = process.communicate(timeout=60)
        result = json.loads(out)
        assert result["outcome"] == "completed", err
        assert any("retuned" in step for step in result["steps"])
        over = lab.cli("tune", record["id"], "--policy", "finish", code=2)
        assert "is over: completed" in over.err
        guest.wait_survived("b")
