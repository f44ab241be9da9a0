"""What all messages of the bus share, and the envelope of events."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from qmp_migrate.bus.messages.field_types import Count, Name, Text, Timestamp

PresenceState = Literal["ready", "draining", "stopped", "lost"]

SchemaId = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z.]{0,62}/[0-9]{1,6}\.[0-9]{1,6}$")]
SessionId = Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z-]{1,64}\.[0-9]{1,19}$")]
Items = Annotated[list[Text], Field(max_length=1024)]


class Part(BaseModel):
    """Base of what messages are made of."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, populate_by_name=True)


class BusMessage(Part):
    """Base of all messages.

    Attributes:
        schema_id: ``name/MAJOR.MINOR``; ``schema`` on the wire. The default is what this version writes.
    """

    schema_id: SchemaId = Field(default="bus/0.0", alias="schema")

    @property
    def speaker(self) -> str | None:
        """The name that the topic must carry too (host, migration, controller); ``None`` where none is told."""
        return None


class StatusMessage(BusMessage):
    """What a publisher says about itself: retained, and its last will on the same topic.

    Attributes:
        at: When this was written; in a ``lost`` will: when the connection was made.
        state: ``lost`` is only ever said by the broker, as the last will.
        session: ``BOOT-ID.N``, N grows within a boot: a will of an older session does not end a newer one.
        started_at: When the session began; orders sessions of different boots.
        version: Version of the publisher.
    """

    at: Timestamp
    state: PresenceState
    session: SessionId
    started_at: Timestamp
    version: Text


class CloudEvent(BusMessage):
    """A CloudEvents 1.0 event in structured JSON. ``schema``, ``session`` and ``seq`` are our extension attributes.

    Attributes:
        specversion: CloudEvents version.
        id: Unique within ``source``.
        source: Who says it: ``/qmp-migrate/host/HOST`` or ``/qmp-migrate/controller/ID``.
        type: What happened, for example ``org.qemu.qmp.STOP`` or ``qmp-migrate.migration.phase``.
        time: When it happened.
        subject: The guest it is about, or ``null``.
        datacontenttype: Always JSON.
        session: Session of the publisher: `seq` starts anew with each.
        seq: Grows by one per event of a session on a topic: a gap is a lost event.
        data: What belongs to the type.
    """

    specversion: Literal["1.0"] = "1.0"
    id: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    source: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    type: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    time: Timestamp
    subject: Name | None
    datacontenttype: Literal["application/json"] = "application/json"
    session: SessionId
    seq: Count
    data: dict[str, Any]
