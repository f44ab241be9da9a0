"""Hooks on real hosts behind real sshd: at each point, in the pause, and when they fail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.real.lab import Guest, Lab, qemus

POINTS = ("before", "pre-switchover", "after-commit", "rolled-back", "done")


def with_hooks(lab: Lab, *hooks: dict[str, Any]) -> Path:
    lines = []
    for hook in hooks:
        lines += ["[[hook]]", *(f"{key} = {json.dumps(value)}" for key, value in hook.items())]
    path = lab.config()
    path.write_text("\n".join([path.read_text(), *lines]) + "\n")
    return path


def test_each_point_has_its_moment_and_a_hook_in_the_pause_costs_blackout(lab: Lab, guest: Guest) -> None:
    log = lab.files / f"{guest.name}.hooks"
    script = f'echo "$QMP_MIGRATE_AT $QMP_MIGRATE_SOURCE_ADDRESS $0 $(head -c 20)" >>{log}; echo said'
    slow = {"at": "pre-switchover", "where": "source", "command": ["/bin/sleep", "1"], "required": True}
    hooks = [
        {"at": at, "where": where, "command": ["/bin/sh", "-c", script, where]}
        for at in POINTS
        for where in ("controller", "source", "destination")
    ]
    stuck = {"at": "done", "where": "destination", "command": ["/bin/sleep", "60"], "timeout": "300ms"}
    config = with_hooks(lab, *hooks, slow, stuck)

    result = lab.cli("migrate", guest.name, "--to", "b", "--json", config=config).doc

    assert (result["outcome"], result["owner"]) == ("completed", "destination")
    assert 1000 <= result["blackout_ms"] < 10_000
    told = [line.split() for line in log.read_text().splitlines()]
    assert [line[0] for line in told] == [at for at in POINTS if at != "rolled-back" for _ in range(3)]
    assert [line[2] for line in told[:3]] == ["controller", "source", "destination"]
    assert all(line[1] == "127.0.0.2" and line[3] == '{"schema":' for line in told), told
    ran = {(run["at"], run["where"], run["outcome"]) for run in result["hooks"]}
    assert ("pre-switchover", "source", "ok") in ran
    assert ("done", "destination", "timeout") in ran
    assert any("its time was over" in warning for warning in result["warnings"])
    assert all(run["output"] == "said\n" for run in result["hooks"] if run["command"][0] == "/bin/sh")
    guest.wait_survived("b")
    log.unlink()


def test_a_required_hook_that_fails_in_the_pause_takes_the_guest_back(lab: Lab, guest: Guest) -> None:
    log = lab.files / f"{guest.name}.hooks"
    config = with_hooks(
        lab,
        {"at": "before", "command": ["/bin/false"]},
        {
            "at": "pre-switchover",
            "where": "destination",
            "command": ["/bin/sh", "-c", "echo the switch says no >&2; exit 7"],
            "required": True,
        },
        {"at": "after-commit", "command": ["/usr/bin/touch", f"{log}.wrong"]},
        {"at": "rolled-back", "where": "source", "command": ["/usr/bin/touch", str(log)]},
    )

    ran = lab.cli("migrate", guest.name, "--to", "b", "--json", config=config, code=4)

    assert (ran.doc["outcome"], ran.doc["owner"]) == ("rolled_back", "source")
    assert ran.doc["error"]["code"] == "hook_failed"
    assert "status 7: the switch says no" in ran.doc["error"]["message"]
    assert [(run["at"], run["outcome"]) for run in ran.doc["hooks"]] == [
        ("before", "failed"),
        ("pre-switchover", "failed"),
        ("rolled-back", "ok"),
    ]
    log.unlink()
    assert not Path(f"{log}.wrong").exists()
    assert qemus(guest.name) == [guest.pid("a")]
    ticks = guest.verdict("a").last_tick
    guest.wait("a", lambda v: v.last_tick > ticks + 20)
