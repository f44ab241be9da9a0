"""What two agents say to each other to hand a guest over when its controller is gone.

Four words, each signed with the secret of that one migration, which the controller has given to both hosts over SSH and
which never travels over the bus::

    source's agent                        destination's agent
      offer (nonce O)          ->
                               <-           ready (O, nonce R)     it holds the guest's lock from here on
      (ends the source, proves it)
      run   (O, R)             ->                                  the run token
                               <-           runs  (O)              it runs there

A token is good for one `R`, which its receiver has made up moments ago and takes once: it is fresh by the receiver's own
clock, so that a replayed, late or reordered one means nothing, whatever the clocks of the two hosts say. The signature
covers every field, so that one of another migration, host or epoch does not verify. The order and the reasons stand in
`hostagent.failover.decision`.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from qmp_migrate.bus.messages.base import BusMessage, SchemaId
from qmp_migrate.bus.messages.field_types import Count, Name, Timestamp

Nonce = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
Signature = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Process = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,10} [0-9]{1,19} [0-9a-f-]{1,64}$")]
TokenStep = Literal["offer", "ready", "run", "runs"]

UNSIGNED = "0" * 64


class HostToken(BusMessage):
    """``host/HOST/token/MIGRATION``: never retained; one word of a hand-over between two agents.

    Attributes:
        host: Who says it.
        at: When; for people, nothing is decided by it.
        migration: Which migration.
        vm: Its guest.
        step: ``offer``, ``ready``, ``run`` (the token) or ``runs``.
        epoch: The migration's fencing number, as the controller gave it.
        process: The destination's QEMU: ``PID START_TICKS BOOT_ID``.
        offer: What the source's agent made up for this try.
        ready: What the destination's agent made up in answer; ``null`` in ``offer`` and ``runs``.
        signature: HMAC-SHA256 over all other fields, hex.
    """

    schema_id: SchemaId = Field(default="host.token/1.0", alias="schema")

    host: Name
    at: Timestamp
    migration: Name
    vm: Name
    step: TokenStep
    epoch: Count
    process: Process
    offer: Nonce
    ready: Nonce | None
    signature: Signature = UNSIGNED

    @property
    def speaker(self) -> str:
        """The host."""
        return self.host

    def signed(self, secret: bytes) -> HostToken:
        """Return it with its signature.

        Args:
            secret: The migration's, 32 bytes.
        """
        return self.model_copy(update={"signature": _mac(self, secret)})

    def verified(self, secret: bytes) -> bool:
        """Tell whether its signature is that of the secret; takes as long for a wrong one as for a right one."""
        return hmac.compare_digest(self.signature, _mac(self, secret))


def _mac(token: HostToken, secret: bytes) -> str:
    fields: dict[str, Any] = token.model_dump(mode="json", by_alias=True, exclude={"signature"})
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hmac.new(secret, text.encode("ascii"), hashlib.sha256).hexdigest()
