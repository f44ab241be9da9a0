"""What a subscriber sees of a real migration: agents and controller over the lab's broker."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from typing import Any

from tests.support.real.lab import Guest, Lab, wait_for


@contextlib.contextmanager
def following(lab: Lab, *words: str) -> Iterator[list[dict[str, Any]]]:
    """Run ``qmp-migrate events --json`` for the length of the block; what it prints, as it comes."""
    process = lab.popen("events", "--json", *words)
    heard: list[dict[str, Any]] = []

    def read() -> None:
        assert process.stdout is not None
        for text in process.stdout:
            heard.append(json.loads(text))

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield heard
    finally:
        process.terminate()
        process.communicate(timeout=20)
        thread.join(20)


def state_of(heard: list[dict[str, Any]], ending: str) -> dict[str, Any] | None:
    """The latest state on a topic; None where it was cleared or never told."""
    told = [news["message"] for news in heard if news["topic"].endswith(ending)]
    return told[-1] if told else None


def test_a_subscriber_follows_a_migration_from_both_hosts_and_the_controller(lab: Lab) -> None:
    with following(lab) as heard, lab.guest() as guest:
        at_a, at_b = f"host/a/vm/{guest.name}", f"host/b/vm/{guest.name}"
        wait_for(lambda: (state_of(heard, at_a) or {}).get("runstate") == "running", 20)
        assert wait_for(lambda: state_of(heard, "host/a/status"), 20)["state"] == "ready"
        assert wait_for(lambda: state_of(heard, "host/b/info"), 20)["schema"].startswith("host.info/1.")

        result = lab.cli("migrate", guest.name, "--to", "b", "--bandwidth", "10MiB", "--json").doc

        state = f"migration/{result['id']}/state"
        wait_for(lambda: (state_of(heard, state) or {}).get("outcome") == "completed", 20)
        wait_for(lambda: (state_of(heard, at_b) or {}).get("role") == "idle", 20)
        wait_for(lambda: any(n["topic"].endswith(at_a) and n["message"] is None for n in heard), 20)
        final = state_of(heard, state)
        assert final is not None
        assert (final["phase"], final["owner"], final["vm"]) == ("done", "destination", guest.name)
        phases = [n["message"]["phase"] for n in heard if n["topic"].endswith(state)]
        assert phases[0] == "preflight"
        assert phases[-1] == "done"
        progress = [n["message"] for n in heard if n["topic"].endswith(f"{result['id']}/progress")]
        percents = [p["percent"] for p in progress]
        assert len(percents) > 1
        assert percents == sorted(percents), "progress never goes back"
        kinds = [n["message"]["type"].rpartition(".")[2] for n in heard if n["topic"].endswith(f"{result['id']}/event")]
        for kind in ("switchover", "committed", "done"):
            assert kind in kinds, kinds
        roles = {n["message"]["role"] for n in heard if n["topic"].endswith(at_a) and n["message"]}
        assert {"idle", "source"} <= roles, "the agent saw it leave"
        incoming = {n["message"]["role"] for n in heard if n["topic"].endswith(at_b) and n["message"]}
        assert {"incoming", "idle"} <= incoming, "and the other one saw it come"
        names = [n["message"]["type"].rpartition(".")[2] for n in heard if n["topic"].endswith("host/b/event")]
        assert "RESUME" in names
        assert not any(n["missed"] for n in heard)


def test_a_late_subscriber_sees_how_things_are(lab: Lab, guest: Guest) -> None:
    with following(lab, "--vm", guest.name) as heard:  # the agent has told of it: who comes now is late
        wait_for(lambda: state_of(heard, f"host/a/vm/{guest.name}"), 20)
    with following(lab, "--vm", guest.name) as heard:
        told = wait_for(lambda: state_of(heard, f"host/a/vm/{guest.name}"), 20)
        assert told["runstate"] == "running"
        assert any(news["retained"] for news in heard)
