"""A pytest plugin (``-p tests.faults.seeded``): seeds the bug named by QMP_MIGRATE_SEEDED_BUG before tests are imported."""

from __future__ import annotations

import os

from tests.faults.bugs import BUGS

BUGS[os.environ["QMP_MIGRATE_SEEDED_BUG"]].seed()
