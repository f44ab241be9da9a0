"""How long each QMP command may take, in seconds, in one table.

QEMU's main loop stalls at switchover and while it cleans a migration up (a hung source has answered after more
than 15 s), so the commands sent then get more time. A time limit that passes means *unknown*, never *dead*
(DESIGN rule 5). Out-of-band commands are answered by QEMU's monitor thread and are quick or never.
"""

from __future__ import annotations

from typing import Final

CONNECT_S: Final = 5.0
"""Greeting and capability negotiation. A monitor serves one client: a second one gets no greeting at all."""

DEFAULT_S: Final = 5.0

OUT_OF_BAND_S: Final = 2.0

ENDING_S: Final = 3.0
"""So long a QEMU that has said ``SHUTDOWN`` is asked nothing more in band. A command that is in its queue when it leaves its
main loop makes QEMU up to 10.0 hang for ever in ``monitor_cleanup``, its guest ended and its disks closed; with
``-no-shutdown`` it stays and may be asked."""

HUNG_END_S: Final = 10.0
"""A QEMU that has said ``SHUTDOWN`` so long ago and answers nothing hangs at its end."""

COMMAND_S: Final[dict[str, float]] = {
    "query-qmp-schema": 10.0,
    "query-cpu-definitions": 10.0,
    "query-migrate": 30.0,
    "query-status": 30.0,
    "migrate": 10.0,
    "migrate-incoming": 15.0,
    "migrate-set-capabilities": 10.0,
    "migrate-set-parameters": 10.0,
    "migrate_cancel": 30.0,
    "migrate-start-postcopy": 10.0,
    "migrate-continue": 30.0,
    "cont": 10.0,
    "stop": 30.0,
    "object-add": 10.0,
    "device_add": 30.0,
    "device_del": 30.0,
    "blockdev-add": 10.0,
    "blockdev-del": 30.0,
    "block-job-cancel": 30.0,
    "nbd-server-stop": 30.0,
    "quit": 10.0,
}


def limit(command: str, *, oob: bool = False) -> float:
    """Return the time limit of a command in seconds."""
    return OUT_OF_BAND_S if oob else COMMAND_S.get(command, DEFAULT_S)
