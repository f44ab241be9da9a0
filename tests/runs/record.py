"""A pytest plugin (`-p tests.runs.record`) that writes down how each test ended, as soon as that is known.

`--record FILE` appends one JSON document a line: `{"id", "outcome", "seconds", "text"}`. `--recorded FILE` names a record
of an earlier run that was interrupted: the tests in it are not run again, however they ended.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the two options."""
    group = parser.getgroup("record")
    group.addoption("--record", metavar="FILE", help="append how each test ended, one JSON document a line")
    group.addoption("--recorded", metavar="FILE", help="do not run the tests that this record holds")


def pytest_configure(config: pytest.Config) -> None:
    """Set up the recorder, in the process that hears of all tests."""
    if config.getoption("--record") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(Path(config.getoption("--record"))))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what has been run."""
    name = config.getoption("--recorded")
    if not name or not Path(name).exists():
        return
    done = {json.loads(line)["id"] for line in Path(name).read_text().splitlines()}
    left = [item for item in items if item.nodeid not in done]
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in done])
    items[:] = left


class Recorder:
    """Writes the record."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._parts: dict[str, list[pytest.TestReport]] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> Iterator[None]:
        """Hear of one part of a test: setup, call, teardown; the last one completes it."""
        yield
        parts = self._parts.setdefault(report.nodeid, [])
        parts.append(report)
        if report.when not in {"setup", "call"}:  # "???": the worker that ran it is dead
            del self._parts[report.nodeid]
            self._write(report.nodeid, parts)

    def _write(self, nodeid: str, parts: list[pytest.TestReport]) -> None:
        bad = [part for part in parts if part.failed]
        skipped = any(part.skipped for part in parts)
        entry = {
            "id": nodeid,
            "outcome": "failed" if bad else "skipped" if skipped else "passed",
            "seconds": round(sum(part.duration for part in parts), 3),
            "text": "\n".join(_text(part) for part in bad),
        }
        with self._path.open("a") as file:
            file.write(json.dumps(entry) + "\n")


def _text(report: pytest.TestReport) -> str:
    sections = [f"---- {title} ----\n{content}" for title, content in report.sections]
    return "\n".join([f"==== {report.when} ====", report.longreprtext, *sections])
