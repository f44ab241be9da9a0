"""What users and their programs build on is what it was: the public names, the settings, the JSON documents, the codes.

Golden: ``tests/data/public_surface.json``. After a wanted change, which belongs into CHANGELOG.md::

    python -m tests.unit.project.test_public_surface

Commands, options, error classes, exit codes, topics and bus messages are in ``docs/generated/``, which has a test of its own.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import json
from collections.abc import Iterator
from typing import Any

import qmp_migrate
from qmp_migrate.settings import Settings
from tests import ROOT

GOLDEN = ROOT / "tests" / "data" / "public_surface.json"
PACKAGES = ("qmp_migrate", "hostagent")


def trees() -> Iterator[tuple[str, ast.Module]]:
    """Every module of the product with its syntax tree."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            yield name, ast.parse(path.read_text("utf-8"))


def documents() -> dict[str, list[str]]:
    """The members of every document that names its schema, as far as the code spells them out."""
    found: dict[str, set[str]] = {}
    for name, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Dict):
                for schema, members in _document(node):
                    found.setdefault(schema, set()).update(members)
            elif isinstance(node, ast.ClassDef):
                inside = [
                    schema for part in ast.walk(node) if isinstance(part, ast.Dict) for schema, _ in _document(part)
                ]
                for schema in [*inside, *_schemas_of(node)]:
                    found.setdefault(schema, set()).update(_fields(getattr(importlib.import_module(name), node.name)))
    return {schema: sorted(members) for schema, members in sorted(found.items())}


def _document(node: ast.Dict) -> Iterator[tuple[str, set[str]]]:
    members = {key.value: value for key, value in zip(node.keys, node.values, strict=True) if _is_text(key)}  # type: ignore[union-attr]
    schema = members.get("schema")
    if _is_text(schema) and "/" in schema.value:  # type: ignore[union-attr]
        yield schema.value, set(members)  # type: ignore[union-attr]


def _is_text(node: Any) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _schemas_of(node: ast.ClassDef) -> Iterator[str]:
    for statement in node.body:
        if (
            isinstance(statement, ast.AnnAssign)
            and ast.unparse(statement.target) == "schema"
            and _is_text(statement.value)
        ):
            yield statement.value.value  # type: ignore[union-attr]


def _fields(kind: type) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []


def _codes_assigned(node: ast.Assign) -> Iterator[str]:
    """Yield what is assigned to ``code``, also as one of several: ``code, what = "guest_shutdown", …``."""
    for target in node.targets:
        names = target.elts if isinstance(target, ast.Tuple) else [target]
        values = node.value.elts if isinstance(node.value, ast.Tuple) and len(names) > 1 else [node.value]
        for name, value in zip(names, values, strict=False):
            if ast.unparse(name) == "code" and _is_text(value):
                yield value.value  # type: ignore[attr-defined]


def codes() -> list[str]:
    """Every error code that is given to an error as it is raised, or that belongs to a class."""
    found = set()
    for _, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg == "code":
                found |= {part.value for part in ast.walk(node.value) if _is_text(part)}  # type: ignore[attr-defined]
            elif isinstance(node, ast.Assign):
                found |= set(_codes_assigned(node))
    return sorted(found)


def settings_keys() -> list[str]:
    """Every key of the settings file, as ``section.key``."""

    def walk(schema: dict[str, Any], prefix: str) -> Iterator[str]:
        for key, value in sorted(schema.get("properties", {}).items()):
            yield f"{prefix}{key}"
            for part in (value, value.get("additionalProperties"), value.get("items"), *value.get("anyOf", [])):
                if isinstance(part, dict) and "$ref" in part:
                    yield from walk(definitions[part["$ref"].rpartition("/")[2]], f"{prefix}{key}.")

    whole = Settings.model_json_schema()
    definitions = whole.get("$defs", {})
    return list(walk(whole, ""))


def surface() -> dict[str, Any]:
    """All of it."""
    return {
        "names": sorted(qmp_migrate.__all__),
        "settings": settings_keys(),
        "documents": documents(),
        "codes": codes(),
    }


def test_the_public_surface_is_what_it_was() -> None:
    assert surface() == json.loads(GOLDEN.read_text("utf-8")), (
        "wanted? then: python -m tests.unit.project.test_public_surface"
    )


def test_it_is_worth_looking_at() -> None:
    """It has seen what is known to be there."""
    found = surface()
    assert "Controller" in found["names"]
    assert {"hosts.address", "migration.downtime_limit"} <= set(found["settings"])
    assert {"id", "owner", "outcome"} <= set(found["documents"]["migration.result/1"])
    assert {"guest_shutdown", "connection_lost"} <= set(found["codes"])


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(surface(), indent=1) + "\n", "utf-8")
    print(GOLDEN.relative_to(ROOT))
