"""Writes down every cell of `decision.decide`, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from functools import cache
from itertools import product
from typing import Final

from qmp_migrate.migration.ownership.decision import Action, Decision, Destination, Facts, Goal, Source, decide

QUESTIONS: Final[tuple[Mapping[bool, str], ...]] = (
    {True: "goal: forward", False: "goal: back"},
    {True: "may have run", False: "surely never ran"},
    {True: "source said completed", False: "source did not say completed"},
    {True: "was running", False: "was paused before"},
    {True: "stopped by us", False: "not stopped by us"},
    {True: "patience left", False: "no patience left"},
    {True: "has run there", False: "not known to have run there"},
    {True: "post-copy asked for", False: "no post-copy"},
    {True: "yanked in vain", False: "not yanked yet"},
)
"""What matters beside the two states, in the words of the table."""
KNOWN_FACTS: Final = {
    *(
        "may_have_run",
        "never_ran",
        "source_completed",
        "was_running",
        "stopped_by_us",
        "patience",
        "ran",
        "postcopy",
        "yanked",
    ),
    *("split_brain", "told"),  # in a table of their own
}

Key = tuple[bool | None, ...]
"""One answer to each of the `QUESTIONS`; None: it does not matter."""
Cell = Mapping[Key, Decision]
Rule = tuple[tuple[str, ...], Decision]

SOURCES: Final = {
    Source.RUNS: "the guest runs there, no migration is under way",
    Source.COPIES: "the guest runs there, a migration is under way",
    Source.HOLDS: "stopped at `pre-switchover`, waits for us",
    Source.SWITCHES: "stopped, the device state travels; or the migration failed and QEMU is about to run on",
    Source.HANGS: "proven alive, but its monitor does not answer",
    Source.POSTCOPY: "stopped for good; the destination still needs pages from here",
    Source.INTERRUPTED: "the same, and the connection is lost",
    Source.COMPLETED: "stopped for good, unless somebody sends `cont`",
    Source.STOPPED: "paused, by its user or by us; no migration is under way",
    Source.HALTED: "the guest ended itself, or an error of its disks stopped it",
    Source.DEAD: "the process is proven gone",
    Source.UNKNOWN: "it cannot be asked",
}
DESTINATIONS: Final = {
    Destination.ABSENT: "never started, or proven gone",
    Destination.INCOMING: "waits for the guest, or loads it",
    Destination.LOADED: "has everything, paused",
    Destination.RUNS: "runs the guest",
    Destination.HALTED: "ran it; it then ended or was paused",
    Destination.WAITING: "post-copy: has the devices, not yet all of the memory; paused",
    Destination.POSTCOPY: "the same, and has run: still needs pages from the source",
    Destination.INTERRUPTED: "the same, and the connection is lost, whether it says that it runs or not",
    Destination.HANGS: "proven alive, but its monitor does not answer",
    Destination.UNKNOWN: "cannot be asked",
}


def cell(source: Source, destination: Destination) -> Cell:
    """Ask `decide` for every combination of what matters beside the two states.

    Raises:
        ValueError: `decide` tells apart more than this table shows: then the table must grow.
    """
    if {field.name for field in fields(Facts)} != KNOWN_FACTS:
        raise ValueError(f"the facts have changed: {[field.name for field in fields(Facts)]}")
    answers: dict[Key, Decision] = {}
    for forward, *known in product((True, False), repeat=10):
        facts = Facts(*known)
        answer = decide(source, destination, facts, Goal.FORWARD if forward else Goal.BACK)
        key = (forward, not facts.surely_never_ran, *known[2:])
        if answers.setdefault(key, answer) != answer:
            raise ValueError(f"{source}/{destination}: may_have_run and never_ran matter one by one")
    return answers


def rules(answers: Cell) -> list[Rule]:
    """Return the fewest rules that say the same as a cell: its smallest decision tree, leaf by leaf."""
    relevant = dict(answers)
    for place in range(len(QUESTIONS)):
        if all(relevant[_with(key, place, not key[place])] == answer for key, answer in relevant.items()):
            relevant = {_with(key, place, None): answer for key, answer in relevant.items()}
    return _fewest(frozenset(relevant.items()))


def _with(key: Key, place: int, answer: bool | None) -> Key:
    return (*key[:place], answer, *key[place + 1 :])


@cache  # the same part of a cell is met by many ways
def _fewest(answers: frozenset[tuple[Key, Decision]]) -> list[Rule]:
    decisions = {decision for _, decision in answers}
    if len(decisions) == 1:
        return [((), decisions.pop())]
    best: list[Rule] | None = None
    for place, words in enumerate(QUESTIONS):
        split = {side: frozenset(answer for answer in answers if answer[0][place] is side) for side in (True, False)}
        if not all(split.values()):
            continue
        found = [
            ((words[side], *conditions), decision)
            for side in (True, False)
            for conditions, decision in _fewest(split[side])
        ]
        if best is None or len(found) < len(best):
            best = found
    assert best is not None
    return best


def decision_table(made: str) -> str:
    """Return every cell of `decision.decide` as Markdown, one table per state of the source.

    Args:
        made: Who made it: stands in a comment.

    Raises:
        ValueError: There is a state or a fact that is not described here.
    """
    if set(SOURCES) != set(Source) or set(DESTINATIONS) != set(Destination):
        raise ValueError("a state has no description here")
    lines = [f"<!-- {made} -->", "", "| destination | what was observed of it |", "|---|---|"]
    lines += [*(f"| {destination.value} | {state} |" for destination, state in DESTINATIONS.items()), ""]
    lines += [*_overview(), ""]
    for source, meaning in SOURCES.items():
        lines += [f"### The source {source.value}: {meaning}", ""]
        lines += ["| destination | when | action | because |", "|---|---|---|---|"]
        groups: dict[tuple[tuple[str, Decision], ...], list[str]] = {}
        for destination in DESTINATIONS:
            groups.setdefault(_rows(source, destination), []).append(destination.value)
        for rows, destinations in groups.items():
            for when, decision in rows:
                lines.append(f"| {', '.join(destinations)} | {when} | `{decision.action.value}` | {decision.reason} |")
        lines.append("")
    return "\n".join([*lines, *_split_brain(), *_told(), ""])


def _rows(source: Source, destination: Destination) -> tuple[tuple[str, Decision], ...]:
    """Return one row for each thing that may be done in a cell: when, and what."""
    order = [word for words in QUESTIONS for word in words.values()]
    when: dict[Decision, list[str]] = {}
    for conditions, decision in rules(cell(source, destination)):
        when.setdefault(decision, []).append(", ".join(sorted(conditions, key=order.index)) or "always")
    return tuple(("; or: ".join(words), decision) for decision, words in when.items())


def _overview() -> Iterator[str]:
    """Say on one screen what may be done in each cell; the tables below say when, and why."""
    yield from ["### All cells", ""]
    yield f"| source \\ destination | {' | '.join(destination.value for destination in DESTINATIONS)} |"
    yield "|---" * (len(DESTINATIONS) + 1) + "|"
    for source in SOURCES:
        cells = []
        for destination in DESTINATIONS:
            actions = dict.fromkeys(decision.action.value for _, decision in _rows(source, destination))
            cells.append(", ".join(sorted(actions, key=_ACTIONS.index)))
        yield f"| **{source.value}** | {' | '.join(cells)} |"


_ACTIONS: Final = [action.value for action in Action]


def _split_brain() -> Iterator[str]:
    """Say what is done once both copies were seen to run; what depends on nothing else is one row."""
    yield from ["### After both copies were seen to run", ""]
    yield from ["| source/destination | action | because |", "|---|---|---|"]
    rows: dict[tuple[str, str], list[str]] = {}
    for source, destination in product(Source, Destination):
        decision = decide(source, destination, Facts(split_brain=True, patience=False), Goal.FORWARD)
        rows.setdefault((decision.action.value, decision.reason), []).append(f"{source.value}/{destination.value}")
    for (action, reason), pairs in sorted(rows.items(), key=lambda row: len(row[1])):
        yield f"| {', '.join(pairs) if len(pairs) < 30 else 'any other'} | `{action}` | {reason} |"
    yield ""


def _told() -> Iterator[str]:
    """Say what `--owner` does where the table parks."""
    yield from ["### What a person can decide where it is parked", ""]
    yield from ["| source | destination | `--owner source` | `--owner destination` |", "|---|---|---|---|"]
    for source, destination in product(Source, Destination):
        done: dict[str, set[str]] = {"source": set(), "destination": set()}
        for may, torn in product((False, True), repeat=2):
            parked = Facts(may_have_run=may, split_brain=torn, patience=False)
            if decide(source, destination, parked, Goal.FORWARD).action is not Action.PARK:
                continue
            for owner in ("source", "destination"):
                decision = decide(source, destination, replace(parked, told=owner), Goal.FORWARD)
                if decision.action is not Action.PARK:
                    done[owner].add(f"`{decision.action.value}`")
        if done["source"] or done["destination"]:
            words = [", ".join(sorted(done[owner])) or "-" for owner in ("source", "destination")]
            yield f"| {source.value} | {destination.value} | {words[0]} | {words[1]} |"
