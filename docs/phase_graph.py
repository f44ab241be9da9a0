"""Draws the graph of a migration's phases, from `phases.NEXT`, as SVG."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Final

from qmp_migrate.migration.model.phases import ENDS, NEXT, Phase

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


def phase_graph(made: str) -> str:
    """Return the graph of `NEXT` as SVG: the way forward at the left, the ways back as lanes at the right.

    Args:
        made: Who made it: stands in a comment.

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
    return "\n".join([head, f"<!-- {made} -->", f"<style>{_STYLE}</style>", arrow, paper, *parts, "</svg>", ""])


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
