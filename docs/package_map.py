"""The packages of the code: a picture of their layers, from the import contracts, and a list, from their docstrings."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
COLUMNS: Final = ("qmp_migrate", "qmp_migrate.migration", "qmp_migrate.fleet", "qmp_migrate.bus", "hostagent")
WIDTH, ROW, TOP, GAP = 178, 34, 46, 16

_STYLE: Final = """
text { font: 12px sans-serif; fill: #1a1a1a; text-anchor: middle; dominant-baseline: central }
.head { font-weight: bold }
rect { fill: #f3f6fa; stroke: #35506b }
line { stroke: #35506b; stroke-width: 1.4 }
"""


def layers() -> dict[str, list[list[str]]]:
    """Return the layers of each container, the upper ones first; what stands in one layer may not import each other."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    return {
        container: [[name.strip() for name in layer.split("|")] for layer in contract["layers"]]
        for contract in contracts
        if contract["type"] == "layers"
        for container in contract["containers"]
    }


def package_picture(made: str) -> str:
    """Return the layers as SVG: each box may import those below it in its column.

    Args:
        made: Who made it: stands in a comment.
    """
    known = layers()
    rows = max(len(known[container]) for container in COLUMNS)
    width, height = len(COLUMNS) * (WIDTH + GAP) + GAP, TOP + rows * ROW + GAP
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'role="img" aria-label="The packages in layers">'
    )
    paper = f'<rect width="{width}" height="{height}" rx="8" style="fill:#ffffff;stroke:none"/>'
    parts = [line for column, name in enumerate(COLUMNS) for line in _column(column, name, known[name])]
    return "\n".join([head, f"<!-- {made} -->", f"<style>{_STYLE}</style>", paper, *parts, "</svg>", ""])


def _column(number: int, container: str, rows: list[list[str]]) -> Iterator[str]:
    left = GAP + number * (WIDTH + GAP)
    yield f'<text class="head" x="{left + WIDTH // 2}" y="22">{escape(container)}</text>'
    for row, names in enumerate(rows):
        top = TOP + row * ROW
        share = WIDTH // len(names)
        text = "10px" if len(names) > 1 else "12px"
        for at, name in enumerate(names):
            x = left + at * share
            yield f'<rect x="{x}" y="{top}" width="{share - 2}" height="{ROW - 8}" rx="4">'
            yield f"<title>{escape(name)}</title></rect>"
            shown = name if len(name) * 7 <= share or len(names) == 1 else name[: max(3, share // 7)] + "…"
            yield f'<text style="font-size:{text}" x="{x + share // 2 - 1}" y="{top + (ROW - 8) // 2}">{escape(shown)}</text>'


def package_list(made: str) -> str:
    """Return every package with the first sentence of its docstring as Markdown."""
    lines = [f"<!-- {made} -->", "", "| package | what is in it |", "|---|---|"]
    for top in ("qmp_migrate", "hostagent"):
        for path in sorted((ROOT / top).rglob("__init__.py")):
            text = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
            first = " ".join(text.partition("\n\n")[0].split()).replace("``", "`").replace("|", "/")
            lines.append(f"| `{'.'.join(path.parent.relative_to(ROOT).parts)}` | {first} |")
    return "\n".join([*lines, ""])
