"""The contract of the bus for programs: JSON Schemas and an AsyncAPI document, made from the models.

The models are the source; what is made of them lies in ``docs/generated`` and is checked against drift. A schema describes
what a *reader* may rely on: fields that are there, their types and units. Additional fields are always allowed (a later
MINOR adds some), and words of a list that may grow are plain strings. `breaking` tells whether a change needs a new MAJOR.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel

from qmp_migrate.bus.messages.handover_token import HostToken
from qmp_migrate.bus.messages.registry import MODELS, BusMessage
from qmp_migrate.bus.messages.topics import DEFAULT_ROOT, Kind

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"

ADDRESSES: Final[Mapping[Kind, str]] = {
    Kind.HOST_STATUS: "host/{host}/status",
    Kind.HOST_INFO: "host/{host}/info",
    Kind.HOST_LOAD: "host/{host}/load",
    Kind.HOST_VM: "host/{host}/vm/{vm}",
    Kind.HOST_EVENT: "host/{host}/event",
    Kind.HOST_TOKEN: "host/{host}/token/{migration}",
    Kind.MIGRATION_STATE: "migration/{migration}/state",
    Kind.MIGRATION_PROGRESS: "migration/{migration}/progress",
    Kind.MIGRATION_EVENT: "migration/{migration}/event",
    Kind.CONTROLLER_STATUS: "controller/{controller}/status",
}
"""The topics, below the root."""

PARAMETERS: Final = {
    "host": "Name of the host.",
    "vm": "Name of the guest.",
    "migration": "Id of the migration.",
    "controller": "Id of the controller.",
}

QOS_0: Final = frozenset({Kind.HOST_LOAD, Kind.MIGRATION_PROGRESS})


def schema_id(kind: Kind) -> str:
    """Return what this version writes into ``schema``: ``host.vm/1.1``."""
    return str(MODELS[kind].model_fields["schema_id"].default)


def json_schema(kind: Kind) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a kind of message, for readers."""
    name = schema_id(kind)
    document = MODELS[kind].model_json_schema(by_alias=True)
    _describe(document, MODELS[kind], kind)
    return {"$schema": DIALECT, "$id": f"urn:qmp-migrate:schema:{name.replace('/', ':')}", **document}


def file_name(kind: Kind) -> str:
    """Return the name of a schema's file: ``host.vm-1.1.json``."""
    return f"{schema_id(kind).replace('/', '-')}.json"


def asyncapi(version: str) -> dict[str, Any]:
    """Return the AsyncAPI 3.0 document of the bus, as a subscriber sees it.

    Args:
        version: Of qmp-migrate.
    """
    channels, operations, messages, schemas = {}, {}, {}, {}
    for kind in Kind:
        name = _camel(kind)
        document = json_schema(kind)
        for inner, definition in document.pop("$defs", {}).items():
            schemas[inner] = _moved(definition)
        del document["$schema"], document["$id"]
        schemas[f"{name}Payload"] = _moved(document)
        messages[name] = {
            "name": schema_id(kind),
            "title": kind.value,
            "summary": _first_line(MODELS[kind]),
            "contentType": "application/cloudevents+json" if kind.value.endswith(".event") else "application/json",
            "payload": {"$ref": f"#/components/schemas/{name}Payload"},
        }
        address = ADDRESSES[kind]
        channels[name] = {
            "address": f"{DEFAULT_ROOT}/{address}",
            "messages": {name: {"$ref": f"#/components/messages/{name}"}},
            "parameters": {word: {"description": PARAMETERS[word]} for word in re.findall(r"\{(\w+)\}", address)},
        }
        operations[f"receive{name[0].upper()}{name[1:]}"] = {
            "action": "receive",
            "channel": {"$ref": f"#/channels/{name}"},
            "messages": [{"$ref": f"#/channels/{name}/messages/{name}"}],
            "bindings": {
                "mqtt": {"qos": 0 if kind in QOS_0 else 1, "retain": kind.retained, "bindingVersion": "0.2.0"}
            },
        }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "qmp-migrate bus",
            "version": version,
            "description": "What hosts, guests and migrations say over MQTT. State is retained, events never are. "
            "MQTT tells, it never decides: nothing that is published here moves, stops or starts a guest.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "broker": {
                "host": "broker.example:8883",
                "protocol": "mqtts",
                "protocolVersion": "3.1.1",
                "description": "Any MQTT broker; made by `qmp-migrate broker init`.",
            }
        },
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages, "schemas": schemas},
    }


