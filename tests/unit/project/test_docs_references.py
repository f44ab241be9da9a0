"""Pages that say what is shown by which test: every test that they name exists, and no line of their lists is missing."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from tests import ROOT

REFERENCE = ROOT / "docs" / "reference"
NAMED = re.compile(r"`(tests/[^`:]+\.py)::([^`]*)`")
LISTS = {
    "coverage.md": "upstream-tests.txt",
    "coming-from-virsh.md": "virsh.txt",
    "coming-from-proxmox.md": "proxmox.txt",
}


@cache
def _tests(path: str) -> frozenset[str]:
    tree = ast.parse((ROOT / path).read_text())
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return frozenset(node.name for node in functions if node.name.startswith("test_"))


@pytest.mark.parametrize("page", sorted(path.name for path in REFERENCE.glob("*.md")))
def test_every_test_that_is_named_exists(page: str) -> None:
    for path, name in NAMED.findall((REFERENCE / page).read_text()):
        assert (ROOT / path).is_file(), f"{page} names {path}"
        assert name.partition("[")[0] in _tests(path), f"{page} names {path}::{name}"


@pytest.mark.parametrize("page", list(LISTS))
def test_no_line_of_the_list_is_missing(page: str) -> None:
    text = (REFERENCE / page).read_text()
    lines = (REFERENCE / "lists" / LISTS[page]).read_text().splitlines()
    missing = [line for line in lines if line and not line.startswith("#") and f"`{line}`" not in text]
    assert not missing
    assert len(NAMED.findall(text)) > 10


def test_a_name_that_is_not_there_is_noticed() -> None:
    assert "test_a_name_that_is_not_there_is_noticed" in _tests("tests/unit/project/test_docs_references.py")
    assert "test_nothing_of_that_name" not in _tests("tests/unit/project/test_docs_references.py")
