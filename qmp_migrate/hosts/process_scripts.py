"""The shell scripts behind :mod:`qmp_migrate.hosts.process`.

They answer with one line ``WORD …`` on standard output and exit status 0; any other status means that the question could
not be answered. A process is *this* process when its pid, its start time and the boot id of its machine are the same
(DESIGN rule 5): a pid alone is given to somebody else sooner or later.
"""

from __future__ import annotations

from typing import Final

from qmp_migrate.hosts.scripts import script

STATE_OF: Final = script("processes/state_of")
IS_ALIVE: Final = script("processes/is_alive")
WAIT_GONE: Final = script("processes/wait_gone")
KILL: Final = script("processes/kill")
KILL_CLOSED: Final = script("processes/kill_closed")
IDENTIFY: Final = script("processes/identify")
LAUNCH: Final = script("processes/launch")
COMMAND_LINE: Final = script("processes/command_line")
DISCARD: Final = script("processes/discard")
LIST: Final = script("processes/list")
