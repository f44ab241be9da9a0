"""What other programs do, against the tables of their own sources."""

from __future__ import annotations

from typing import Any

import pytest

from qmp_migrate.migration.convergence import policies, reference_policies
from qmp_migrate.migration.convergence.types import Allowed, Sample, Step

MIB, GIB = 1 << 20, 1 << 30
ANY = Allowed(300)


def sample(**values: Any) -> Sample:
    return Sample(
        **{"pass_number": 1, "remaining_bytes": GIB, "bandwidth_bytes_per_s": 125_000_000, "limit_ms": 100} | values
    )


def limits(decide: Any, samples: list[dict[str, Any]], start: int) -> list[int | str]:
    """Return the limit after each look, or the last step's kind."""
    limit, seen, told = start, list[Sample](), list[int | str]()
    for values in samples:
        seen.append(sample(**values, limit_ms=limit))
        step: Step = decide(seen, ANY)
        if step.kind not in {"none", "raise-downtime-limit"}:
            return [*told, step.kind]
        limit = step.limit_ms or limit
        told.append(limit)
    return told


# -- Nova: 8 GiB: 50 ms at 0 s, 95 at 600, 275 at 3000, 500 at 6000, given up at 6400; 64 GiB: 500 ms after 13.3 h ---------


@pytest.mark.parametrize(
    ("gib", "seconds", "wanted"),
    [
        (8, 1, 50),
        (8, 599, 50),
        (8, 600, 95),
        (8, 3000, 275),
        (8, 6000, 500),
        (8, 6399, 500),
        (8, 6401, "give-up"),
        (64, 47_999, 455),
        (64, 48_000, 500),
        (1, 150, 95),  # at least 2 GiB are counted
    ],
)
def test_nova(gib: int, seconds: int, wanted: int | str) -> None:
    (told,) = limits(reference_policies.nova, [{"elapsed_ms": seconds * 1000, "total_bytes": gib * GIB}], 50)
    assert told == wanted


# -- Proxmox: the sixth look that has grown doubles -------------------------------------------------------------------


def test_proxmox_doubles_with_the_sixth_look_in_which_the_rest_has_grown() -> None:
    saw = [100, 200, 50, 60, 40, 90, 30, 80, 20, 70, 10, 60, 5]
    told = limits(reference_policies.proxmox, [{"remaining_bytes": mib * MIB} for mib in saw], 100)
    assert told == [100] * 11 + [200, 200]


def test_proxmox_counts_nothing_left_as_growing_and_never_gives_up() -> None:
    told = limits(reference_policies.proxmox, [{"remaining_bytes": 0}] * 120, 100)
    assert told[6] == 200
    assert told[12] == 400
    assert told[-1] == 2_000_000


def test_proxmox_looks_ten_times_as_often_once_less_remains_than_a_look_moves() -> None:
    first = sample(remaining_bytes=1000, transferred_bytes=100)
    assert reference_policies.proxmox_interval_ms([first]) == 1000
    second = sample(remaining_bytes=100, transferred_bytes=900)
    assert reference_policies.proxmox_interval_ms([first, second]) == 100
    assert reference_policies.proxmox_interval_ms([first, second, first]) == 100  # from then on


# -- oVirt ------------------------------------------------------------------------------------------------------------


def by_passes(name: str, *passes: int) -> list[int | str]:
    return limits(
        reference_policies.OVIRT[name].decide,
        [{"pass_number": n} for n in passes],
        reference_policies.OVIRT[name].start_ms,
    )


def test_ovirt_minimal_downtime() -> None:
    # After more than 1, 2, 3, 4, 6 passes; one action with each new pass, and then it is over.
    assert by_passes("ovirt", 1, 2, 3, 4, 5, 6, 7, 8, 9) == [100, 100, 150, 200, 300, 400, 400, 500, "give-up"]


def test_ovirt_acts_once_a_look_however_many_passes_there_were() -> None:
    assert by_passes("ovirt", 1, 30, 30, 60, 90) == [100, 150, 150, 200, 300]


def test_ovirt_postcopy() -> None:
    assert by_passes("ovirt-postcopy", 1, 2, 3, 4, 5) == [100, 100, 150, 200, "postcopy"]


def test_ovirt_suspend_and_very_large() -> None:
    assert by_passes("ovirt-suspend", *range(1, 11))[-3:] == [500, 5000, "give-up"]
    assert by_passes("ovirt-very-large", *range(1, 11)) == [300, 300, 400, 500, 700, 1000, 1000, 1500, 5000, "give-up"]


# -- Ganeti, KubeVirt -------------------------------------------------------------------------------------------------


def test_ganeti_does_nothing() -> None:
    assert limits(reference_policies.ganeti, [{"elapsed_ms": 10**9, "pass_number": 10**6}], 30) == [30]
    assert policies.find("ganeti").bandwidth_bytes_per_s == 32 * MIB


@pytest.mark.parametrize(
    ("gib", "seconds", "wanted"), [(1, 149, 300), (1, 151, "give-up"), (8, 1199, 300), (8, 1201, "give-up")]
)
def test_kubevirt_gives_up_at_its_deadline(gib: int, seconds: int, wanted: int | str) -> None:
    now = {"elapsed_ms": seconds * 1000, "total_bytes": gib * GIB}
    assert limits(reference_policies.kubevirt, [now], 300) == [wanted]


def test_kubevirt_gives_up_when_the_least_rest_is_old() -> None:
    seen = [
        {"elapsed_ms": s * 1000, "remaining_bytes": r * MIB, "total_bytes": 64 * GIB} for s, r in ((0, 500), (10, 100))
    ]
    seen += [{"elapsed_ms": s * 1000, "remaining_bytes": 150 * MIB, "total_bytes": 64 * GIB} for s in (100, 160, 161)]
    assert limits(reference_policies.kubevirt, seen, 300) == [300, 300, 300, 300, "give-up"]


def test_kubevirt_tuned_goes_to_900_ms_in_seven_steps_from_pass_4_on() -> None:
    seen = [
        {"pass_number": n, "elapsed_ms": n * 1000, "remaining_bytes": GIB // n, "total_bytes": 64 * GIB}
        for n in (1, 2, 3)
    ]
    seen += [
        {"pass_number": 4, "elapsed_ms": 4000 + s * 1000, "remaining_bytes": GIB // (10 + s), "total_bytes": 64 * GIB}
        for s in range(0, 80, 10)
    ]
    assert limits(reference_policies.kubevirt_tuned, seen, 150) == [
        150,
        150,
        150,
        257,
        364,
        471,
        578,
        685,
        792,
        900,
        900,
    ]


# -- the table --------------------------------------------------------------------------------------------------------


def test_what_they_start_with() -> None:
    started = {name: policies.find(name).start_ms for name in policies.RIVALS}
    assert started == {"proxmox": 100, "nova": 50, "ovirt": 100, "ganeti": 30, "kubevirt": 300}
    throttles = {name for name in policies.RIVALS if policies.find(name).auto_converge is not None}
    assert throttles == {"proxmox", "ovirt"}
    assert policies.QEMU_THROTTLE["max-cpu-throttle"] == 99
