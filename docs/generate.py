"""Makes ``docs/generated/`` from the code, so that these pages cannot say something else than the code does.

::

    python docs/generate.py            write the files
    python docs/generate.py --check    change nothing; exit 1 and name the files that are out of date

The files are committed: a reader of the repository sees them, and a review shows when a decision has changed.
``tests/unit/test_docs_generated.py`` runs the check.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from functools import cache
from html import escape
from itertools import product
from pathlib import Path
from typing import Any, Final

from qmp_migrate import errors
from qmp_migrate.migration.handover import Action, Decision, Destination, Facts, Goal, Source, decide
from qmp_migrate.migration.phases import ENDS, NEXT, Phase

HERE: Final = Path(__file__).resolve().parent / "generated"
MADE: Final = "Made by docs/generate.py; do not edit."


# -- the phase graph ------------------------------------------------------------------------------------------------

BACK: Final = (Phase.ROLLING_BACK, Phase.ROLLED_BACK, Phase.PARKED)
"""Drawn as lanes at the right; every other phase is a box on the way forward."""
FORWARD: Final = tuple(phase for phase in Phase if phase not in BACK)

ROW: Final = 44
BOX_WIDTH, BOX_HEIGHT = 196, 28
LEFT: Final = 70
LANES: Final = {Phase.ROLLED_BACK: 340, Phase.ROLLING_BACK: 450, Phase.PARKED: 560}
HALF_LANE: Final = 42
FROM_PARKED: Final = 640
WIDTH: Final = 700

_STYLE: Final = """
text { font: 13px sans-serif; fill: #1a1a1a; text-anchor: middle; dominant-baseline: central }
.small { font-size: 11px; fill: #444 }
rect.box { fill: #f3f6fa; stroke: #35506b }
rect.end { fill: #e3f1e3; stroke: #2d6a2d }
rect.back { fill: #fbefe6; stroke: #96501b }
path, line { fill: none; stroke: #35506b; stroke-width: 1.4 }
.lane { stroke: #96501b }
.settle { stroke: #666; stroke-dasharray: 5 3 }
circle { fill: #96501b }
"""


def phase_graph() -> str:
    """Return the graph of `NEXT` as SVG: the way forward at the left, the ways back as lanes at the right.

    Raises:
        ValueError: The graph has an edge that this picture has no place for.
    """
    drawn: set[tuple[Phase, Phase]] = set()
    parts = [*_forward(drawn), *_lanes(drawn), *_settled(drawn), *_boxes()]
    missing = {(before, after) for before in NEXT for after in NEXT[before]} - drawn
    if missing:
        raise ValueError(f"edges without a place in the picture: {sorted(missing)}")
    height = _y(len(FORWARD)) + 70
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'role="img" aria-label="The phases of a migration">'
    )
    arrow = (
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" style="fill:#35506b;stroke:none"/></marker></defs>'
    )
    paper = f'<rect width="{WIDTH}" height="{height}" rx="8" fill="#ffffff"/>'
    return "\n".join([head, f"<!-- {MADE} -->", f"<style>{_STYLE}</style>", arrow, paper, *parts, "</svg>", ""])


def _y(row: int) -> int:
    return 40 + row * ROW


def _forward(drawn: set[tuple[Phase, Phase]]) -> Iterator[str]:
    """Draw steps down the column: straight to the next box, in a bow at the left past those that are left out."""
    middle = LEFT + BOX_WIDTH // 2
    for row, before in enumerate(FORWARD):
        for after in sorted(NEXT[before], key=list(Phase).index):
            if after not in FORWARD:
                continue
            to = FORWARD.index(after)
            drawn.add((before, after))
            if to == row + 1:
                top, bottom = _y(row) + BOX_HEIGHT // 2, _y(to) - BOX_HEIGHT // 2
                yield f'<line x1="{middle}" y1="{top}" x2="{middle}" y2="{bottom}" marker-end="url(#arrow)"/>'
            else:
                bow = LEFT - 40
                yield (
                    f'<path d="M{LEFT} {_y(row) + 5} C{bow} {_y(row) + 5} {bow} {_y(to) - 5} {LEFT} {_y(to) - 5}" '
                    'marker-end="url(#arrow)"/>'
                )


def _lanes(drawn: set[tuple[Phase, Phase]]) -> Iterator[str]:
    """Draw the ways back: a dot where a phase has one, on a line down to the box of that name."""
    bottom = _y(len(FORWARD))
    side = LEFT + BOX_WIDTH
    for lane, x in LANES.items():
        rows = [row for row, phase in enumerate(FORWARD) if lane in NEXT[phase]]
        if rows:
            yield f'<line class="lane" x1="{x}" y1="{_y(rows[0])}" x2="{x}" y2="{bottom}" marker-end="url(#arrow)"/>'
        yield f'<text class="small" x="{x}" y="14">{escape(lane.value)}</text>'
    for row, phase in enumerate(FORWARD):
        lanes = [lane for lane in LANES if lane in NEXT[phase]]
        if lanes:
            far = max(LANES[lane] for lane in lanes)
            yield f'<line class="lane" x1="{side}" y1="{_y(row)}" x2="{far}" y2="{_y(row)}"/>'
        for lane in lanes:
            drawn.add((phase, lane))
            yield f'<circle cx="{LANES[lane]}" cy="{_y(row)}" r="4"/>'
    for before, after in ((Phase.ROLLING_BACK, Phase.ROLLED_BACK), (Phase.ROLLING_BACK, Phase.PARKED)):
        if after in NEXT[before]:
            drawn.add((before, after))
            low = bottom + 14 + 28
            x1, x2 = LANES[before], LANES[after]
            yield f'<path d="M{x1} {bottom + 28} L{x1} {low} L{x2} {low} L{x2} {bottom + 30}" marker-end="url(#arrow)"/>'


def _settled(drawn: set[tuple[Phase, Phase]]) -> Iterator[str]:
    """Draw where a parked migration may go once it is settled: a dashed lane up from `parked`."""
    bottom, x = _y(len(FORWARD)), FROM_PARKED
    rows = [row for row, phase in enumerate(FORWARD) if phase in NEXT[Phase.PARKED]]
    if rows:
        top = _y(rows[0]) + 9
        yield f'<path class="settle" d="M{LANES[Phase.PARKED] + HALF_LANE} {bottom + 14} L{x} {bottom + 14} L{x} {top}"/>'
        yield f'<text class="small" x="{x}" y="{top - 10}">once settled</text>'
    for row in rows:
        drawn.add((Phase.PARKED, FORWARD[row]))
        yield (
            f'<line class="settle" x1="{x}" y1="{_y(row) + 9}" x2="{LEFT + BOX_WIDTH + 2}" y2="{_y(row) + 9}" '
            'marker-end="url(#arrow)"/>'
        )
    if Phase.ROLLING_BACK in NEXT[Phase.PARKED]:
        drawn.add((Phase.PARKED, Phase.ROLLING_BACK))
        x1, x2 = LANES[Phase.PARKED] - HALF_LANE, LANES[Phase.ROLLING_BACK] + HALF_LANE
        yield f'<line class="settle" x1="{x1}" y1="{bottom + 8}" x2="{x2}" y2="{bottom + 8}" marker-end="url(#arrow)"/>'


def _boxes() -> Iterator[str]:
    for row, phase in enumerate(FORWARD):
        kind = "end" if phase in ENDS else "box"
        yield (
            f'<rect class="{kind}" x="{LEFT}" y="{_y(row) - BOX_HEIGHT // 2}" '
            f'width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="5"/>'
        )
        yield f'<text x="{LEFT + BOX_WIDTH // 2}" y="{_y(row)}">{escape(phase.value)}</text>'
    for lane, x in LANES.items():
        kind = "end" if lane in ENDS else "back"
        top = _y(len(FORWARD))
        yield f'<rect class="{kind}" x="{x - HALF_LANE}" y="{top}" width="{2 * HALF_LANE}" height="{BOX_HEIGHT}" rx="5"/>'
        yield f'<text class="small" x="{x}" y="{top + BOX_HEIGHT // 2}">{escape(lane.value)}</text>'


# -- the decision table ---------------------------------------------------------------------------------------------

QUESTIONS: Final[tuple[Mapping[bool, str], ...]] = (
    {True: "goal: forward", False: "goal: back"},
    {True: "may have run", False: "surely never ran"},
    {True: "source said completed", False: "source did not say completed"},
    {True: "was running", False: "was paused before"},
    {True: "patience left", False: "no patience left"},
    {True: "has run there", False: "not known to have run there"},
    {True: "yanked in vain", False: "not yanked yet"},
)
"""What matters beside the two states, in the words of the table."""
KNOWN_FACTS: Final = {
    *("may_have_run", "never_ran", "source_completed", "was_running", "patience", "ran", "yanked"),
    *("split_brain", "told"),  # in a table of their own
}

Key = tuple[bool, ...]
"""One answer to each of the `QUESTIONS`."""
Cell = Mapping[Key, Decision]
Rule = tuple[tuple[str, ...], Decision]

SOURCES: Final = {
    Source.RUNS: "the guest runs there, no migration is under way",
    Source.COPIES: "the guest runs there, a migration is under way",
    Source.HOLDS: "stopped at `pre-switchover`, waits for us",
    Source.SWITCHES: "stopped, the device state travels; or the migration failed and QEMU is about to run on",
    Source.HANGS: "proven alive, but its monitor does not answer",
    Source.POSTCOPY: "the guest runs at the destination and still needs pages from here",
    Source.COMPLETED: "stopped for good, unless somebody sends `cont`",
    Source.HALTED: "the guest ended itself, or its user paused it",
    Source.DEAD: "the process is proven gone",
    Source.UNKNOWN: "it cannot be asked",
}
DESTINATIONS: Final = {
    Destination.ABSENT: "never started, or proven gone",
    Destination.INCOMING: "waits for the guest, or loads it",
    Destination.LOADED: "has everything, paused",
    Destination.RUNS: "runs the guest",
    Destination.HALTED: "ran it; it then ended or was paused",
    Destination.POSTCOPY: "still needs pages from the source, whether it says that it runs or not",
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
    for forward, *known in product((True, False), repeat=8):
        facts = Facts(*known)
        answer = decide(source, destination, facts, Goal.FORWARD if forward else Goal.BACK)
        key = (forward, not facts.surely_never_ran, *known[2:])
        if answers.setdefault(key, answer) != answer:
            raise ValueError(f"{source}/{destination}: may_have_run and never_ran matter one by one")
    return answers


def rules(answers: Cell) -> list[Rule]:
    """Return the fewest rules that say the same as a cell: its smallest decision tree, leaf by leaf."""
    return _fewest(frozenset(answers.items()))


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


def decision_table() -> str:
    """Return every cell of `handover.decide` as Markdown, one table per state of the source.

    Raises:
        ValueError: There is a state or a fact that is not described here.
    """
    if set(SOURCES) != set(Source) or set(DESTINATIONS) != set(Destination):
        raise ValueError("a state has no description here")
    lines = [f"<!-- {MADE} -->", "", "| destination | what was observed of it |", "|---|---|"]
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


# -- errors and exit codes ------------------------------------------------------------------------------------------


def error_table() -> str:
    """Return every error class with its code and exit code as Markdown."""
    lines = [f"<!-- {MADE} -->", "", "| `code` | class | exit code | what it means |", "|---|---|---|---|"]
    for kind in _classes(errors.QmpMigrateError):
        code = "4 or 1" if kind is errors.MigrationFailed else str(kind.exit_code)
        first = " ".join((kind.__doc__ or "").strip().partition("\n\n")[0].split())
        lines.append(f"| `{kind.code}` | `{kind.__name__}` | {code} | {first.replace('``', '`').replace('|', '/')} |")
    return "\n".join([*lines, ""])


def _classes(kind: type[errors.QmpMigrateError]) -> Iterator[type[errors.QmpMigrateError]]:
    yield kind
    for below in kind.__subclasses__():
        if below.__module__ == errors.__name__:
            yield from _classes(below)


# -- the command line -----------------------------------------------------------------------------------------------


def command_table() -> str:
    """Return every command of both programs with its arguments and options as Markdown."""
    import typer

    from hostagent.main import app as agent
    from qmp_migrate.cli.main import app as controller

    lines = [f"<!-- {MADE} -->", ""]
    for name, app in (("qmp-migrate", controller), ("qmp-hostagent", agent)):
        for words, command in _commands(name, typer.main.get_command(app)):
            lines += _describe(words, command)
    return "\n".join(lines)


def _commands(words: str, command: Any) -> Iterator[tuple[str, Any]]:
    below = getattr(command, "commands", {})
    if not below or words == "qmp-migrate":
        yield words, command
    for name, each in below.items():
        yield from _commands(f"{words} {name}", each)


def _describe(words: str, command: Any) -> Iterator[str]:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and not _is_common(p)]
    usage = [words, *(p.metavar.strip("[]") if p.required else f"[{p.metavar.strip('[]')}]" for p in arguments)]
    usage += [_long(p) for p in options if p.required]
    usage += ["[OPTIONS]"] if any(not p.required for p in options) else []
    usage += ["COMMAND …"] if getattr(command, "commands", {}) else []
    yield from [f"## `{words}`", "", *_paragraphs(command.help), "```", " ".join(usage), "```", ""]
    if arguments or options:
        yield from ["| | default | meaning |", "|---|---|---|"]
        for parameter in (*arguments, *options):
            variable = f" Environment: `{parameter.envvar}`." if getattr(parameter, "envvar", None) else ""
            yield f"| {_spelling(parameter)} | {_default(parameter)} | {_cell(parameter.help or '')}{variable} |"
        yield ""


def _is_common(parameter: Any) -> bool:
    return {"--help", "--install-completion", "--show-completion"} & set(parameter.opts) != set()


def _paragraphs(text: str) -> Sequence[str]:
    return [line for part in (text or "").split("\n\n") for line in (" ".join(part.split()), "")]


def _long(option: Any) -> str:
    """Return an option's long spelling with the name of its value: ``--to HOST``."""
    word: str = max(option.opts, key=len)
    if option.is_flag or option.count:
        return word
    return f"{word} {option.metavar or word.lstrip('-').rpartition('-')[2].upper()}"


def _spelling(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.metavar.strip('[]')}`"
    shorter = [word for word in parameter.opts if word != max(parameter.opts, key=len)]
    return ", ".join(f"`{word}`" for word in (_long(parameter), *shorter, *parameter.secondary_opts))


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    default = parameter.default
    if parameter.param_type_name == "argument" or default is None or default is False or default == 0:
        return ""
    return "on" if default is True else f"`{default}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("[default:", "(default:").replace("]", ")")


# -- all of it ------------------------------------------------------------------------------------------------------


def pages() -> dict[str, str]:
    """Return the content of every generated file, by name."""
    return {
        "phases.svg": phase_graph(),
        "decisions.md": decision_table(),
        "errors.md": error_table(),
        "commands.md": command_table(),
    }


def outdated(directory: Path = HERE) -> list[str]:
    """Return the names of generated files that are absent or say something else than the code."""
    return [
        name
        for name, text in pages().items()
        if not (directory / name).is_file() or (directory / name).read_text("utf-8") != text
    ]


def main() -> int:
    """Write the files, or check them."""
    parser = argparse.ArgumentParser(description="Make docs/generated/ from the code.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 where something is out of date")
    if parser.parse_args().check:
        old = outdated()
        for name in old:
            sys.stderr.write(f"docs/generated/{name} is out of date; run: python docs/generate.py\n")
        return 1 if old else 0
    HERE.mkdir(exist_ok=True)
    for name, text in pages().items():
        (HERE / name).write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
