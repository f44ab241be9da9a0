"""The field types that all messages of the bus are made of."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Final

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BeforeValidator,
    Field,
    PlainSerializer,
    StringConstraints,
    WithJsonSchema,
)

from qmp_migrate.errors import InvalidName
from qmp_migrate.vm.names import validate_name

_RFC3339: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)")


def now() -> datetime:
    """Return the time in UTC, cut to the milliseconds that the bus carries."""
    return _to_utc_ms(datetime.now(UTC))


def rfc3339(moment: datetime) -> str:
    """Write a time the one way the bus writes it: UTC, milliseconds, ``Z``."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def _only_rfc3339(value: object) -> object:
    # Left alone, pydantic also takes numbers, and "20261123" for seconds since the epoch.
    if isinstance(value, datetime) or (isinstance(value, str) and _RFC3339.fullmatch(value)):
        return value
    raise ValueError("not an RFC 3339 time")


def _to_utc_ms(moment: datetime) -> datetime:
    try:
        moment = moment.astimezone(UTC)
    except OverflowError:  # year 1 with a positive offset, year 9999 with a negative one
        raise ValueError("time out of range") from None
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def _is_name(value: str) -> str:
    try:
        return validate_name(value, "name")
    except InvalidName as error:
        raise ValueError(error.message) from None


Timestamp = Annotated[
    AwareDatetime,
    Field(strict=False),  # text in, behind the check below
    BeforeValidator(_only_rfc3339),
    AfterValidator(_to_utc_ms),
    PlainSerializer(rfc3339, return_type=str, when_used="json"),
]
"""UTC, RFC 3339, milliseconds."""

Name = Annotated[
    str,
    AfterValidator(_is_name),
    WithJsonSchema({"type": "string", "pattern": "^[a-z0-9][a-z0-9_.-]{0,62}$", "not": {"pattern": "[.][.]"}}),
]
"""Host, guest, migration or controller (DESIGN rule 10)."""

Word = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:-]{0,62}$")]
"""A word of a list that may grow (phase, run state, outcome): a reader must not fail on one it does not know."""

Text = Annotated[str, StringConstraints(max_length=4096)]
"""Free text for people."""

Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
"""An integer that is never negative; the unit stands in the field's name."""

Real = Annotated[float, Field(ge=0, le=1e18, allow_inf_nan=False)]
"""A number that is never negative nor infinite; the unit stands in the field's name."""

Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
"""0 to 100."""
