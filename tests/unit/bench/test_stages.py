"""Where the time of a migration went."""

from __future__ import annotations

import pytest

from bench.measure.stages import stages
from qmp_migrate.migration.model.phases import Phase


def test_each_phase_ends_the_stage_before_it_and_the_rest_is_leaving() -> None:
    phases = [("preflight", 10.4), ("locked", 10.45), ("committed", 11.45), ("done", 11.5)]

    found = stages(10.0, phases, 11.8)

    assert list(found) == ["start and preflight", "lock", "copy", "note the end", "leave"]
    assert list(found.values()) == pytest.approx([400, 50, 1000, 50, 300])


def test_the_stages_add_up_to_the_whole_whatever_phases_are_unknown_to_it() -> None:
    phases = [("preflight", 1.0), ("disks-mirroring", 3.0), ("copying", 4.0), ("rolling-back", 5.0)]
    assert sum(stages(0.5, phases, 6.0).values()) == pytest.approx(5500)


def test_it_knows_the_phases_that_the_journal_writes() -> None:
    from bench.measure.stages import UNTIL

    assert set(UNTIL) <= {phase.value for phase in Phase}


def test_nothing_in_the_journal_is_all_leaving() -> None:
    assert stages(1.0, [], 1.25) == {"leave": 250.0}