def breaking(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Say what of a change to a schema would break a reader of the old one, or a payload of the old one for a new reader.

    Args:
        old: The schema as it was published.
        new: The schema as it is now, of the same MAJOR.

    Returns:
        One line each; empty: a new MINOR is enough.
    """
    return _broken(old, new, old.get("$defs", {}), new.get("$defs", {}), "")


def _broken(
    old: Mapping[str, Any], new: Mapping[str, Any], old_defs: Mapping[str, Any], new_defs: Mapping[str, Any], where: str
) -> list[str]:
    old, new = _resolved(old, old_defs), _resolved(new, new_defs)
    found: list[str] = []
    at = where or "the document"
    for word in ("type", "format", "enum", "const", "pattern"):
        if word in old and old.get(word) != new.get(word) and not where.endswith(".schema"):
            found.append(f"{at}: {word} {old.get(word)!r} became {new.get(word)!r}")
    before, after = old.get("properties", {}), new.get("properties", {})
    for name, schema in before.items():
        if name not in after:
            found.append(f"{where}.{name}: removed")
        else:
            found += _broken(schema, after[name], old_defs, new_defs, f"{where}.{name}")
    fresh = set(new.get("required", ())) - set(old.get("required", ()))
    found += [f"{where}.{name}: required, and was not" for name in sorted(fresh)]
    lost = set(old.get("required", ())) - set(new.get("required", ()))
    found += [f"{where}.{name}: may be left out now" for name in sorted(lost)]
    if "items" in old and "items" in new:
        found += _broken(old["items"], new["items"], old_defs, new_defs, f"{where}[]")
    kinds, others = _kinds(old, old_defs), _kinds(new, new_defs)
    if kinds and kinds != others:
        found.append(f"{at}: {sorted(kinds)} became {sorted(others)}")
    return found


def _kinds(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> set[str]:
    return {str(_resolved(each, definitions).get("type")) for each in schema.get("anyOf", ())}


def _resolved(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    name = str(schema.get("$ref", "")).rpartition("/")[2]
    found: Mapping[str, Any] = definitions.get(name, schema) if name else schema
    return found


# -- descriptions -----------------------------------------------------------------------------------------------


def _describe(document: dict[str, Any], model: type[BaseModel], kind: Kind) -> None:
    """Put the docstrings in: the first paragraph, and of each field what its class says about it."""
    document["title"] = kind.value
    document["description"] = _first_line(model)
    _fields(document, model)
    name, _, version = schema_id(kind).partition("/")
    document["properties"]["schema"] = {
        "type": "string",
        "pattern": f"^{re.escape(name)}/{version.partition('.')[0]}[.][0-9]{{1,6}}$",
        "description": f"NAME/MAJOR.MINOR; this version writes {schema_id(kind)}.",
    }
    document["required"] = sorted({"schema", *document.get("required", ())})
    for inner, definition in document.get("$defs", {}).items():
        part = _part(model, inner)
        if part is not None:
            definition["description"] = _first_line(part)
            _fields(definition, part)


def _fields(document: dict[str, Any], model: type[BaseModel]) -> None:
    told: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if issubclass(base, BaseModel):
            told |= _attributes(base.__doc__ or "")
    for name, schema in document.get("properties", {}).items():
        schema.pop("title", None)
        if name in told:
            schema["description"] = told[name]
    if model is HostToken or issubclass(model, BusMessage):
        document.pop("additionalProperties", None)


def _attributes(text: str) -> dict[str, str]:
    """Read the section ``Attributes:`` of a docstring; several names before one colon share a text."""
    _, _, section = inspect.cleandoc(text).partition("Attributes:\n")
    found: dict[str, str] = {}
    names: list[str] = []
    for line in section.splitlines():
        match = re.match(r"^    ([a-z_0-9]+(?:, [a-z_0-9]+)*): (.*)$", line)
        if match is not None:
            names = match[1].split(", ")
            found |= dict.fromkeys(names, match[2].replace("``", "`"))
        elif line.startswith("        ") and names:
            for name in names:
                found[name] += " " + line.strip().replace("``", "`")
        elif line.strip():
            break
    return found


def _part(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    modules = {base.__module__ for base in model.__mro__ if issubclass(base, BaseModel)}
    for kind in BaseModel.__subclasses__():
        found = _below(kind, name, modules)
        if found is not None:
            return found
    return None


def _below(kind: type[BaseModel], name: str, modules: set[str]) -> type[BaseModel] | None:
    if kind.__name__ == name and kind.__module__ in modules:
        return kind
    for below in kind.__subclasses__():
        found = _below(below, name, modules)
        if found is not None:
            return found
    return None


def _first_line(model: type[BaseModel]) -> str:
    return " ".join(inspect.cleandoc(model.__doc__ or "").partition("\n\n")[0].split()).replace("``", "`")


def _camel(kind: Kind) -> str:
    first, second = kind.value.split(".")
    return first + second[0].upper() + second[1:]


def _moved(value: Any) -> Any:
    """Return a schema whose references lead into the components."""
    if isinstance(value, dict):
        return {
            key: each.replace("#/$defs/", "#/components/schemas/") if key == "$ref" else _moved(each)
            for key, each in value.items()
        }
    return [_moved(each) for each in value] if isinstance(value, list) else value
