"""Seeds the bug named by QMP_MIGRATE_SEEDED_BUG before tests are imported: ``pytest -p tests.faults.seeded_bugs.plugin``."""

from __future__ import annotations

import os

from tests.faults.seeded_bugs.bugs import BUGS

BUGS[os.environ["QMP_MIGRATE_SEEDED_BUG"]].seed()
