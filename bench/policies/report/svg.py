"""A few words of SVG: shapes, text and scales. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

INK: Final = "#1d2733"
MUTED: Final = "#6b7785"
GRID: Final = "#e3e7ec"


@dataclass(frozen=True, slots=True)
class Scale:
    """From values to pixels; what is outside is drawn at the edge.

    Attributes:
        low, high: Values at the two ends.
        start, end: Their pixels.
        log: Logarithmic.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        value = min(max(value, self.low), self.high)
        if self.log:
            part = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            part = (value - self.low) / (self.high - self.low)
        return self.start + part * (self.end - self.start)


def ticks(high: float, most: int = 7) -> list[float]:
    """Return round numbers from 0 to `high`, at most so many."""
    for step in (10**exponent * base for exponent in range(-3, 7) for base in (1, 2, 5)):
        if high / step <= most:
            return [step * count for count in range(int(high / step + 1e-9) + 1)]
    return [0.0, high]


def text(
    x: float, y: float, words: str, *, size: int = 12, anchor: str = "start", fill: str = INK, bold: bool = False
) -> str:
    """Return text; `anchor`: start, middle or end."""
    weight = ' font-weight="600"' if bold else ""
    place = f'x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}"'
    return f'<text {place} fill="{fill}"{weight}>{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, *, stroke: str = GRID, width: float = 1, dash: str = "") -> str:
    """Return a line."""
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{stroke}" stroke-width="{width}"{dashes}/>'


def rect(x: float, y: float, width: float, height: float, *, fill: str, opacity: float = 1, title: str = "") -> str:
    """Return a rectangle; `title` is shown where the pointer rests."""
    inner = f"<title>{escape(title)}</title>" if title else ""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{height:.1f}" rx="2" fill="{fill}" '
        f'fill-opacity="{opacity}">{inner}</rect>'
    )


def dot(x: float, y: float, *, fill: str, radius: float = 3.2, hollow: bool = False, title: str = "") -> str:
    """Return a filled or hollow dot."""
    inner = f"<title>{escape(title)}</title>" if title else ""
    paint = (
        f'fill="#fff" stroke="{fill}" stroke-width="1.4"'
        if hollow
        else f'fill="{fill}" stroke="#fff" stroke-width="0.8"'
    )
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" {paint}>{inner}</circle>'


def path(points: Sequence[tuple[float, float]], *, stroke: str, width: float = 1.6, opacity: float = 1) -> str:
    """Return a line through points."""
    if not points:
        return ""
    drawn = " ".join(f"{'L' if index else 'M'}{x:.1f} {y:.1f}" for index, (x, y) in enumerate(points))
    return (
        f'<path d="{drawn}" fill="none" stroke="{stroke}" stroke-width="{width}" stroke-opacity="{opacity}" '
        'stroke-linejoin="round"/>'
    )


def cross(x: float, y: float, *, stroke: str, size: float = 4) -> str:
    """Return a cross."""
    return line(x - size, y - size, x + size, y + size, stroke=stroke, width=2) + line(
        x - size, y + size, x + size, y - size, stroke=stroke, width=2
    )


def svg(width: float, height: float, parts: Sequence[str], label: str) -> str:
    """Return the picture; `label` is for those who cannot see it."""
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}" role="img" '
        f'aria-label="{escape(label, quote=True)}" xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )
