"""The prose guard: docstrings, help, hints and messages keep to CONTRIBUTING's "Style".

What was there before is the baseline, ``tests/data/prose_baseline.json``: findings for each file and phrase. It may only
shrink. After some were mended::

    python -m tests.unit.project.test_prose
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Final

import pytest

from tests import ROOT

BASELINE: Final = ROOT / "tests" / "data" / "prose_baseline.json"
PHRASES: Final = {
    "is told": r"\b(is|are|was|were|be|been|being) told\b",
    "is said": r"\b(is|are|was|were|be|been|being) said\b",
    "is heard": r"\b(is|are|was|were|be|been|being) heard\b",
    "what is there": r"\bwhat (is|was) there\b",
    "what is not there": r"\bwhat (is|was) (not|no longer) there\b",
    "over there": r"\bover there\b",
    "whoever, whatever": r"\b(who|what|which)(so)?ever\b",
    "is no X": r"\b(is|are|was|were) no (?!(longer|more|such|need|other|doubt)\b|[a-z]+ (left|in|on|at|for)\b)[a-z]+",
    "None: telegram": r"(``None``|`None`|\bNone|\bempty): (nothing|none|nobody|no)\b",
    "so much": r"\bby so (much|many)\b|\bso (much|many|long) (of|later|ago)\b|\bthis much (later|longer)\b",
}
FOUND: Final = {name: re.compile(pattern, re.IGNORECASE) for name, pattern in PHRASES.items()}
WORDS: Final = ("help", "hint", "message", "text", "what")
"""Keyword arguments that people read."""


def texts(source: str) -> Iterator[str]:
    """Yield what people read of a module: docstrings, also of constants, help, hints, and what errors say."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value.value
        elif isinstance(node, ast.Call):
            yield from (said(keyword.value) for keyword in node.keywords if keyword.arg in WORDS)
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            yield from (said(argument) for argument in node.exc.args)


def said(node: ast.expr) -> str:
    """Return the fixed text of an expression: a string, also one with values put in, or parts joined."""
    parts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str)]
    return " ".join(parts)


def findings() -> dict[str, dict[str, int]]:
    """Return how often each file has each phrase."""
    found: dict[str, dict[str, int]] = {}
    for package in ("qmp_migrate", "hostagent"):
        for path in sorted((ROOT / package).rglob("*.py")):
            counted = Counter(
                name
                for text in texts(path.read_text("utf-8"))
                for name, pattern in FOUND.items()
                for _ in pattern.finditer(" ".join(text.split()))
            )
            if counted:
                found[str(path.relative_to(ROOT))] = dict(sorted(counted.items()))
    return found


def test_nothing_new_goes_against_the_style() -> None:
    before, now = json.loads(BASELINE.read_text("utf-8")), findings()
    new = [
        f"{file}: {phrase} ({count}, {before.get(file, {}).get(phrase, 0)} before)"
        for file, phrases in now.items()
        for phrase, count in phrases.items()
        if count > before.get(file, {}).get(phrase, 0)
    ]
    assert not new, "see CONTRIBUTING, Style:\n" + "\n".join(new)


def test_what_was_mended_stays_so() -> None:
    assert json.loads(BASELINE.read_text("utf-8")) == findings(), f"less? then: python -m {__name__}"


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("What is told of it.", "is told"),
        ("It is said once.", "is said"),
        ("Keep what is there.", "what is there"),
        ("It runs over there.", "over there"),
        ("Whoever holds it.", "whoever, whatever"),
        ("that is no certificate of ours", "is no X"),
        ("``None``: nothing.", "None: telegram"),
        ("Slow it down by so much.", "so much"),
    ],
)
def test_it_knows_the_phrases(text: str, phrase: str) -> None:
    for source in (
        f'"""{text}"""',
        f'raise ValueError("{text}")',
        f'option(help="{text}")',
        f'E(hint=f"{{x}} {text}")',
    ):
        assert any(FOUND[phrase].search(found) for found in texts(source)), source


@pytest.mark.parametrize("text", ["There is no longer a lock.", "The host told us.", "There is no QEMU left."])
def test_it_leaves_plain_english_alone(text: str) -> None:
    assert not [name for name, pattern in FOUND.items() if pattern.search(text)]


def main() -> None:
    """Write the baseline, unless it would grow."""
    now = findings()
    total = sum(sum(phrases.values()) for phrases in now.values())
    if BASELINE.exists():
        before = sum(sum(phrases.values()) for phrases in json.loads(BASELINE.read_text("utf-8")).values())
        if total > before:
            sys.exit(f"{total} findings, {before} before: the baseline may only shrink")
    BASELINE.write_text(json.dumps(now, indent=1) + "\n", "utf-8")
    print(f"{BASELINE.relative_to(ROOT)}: {total} findings")


if __name__ == "__main__":
    main()
