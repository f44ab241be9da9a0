"""Messages to payloads and back.

Everything that arrives is hostile until proven otherwise: it is measured before it is parsed, parsed with a bounded
depth, and checked against the model of the topic it came on. What is refused raises `BusError` with a ``code`` that
says why, and nothing else is ever raised.

====================  ==================================================================
``code``              meaning
====================  ==================================================================
``bus_topic``         not a topic of ours
``bus_too_large``     more than 64 KiB
``bus_not_json``      not JSON, or nested too deeply
``bus_no_schema``     no ``schema`` member, or not of the form ``name/MAJOR.MINOR``
``bus_other_schema``  another schema, or another MAJOR of it, than the topic carries
``bus_bad_field``     a member is missing or has a wrong type or value
``bus_wrong_speaker`` the payload names another host, migration or controller than its topic
====================  ==================================================================
"""

from __future__ import annotations

import re
from typing import Final

from pydantic import ValidationError
from pydantic_core import PydanticSerializationError, from_json

from qmp_migrate.bus.messages.registry import MODELS, BusMessage, HostToken, HostVm
from qmp_migrate.bus.messages.topics import Address, Topics
from qmp_migrate.errors import BusError

MAX_PAYLOAD_BYTES: Final = 65_536
MAX_DEPTH: Final = 32
"""Levels of objects and arrays; ours need 6, a QMP event's data a few more."""

_SCHEMA: Final = re.compile(r"([a-z][a-z.]{0,62})/([0-9]{1,6})\.([0-9]{1,6})")


def encode(message: BusMessage) -> bytes:
    """Return a message as the payload of its topic.

    Raises:
        BusError: It is larger than 64 KiB (``bus_too_large``) or holds what JSON cannot say (``bus_bad_field``).
    """
    try:
        payload = message.model_dump_json(by_alias=True).encode()
    except (PydanticSerializationError, UnicodeError, ValueError, RecursionError) as error:
        raise refusal("bus_bad_field", f"a {message.schema_id} message cannot be written: {error}") from error
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise refusal("bus_too_large", f"a {message.schema_id} message has {len(payload)} bytes")
    return payload


def decode(topics: Topics, topic: str, payload: bytes) -> tuple[Address, BusMessage | None]:
    """Take apart what arrived on a topic.

    Args:
        topics: The root in force.
        topic: Topic it came on.
        payload: What came; empty: the retained state of this topic was cleared.

    Returns:
        What the topic is, and the message; ``None`` for an empty payload.

    Raises:
        BusError: See the table above. Nothing else.
    """
    address = topics.parse(topic)
    if address is None:
        raise refusal("bus_topic", f"{topic[:200]!r} is not a topic of ours")
    if not payload:
        return address, None
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise refusal("bus_too_large", f"{topic}: payload of {len(payload)} bytes")
    _check_schema(address, topic, payload)
    message, reason = None, ""
    try:
        message = MODELS[address.kind].model_validate_json(payload)
    except (ValidationError, ValueError, RecursionError) as error:
        reason = _first(error)
    # Not raised in there: it would keep pydantic's error as its context, which Python's collector cannot look into; with the
    # frames of its traceback that is a cycle that is never freed, and a subscriber would grow with every bad message.
    if message is None:
        raise refusal("bus_bad_field", f"{topic}: {reason}")
    if message.speaker is not None and message.speaker != address.owner:
        raise refusal("bus_wrong_speaker", f"{topic}: payload speaks for {message.speaker!r}")
    if isinstance(message, HostVm) and message.vm != address.vm:
        raise refusal("bus_wrong_speaker", f"{topic}: payload speaks for guest {message.vm!r}")
    if isinstance(message, HostToken) and message.migration != address.migration:
        raise refusal("bus_wrong_speaker", f"{topic}: payload speaks for migration {message.migration!r}")
    return address, message


def refusal(code: str, message: str) -> BusError:
    """Return the error for a message that is refused, with its ``code``."""
    error = BusError(
        f"refused: {message}",
        hint="see docs/reference/bus.md for the contract; a newer MAJOR needs a newer qmp-migrate",
    )
    error.code = code  # type: ignore[misc]  # finer than the class, as in MigrationFailed
    return error


def _check_schema(address: Address, topic: str, payload: bytes) -> None:
    try:
        document = from_json(payload, allow_inf_nan=False)
    except (ValueError, RecursionError) as error:
        raise refusal("bus_not_json", f"{topic}: {error}") from None
    brackets = payload.count(b"{") + payload.count(b"[")
    if brackets > MAX_DEPTH and _deeper_than(document, MAX_DEPTH):
        raise refusal("bus_not_json", f"{topic}: nested more than {MAX_DEPTH} levels")
    schema = document.get("schema") if isinstance(document, dict) else None
    match = _SCHEMA.fullmatch(schema) if isinstance(schema, str) else None
    if match is None:
        raise refusal("bus_no_schema", f"{topic}: no schema 'name/MAJOR.MINOR'")
    known = MODELS[address.kind].model_fields["schema_id"].default
    name, major = known.partition("/")[0], known.partition("/")[2].partition(".")[0]
    if (match[1], match[2]) != (name, major):
        raise refusal("bus_other_schema", f"{topic}: schema {schema}, understood is {name}/{major}.x")


def _deeper_than(document: object, limit: int) -> bool:
    """Tell whether a document nests deeper than `limit`, without recursion."""
    level: list[object] = [document]
    for _ in range(limit):
        below: list[object] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
        level = below
        if not level:
            return False
    return any(isinstance(item, dict | list) for item in level)


def _first(error: Exception) -> str:
    """Say the first thing that is wrong, without repeating the payload."""
    if isinstance(error, ValidationError):
        problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in problem["loc"])[:200] or "payload"
        return f"{where}: {problem['msg'][:200]}"
    return str(error)[:200]
