"""One of several processes that run cases, each on a rig of its own."""

from __future__ import annotations

import signal
from typing import Any

from tests.faults.cases.catalogue import CASES
from tests.faults.execution.running import run
from tests.faults.lab.stand import stand


def work(job: int, todo: Any, done: Any) -> None:
    """Run cases on a rig of one's own until there are no more."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the one who hands out the work obeys
    with stand(job) as place:
        while (entry := todo.get()) is not None:
            name, seed, logs, bug = entry
            done.put(run(place, CASES[name], seed, logs, bug=bug))
