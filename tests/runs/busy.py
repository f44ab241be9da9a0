"""Another program that keeps one core busy, as long as this one runs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

# Ends by itself when its parent is gone, also when that was killed.
LOOP: Final = """
import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
print("busy", flush=True)
while os.getppid() == int(sys.argv[2]):
    for _ in range(1_000_000):
        pass
"""


@contextmanager
def busy_core() -> Iterator[int]:
    """Keep the last core busy that this process may use; yield its number."""
    core = max(os.sched_getaffinity(0))
    argv = [sys.executable, "-c", LOOP, str(core), str(os.getpid())]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"busy\n"
            yield core
        finally:
            process.kill()
