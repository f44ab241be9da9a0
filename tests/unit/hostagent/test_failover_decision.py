"""Handing over without the controller: the two agents' decisions, one by one and in every order of events."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from hostagent.failover.decision import (
    Act,
    DestinationLook,
    SourceLook,
    at_destination,
    at_source,
    destination_guest,
    source_guest,
)
from qmp_migrate.bus.messages.handover_token import HostToken
from qmp_migrate.migration.ownership import decision
from qmp_migrate.migration.ownership.states import Action, Destination, Facts, Goal, Source
from tests.support.data.golden_messages import golden

BOTH = (False, True)
SOURCES = [
    SourceLook(*words)
    for words in itertools.product(
        BOTH, BOTH, BOTH, ("", "released", "ended"), ("completed", "runs", "other"), ("", "ready", "runs")
    )
]
DESTINATIONS = [
    DestinationLook(*words)
    for words in itertools.product(
        BOTH, BOTH, BOTH, ("", "continuing", "ran"), ("loaded", "runs", "gone", "other"), BOTH, BOTH
    )
]


@pytest.mark.parametrize("look", SOURCES, ids=str)
def test_the_source_is_ended_only_under_lock_epoch_and_a_ready_destination(look: SourceLook) -> None:
    act = at_source(look)
    if act not in {Act.WAIT, Act.DONE, Act.TAKE_LOCK}:
        assert look.locked
        assert look.epoch or act is Act.VOID
    if act is Act.RELEASE:
        assert look.controller_gone
        assert look.guest == "completed"
        assert look.answer == "ready"
    if act is Act.END_SOURCE:
        assert look.record == "released"
    if act is Act.SEND_TOKEN:
        assert look.record == "ended"


@pytest.mark.parametrize("look", DESTINATIONS, ids=str)
def test_the_guest_is_continued_only_under_lock_epoch_and_a_token(look: DestinationLook) -> None:
    act = at_destination(look)
    if act in {Act.READY, Act.CONTINUE}:
        assert look.locked
        assert look.epoch
        assert look.guest == "loaded"
    if act is Act.CONTINUE:
        assert look.record == "continuing" or (look.token and look.controller_gone)
    if act is Act.READY:
        assert look.controller_gone
        assert look.offered


@pytest.mark.parametrize(
    ("run_state", "status", "guest"),
    [
        ("postmigrate", "completed", "completed"),
        ("paused", "completed", "completed"),
        ("running", "completed", "runs"),
        ("finish-migrate", "device", "other"),
        ("running", "active", "other"),
        ("running", "failed", "other"),
        ("paused", "postcopy-active", "other"),
        ("running", None, "other"),
    ],
)
def test_what_a_source_is(run_state: str, status: str | None, guest: str) -> None:
    assert source_guest(run_state, status) == guest


@pytest.mark.parametrize(
    ("run_state", "status", "has_run", "guest"),
    [
        ("paused", "completed", False, "loaded"),
        ("prelaunch", "completed", False, "loaded"),
        ("paused", "completed", True, "runs"),
        ("running", "completed", False, "runs"),
        ("inmigrate", "active", False, "other"),
        ("paused", "postcopy-active", False, "other"),
        ("guest-panicked", "completed", False, "other"),
    ],
)
def test_what_a_destination_is(run_state: str, status: str | None, has_run: bool, guest: str) -> None:
    assert destination_guest(run_state, status, has_run=has_run) == guest


CHANGES: dict[str, Any] = {
    "host": "b",
    "migration": "m-2",
    "vm": "web2",
    "step": "ready",
    "epoch": 8,
    "process": "4711 123456 00000000",
    "offer": "0" * 32,
    "ready": None,
}


def test_a_signature_covers_every_field_and_needs_the_secret() -> None:
    token = HostToken.model_validate_json(json.dumps(golden("host.token-1.0"))).signed(b"s" * 32)
    assert token.verified(b"s" * 32)
    assert not token.verified(b"t" * 32)
    for name, value in CHANGES.items():
        assert not token.model_copy(update={name: value}).verified(b"s" * 32), name
    signed = set(HostToken.model_fields) - {"signature", "schema_id", "at"}
    assert signed == set(CHANGES)


@dataclass(frozen=True)
class Word:
    step: str
    offer: int
    ready: int = 0


class HandingOver:
    """Two hosts, two agents that die and come back, a controller that dies by halves, `recover`, and a broker that loses,
    repeats, delays and reorders. The agents and `recover` decide with the product's own functions."""

    def __init__(self) -> None:
        self.source, self.destination = "completed", "loaded"
        self.locks: dict[str, str] = {"a": "controller", "b": "controller"}
        self.epoch = {"a": "7", "b": "7"}
        self.record = {"a": "", "b": ""}
        self.mark = {"a": "", "b": ""}
        self.mandate = {"a": True, "b": True}
        self.controller_alive = True
        self.killed_by_controller = False
        self.words: list[Word] = []
        self.count = 0
        self.ever_ran_there = False
        self._forget("a")
        self._forget("b")

    def _forget(self, host: str) -> None:
        if host == "a":
            self.offer, self.answer, self.ready, self.sent = 0, "", 0, 0
        else:
            self.heard, self.made, self.token, self.offered = 0, 0, False, False

    def _number(self) -> int:
        self.count += 1
        return self.count

    def _epoch_ours(self, host: str) -> bool:
        return self.epoch[host] == (self.mark[host] if self.record[host] else "7")

    # -- the agents ---------------------------------------------------------------------------------------------

    def source_agent_acts(self) -> None:
        if not self.mandate["a"]:
            return
        look = SourceLook(
            controller_gone=self.locks["a"] != "controller",
            locked=self.locks["a"] == "agent",
            epoch=self.locks["a"] != "agent" or self._epoch_ours("a"),
            record=self.record["a"],  # type: ignore[arg-type]
            guest="completed" if self.source == "completed" else "runs" if self.source == "runs" else "other",
            answer=self.answer,  # type: ignore[arg-type]
        )
        match at_source(look):
            case Act.TAKE_LOCK if not self.locks["a"]:
                self.locks["a"] = "agent"
            case Act.OFFER if not self.offer or self.answer:
                self.offer, self.answer = self._number(), ""
                self.words.append(Word("offer", self.offer))
            case Act.RELEASE:
                self.mark["a"] = self.epoch["a"] = f"mark {self._number()}"
                self.record["a"] = "released"
            case Act.END_SOURCE:
                self.source = "dead"
                self.record["a"] = "ended"
            case Act.SEND_TOKEN:
                self.words.append(Word("run", self.offer, self.ready))
            case Act.VOID | Act.DONE:
                self.mandate["a"] = False
                self._unlock("a")
            case Act.WAIT:
                self._unlock("a")

    def destination_agent_acts(self) -> None:
        if not self.mandate["b"]:
            return
        guest = {"loaded": "loaded", "runs": "runs", "dead": "gone"}[self.destination]
        look = DestinationLook(
            controller_gone=self.locks["b"] != "controller",
            locked=self.locks["b"] == "agent",
            epoch=self.locks["b"] != "agent" or self._epoch_ours("b"),
            record=self.record["b"],  # type: ignore[arg-type]
            guest=guest,  # type: ignore[arg-type]
            offered=self.offered,
            token=self.token,
        )
        match at_destination(look):
            case Act.TAKE_LOCK if not self.locks["b"]:
                self.locks["b"] = "agent"
            case Act.READY:
                self.made = self.made or self._number()
                self.words.append(Word("ready", self.heard, self.made))
            case Act.CONTINUE:
                if not self.record["b"]:
                    self.mark["b"] = self.epoch["b"] = f"mark {self._number()}"
                    self.record["b"] = "continuing"
                self.token = False
                self.destination, self.ever_ran_there = "runs", True
            case Act.SEE_IT_RUN:
                self.record["b"] = "ran" if self.record["b"] else ""
                self.words.append(Word("runs", self.heard))
            case Act.VOID:
                self.mandate["b"] = False
                self._unlock("b")
            case Act.WAIT | Act.DONE:
                self._unlock("b")

    def _unlock(self, host: str) -> None:
        if self.locks[host] == "agent":
            self.locks[host] = ""

    def agent_dies_and_comes_back(self, host: str) -> None:
        self._unlock(host)
        self._forget(host)

    def offer_lapses(self) -> None:
        self.offered = False

    def source_agent_rests(self) -> None:
        self.offer, self.answer = 0, ""
        self._unlock("a")

    # -- the broker ---------------------------------------------------------------------------------------------

    def arrives(self, word: Word) -> None:
        """Some word, any number of times."""
        match word.step:
            case "offer" if word.offer != self.heard:
                self.heard, self.made, self.token, self.offered = word.offer, 0, False, True
            case "run" if self.offered and self.made and (word.offer, word.ready) == (self.heard, self.made):
                self.token = True
            case "ready" if self.offer and word.offer == self.offer and not self.answer:
                self.answer, self.ready = "ready", word.ready
            case "runs" if self.offer and word.offer == self.offer:
                self.answer = "runs"

    # -- the controller, and who recovers -----------------------------------------------------------------------

    def controller_dies(self) -> None:
        self.controller_alive = False
        self.locks = {host: "" if who == "controller" else who for host, who in self.locks.items()}

    def controller_is_cut_off_from_one_host(self, host: str) -> None:
        if self.locks[host] == "controller":
            self.locks[host] = ""

    def controller_acts_where_it_can(self, goal: Goal) -> None:
        """It knows that it has not sent `cont`, and acts on whichever hosts it still holds."""
        if not self.controller_alive:
            return
        for host in "ab":  # it takes a lost lock again where nobody else has had the guest
            if not self.locks[host] and self.epoch[host] == "7":
                self.locks[host] = "controller"
        here = {host for host in "ab" if self.locks[host] == "controller"}
        self._act(here, Facts(never_ran=True, source_completed=True, patience=False), goal)

    def somebody_recovers(self, goal: Goal, reach: str) -> None:
        if self.controller_alive or any(self.locks.values()):
            return
        for host in reach:
            self.epoch[host] = f"recovery {self._number()}"
        released = "a" in reach and self.record["a"] in {"released", "ended"}
        continued = "b" in reach and self.record["b"] in {"continuing", "ran"}
        facts = Facts(
            may_have_run=continued or (released and "b" not in reach),
            source_completed=released or continued,
            ran="b" in reach and self.record["b"] == "ran",
            patience=False,
        )
        for _ in range(4):
            self._act(set(reach), facts, goal)

    def _act(self, here: set[str], facts: Facts, goal: Goal) -> None:
        source = {"completed": Source.COMPLETED, "dead": Source.DEAD, "runs": Source.RUNS}[self.source]
        destination = {"loaded": Destination.LOADED, "dead": Destination.ABSENT, "runs": Destination.RUNS}[
            self.destination
        ]
        if "a" not in here:
            source = Source.UNKNOWN
        if "b" not in here:
            destination = Destination.UNKNOWN
        if source is Source.RUNS:  # the proof that the destination has never run
            facts = replace(facts, never_ran=True)
        match decision.decide(source, destination, facts, goal).action:
            case Action.COMMIT if "b" in here and self.destination == "loaded":
                self.destination, self.ever_ran_there = "runs", True
            case Action.KILL_DESTINATION if "b" in here:
                self.destination = "dead"
            case Action.RESUME_SOURCE if "a" in here:
                assert self.source == "completed"
                self.source = "runs"
            case Action.RELEASE_SOURCE if "a" in here:
                self.source = "dead"

    # -- what must hold -----------------------------------------------------------------------------------------

    def holds(self) -> None:
        """Never two owners, never none, and the agents start a guest only when its source is gone."""
        assert not (self.source == "runs" and self.destination == "runs"), "two owners"
        assert not (self.source == "runs" and self.ever_ran_there), "the source runs on after the destination has run"
        assert not (self.source == "dead" and self.destination == "dead"), "no owner"
        assert not (self.record["b"] and self.source != "dead"), "started before the source was gone"


