"""The documentation says what the code says: what is made from the code is up to date, and what is written by hand
names everything there is."""

from __future__ import annotations

import importlib
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from pydantic import BaseModel

from qmp_migrate import QmpMigrateError, settings
from qmp_migrate.migration.model import phases
from qmp_migrate.migration.model.phases import Phase
from qmp_migrate.migration.model.request import MigrationResult
from qmp_migrate.vm.spec.guest_spec import DiskSpec, GuestSpec, NicSpec, parse_spec
from tests import ROOT

DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md"), *DOCS.glob("[!_]*/*.md")])


@pytest.fixture
def generate(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(DOCS)
    return importlib.import_module("generate")


def test_generated_pages_are_up_to_date(generate: ModuleType) -> None:
    assert generate.outdated() == [], "run: python docs/generate.py"


def test_a_page_that_differs_is_noticed(generate: ModuleType, tmp_path: Path) -> None:
    for name, text in generate.pages().items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, "utf-8")
    (tmp_path / "errors.md").write_text("something else", "utf-8")
    (tmp_path / "phases.svg").unlink()
    assert generate.outdated(tmp_path) == ["phases.svg", "errors.md"]


def test_the_picture_refuses_an_edge_that_it_cannot_show(generate: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    edges = {**phases.NEXT, Phase.ROLLED_BACK: frozenset({Phase.REQUESTED})}
    monkeypatch.setattr(sys.modules["phase_graph"], "NEXT", edges)
    with pytest.raises(ValueError, match="rolled-back"):
        generate.phase_graph("by a test")


def test_the_rules_of_a_cell_say_what_decide_says(generate: ModuleType) -> None:
    table = importlib.import_module("decision_table")
    for source in table.SOURCES:
        for destination in table.DESTINATIONS:
            answers = table.cell(source, destination)
            found = table.rules(answers)
            for key, decision in answers.items():
                words = {text[value] for text, value in zip(table.QUESTIONS, key, strict=True)}
                assert [rule for conditions, rule in found if set(conditions) <= words] == [decision]


@pytest.mark.parametrize(
    ("page", "model"),
    [
        ("settings.md", settings.ControllerSettings),
        ("settings.md", settings.MqttSettings),
        ("settings.md", settings.MigrationSettings),
        ("settings.md", settings.WatchdogSettings),
        ("settings.md", settings.HookSettings),
        ("settings.md", settings.MetricsSettings),
        ("settings.md", settings.NotifySettings),
        ("settings.md", settings.HostSettings),
        ("spec.md", GuestSpec),
        ("spec.md", DiskSpec),
        ("spec.md", NicSpec),
    ],
)
def test_every_key_is_described(page: str, model: type[BaseModel]) -> None:
    rows = _rows(page)
    keys = set(model.model_fields) - {"disk", "nic"}  # those have sections of their own
    assert keys <= rows, f"{page} does not describe {sorted(keys - rows)}"


def test_no_key_is_described_that_is_not_there() -> None:
    sections = (
        settings.ControllerSettings,
        settings.MqttSettings,
        settings.MigrationSettings,
        settings.WatchdogSettings,
        settings.HookSettings,
        settings.MetricsSettings,
        settings.NotifySettings,
        settings.HostSettings,
    )
    assert _rows("settings.md") <= {key for section in sections for key in section.model_fields} | {"size"}


def test_every_member_of_the_result_is_described() -> None:
    document = MigrationResult("m1", "web1", "a", "b", "live").to_dict()
    members = (set(document) - {"qemu", "vm"}) | {f"qemu.{name}" for name in document["qemu"]}
    assert members <= _rows("result.md")


def test_every_exit_code_is_described() -> None:
    used = {0, 4, 130} | {kind.exit_code for kind in _classes(QmpMigrateError)}
    text = (DOCS / "reference/exit-codes.md").read_text("utf-8")
    assert used == {int(code) for code in re.findall(r"^\| ([0-9]+) \|", text, re.MULTILINE)}


def test_every_phase_is_described() -> None:
    text = (DOCS / "handover.md").read_text("utf-8")
    assert {phase.value for phase in Phase} <= set(re.findall(r"^\| `([a-z-]+)` \|", text, re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_toml_examples_are_read_by_the_program(page: Path) -> None:
    for example in re.findall(r"^ *```toml\n(.*?)^ *```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL):
        data = tomllib.loads(example)
        if "name" in data:
            parse_spec(example, source=page.name, base_dir="/srv")
        elif set(data) == {"hosts"} and not any("address" in host for host in data["hosts"].values()):
            keys = {key for host in data["hosts"].values() for key in host}
            assert keys <= set(settings.HostSettings.model_fields)
        elif set(data) <= set(settings.Settings.model_fields):
            settings.parse(example, source=page.name)
        else:
            assert set(data) <= set(GuestSpec.model_fields)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_files_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text("utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def _rows(page: str) -> set[str]:
    """Return the names in the first column of a page's tables."""
    text = (DOCS / "reference" / page).read_text("utf-8")
    firsts = re.findall(r"^\| ((?:`[a-z_.]+`(?:, )?)+) \|", text, re.MULTILINE)
    return {name for first in firsts for name in re.findall(r"`([a-z_.]+)`", first)}


def _classes(kind: type[QmpMigrateError]) -> list[type[QmpMigrateError]]:
    return [kind, *(found for below in kind.__subclasses__() for found in _classes(below))]
