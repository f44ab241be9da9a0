"""Who has the guest, a QEMU or a file: all of what can be seen, and what must never be decided."""

from __future__ import annotations

from itertools import product

import pytest

from qmp_migrate.migration.savefile.ownership import ENDS, Act, Name, Qemu, after_restore, after_save, classify

FLAGS = (False, True)


def saves() -> list[tuple[Qemu, Name, Name, bool, bool, bool, bool]]:
    return [
        (qemu, final, part, sealed, renaming, renamed, running)
        for qemu, final, part, sealed, renaming, renamed, running in product(Qemu, Name, Name, *[FLAGS] * 4)
        if (sealed or not renaming) and (renaming or not renamed)
    ]


def save(case: tuple[Qemu, Name, Name, bool, bool, bool, bool]) -> Act:
    qemu, final, part, sealed, renaming, renamed, running = case
    return after_save(qemu, final, part, sealed=sealed, renaming=renaming, renamed=renamed, was_running=running)[0]


def test_a_save_never_gives_the_guest_two_owners_nor_none() -> None:
    for case in saves():
        qemu, final, part, sealed, _renaming, renamed, _running = case
        act = save(case)
        if act in {Act.CONTINUE, Act.AT_QEMU, Act.CANCEL}:
            assert final is not Name.OURS, ("the file has the guest", case)
            assert part is not Name.ABSENT or qemu is Qemu.RUNS or not renamed, case
        if act is Act.QUIT:
            assert final is Name.OURS, ("a QEMU is only ended for a file that is there", case)
        if act is Act.IN_FILE:
            assert qemu is Qemu.GONE, case
            assert final is Name.OURS or renamed, case
        if act is Act.GUEST_GONE:
            assert qemu is Qemu.GONE, case
            assert not (sealed and part is Name.OURS), ("the file is complete", case)
        if Name.UNKNOWN in {final, part} or qemu is Qemu.UNKNOWN:
            assert act is Act.PARK, ("unknown is never taken for anything", case)


def test_a_save_that_was_renamed_is_never_continued() -> None:
    for case in saves():
        qemu, final, part, _sealed, _renaming, renamed, _running = case
        if renamed and part is Name.ABSENT and qemu is Qemu.STANDS:
            assert save(case) in {Act.QUIT, Act.PARK}, case
            assert (save(case) is Act.QUIT) == (final is Name.OURS), "else it may be restored elsewhere"


@pytest.mark.parametrize("continuing", FLAGS)
@pytest.mark.parametrize("used", list(Name))
@pytest.mark.parametrize("final", list(Name))
@pytest.mark.parametrize("qemu", list(Qemu))
def test_a_restore_never_gives_the_guest_two_owners_nor_none(
    qemu: Qemu, final: Name, used: Name, continuing: bool
) -> None:
    act, _ = after_restore(qemu, final, used, continuing=continuing)
    if act is Act.IN_FILE:
        assert (qemu, final) == (Qemu.GONE, Name.OURS)
    if act is Act.KILL:
        assert qemu in {Qemu.STANDS, Qemu.WAITS, Qemu.WRITES}, "a guest that runs is never killed"
        assert final is Name.OURS or qemu in {Qemu.WAITS, Qemu.WRITES}, "the QEMU is all there is of the guest"
    if act is Act.AT_QEMU:
        assert final is not Name.OURS, "it could be restored once more"
        assert qemu in {Qemu.RUNS, Qemu.STANDS}
    if act is Act.MARK_UNUSED:
        assert not continuing, "the guest may have run: its state is older than its disks"
        assert qemu is Qemu.GONE
    if Name.UNKNOWN in {final, used} or qemu is Qemu.UNKNOWN:
        assert act is Act.PARK


def test_every_act_leads_on() -> None:
    """What an act brings about is not answered with the same act again."""
    assert save((Qemu.GONE, Name.OURS, Name.ABSENT, True, True, True, True)) in ENDS
    assert save((Qemu.STANDS, Name.ABSENT, Name.OURS, False, False, False, True)) is Act.CONTINUE
    assert save((Qemu.RUNS, Name.ABSENT, Name.OURS, False, False, False, True)) in ENDS
    assert save((Qemu.RUNS, Name.OURS, Name.ABSENT, True, True, True, True)) is Act.VOID
    assert save((Qemu.RUNS, Name.ABSENT, Name.OURS, True, True, True, True)) is Act.AT_QEMU
    assert after_restore(Qemu.GONE, Name.ABSENT, Name.OURS, continuing=False)[0] is Act.MARK_UNUSED
    assert after_restore(Qemu.GONE, Name.OURS, Name.ABSENT, continuing=False)[0] is Act.IN_FILE


@pytest.mark.parametrize(
    ("run_state", "status", "expected"),
    [
        ("running", "none", Qemu.RUNS),
        ("running", "failed", Qemu.RUNS),
        ("paused", "none", Qemu.STANDS),
        ("paused", "active", Qemu.WRITES),
        ("finish-migrate", "completed", Qemu.WRITES),
        ("postmigrate", "completed", Qemu.STANDS),
        ("postmigrate", "failed", Qemu.STANDS),
        ("inmigrate", "setup", Qemu.WAITS),
        ("inmigrate", "none", Qemu.WAITS),
        (None, None, Qemu.UNKNOWN),
    ],
)
def test_what_qemu_says_is_sorted(run_state: str | None, status: str | None, expected: Qemu) -> None:
    assert classify(alive=True, run_state=run_state, status=status) is expected
    assert classify(alive=False, run_state=None, status=None) is Qemu.GONE