def _history(seed: int) -> HandingOver:
    """Play one history: mostly the agents and the broker, now and then what goes wrong."""
    chance = random.Random(seed)
    machine = HandingOver()

    def word_arrives() -> None:
        if machine.words:  # the newest one most of the time, any old one else
            machine.arrives(machine.words[-1] if chance.random() < 0.7 else chance.choice(machine.words))

    steps: list[tuple[float, Callable[[], None]]] = [
        (6, machine.source_agent_acts),
        (6, machine.destination_agent_acts),
        (6, word_arrives),
        (0.3, machine.offer_lapses),
        (0.3, machine.source_agent_rests),
        (0.3, lambda: machine.agent_dies_and_comes_back(chance.choice("ab"))),
        (0.8, machine.controller_dies),
        (0.8, lambda: machine.controller_is_cut_off_from_one_host(chance.choice("ab"))),
        (0.8, lambda: machine.controller_acts_where_it_can(chance.choice(list(Goal)))),
        (0.8, lambda: machine.somebody_recovers(chance.choice(list(Goal)), chance.choice(["ab", "a", "b"]))),
    ]
    weights = [weight for weight, _ in steps]
    for _, step in chance.choices(steps, weights, k=50):
        step()
        machine.holds()
    return machine


def test_thirty_thousand_histories() -> None:
    ends: Counter[tuple[str, str, str]] = Counter()
    for seed in range(30_000):
        try:
            machine = _history(seed)
        except AssertionError as error:
            raise AssertionError(f"history {seed}: {error}") from error
        ends[machine.source, machine.destination, machine.record["b"]] += 1
    assert ends["dead", "runs", "ran"] > 500, ends  # the histories reach what they are about
    assert ends["runs", "dead", ""] > 100, ends


def test_left_alone_after_the_controllers_death_the_guest_runs() -> None:
    machine = HandingOver()
    machine.controller_dies()
    for _ in range(12):
        machine.source_agent_acts()
        machine.destination_agent_acts()
        for word in list(machine.words[-2:]):
            machine.arrives(word)
    assert (machine.source, machine.destination, machine.record["b"]) == ("dead", "runs", "ran")
