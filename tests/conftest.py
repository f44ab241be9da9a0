"""What all tests share: how hard the property tests try.

``HYPOTHESIS_PROFILE=ci`` tries ten times as much as the default, and prints how to repeat a failure; ``deep`` is for hours
in which nobody waits.
"""

from __future__ import annotations

import os

import structlog
from hypothesis import settings

# Many tests share this machine: their agents tell of their own guests only, but for those that are about others.
os.environ.setdefault("QMP_HOSTAGENT_FOREIGN", "false")

# No deadline: the machines that run this are shared, and a slow example is not a wrong one.
settings.register_profile("default", max_examples=100, deadline=None)
settings.register_profile("ci", max_examples=1000, deadline=None, print_blob=True)
settings.register_profile("deep", max_examples=3000, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_runtest_teardown() -> None:
    """A command that is run in this process sets up logging to a standard error that is gone afterwards."""
    structlog.reset_defaults()
