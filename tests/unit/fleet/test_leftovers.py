"""What is a leftover: the classifier over every kind, hostile names, two hosts; and the parser before it."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

import pytest

from qmp_migrate.errors import FileFailed
from qmp_migrate.fleet.cleanup import run_dir_facts
from qmp_migrate.fleet.cleanup.classification import Finding, Kind, OpenMigration, classify, shown
from qmp_migrate.fleet.cleanup.run_dir_facts import Entry, Process, Qemu, Record, RunDir
from qmp_migrate.hosts.process import ProcessId

RUN = "/run/q"
UUID = "6d5c2a0e-5d6c-4f0e-9a3b-0d0f6f0f2a11"
WAITS = ("qemu", "-qmp", f"unix:{RUN}/web1/qmp.sock", "-S", "-incoming", "defer")
RUNS = ("qemu", "-qmp", f"unix:{RUN}/web1/qmp.sock")
LOADED = Qemu("paused", "completed", UUID, frozenset({"return-path"}))
RUNNING = Qemu("running", "none", UUID)


def entry(path: str, kind: str = "f", uid: int = 7, age_s: float = 9999) -> Entry:
    return Entry(path, kind, uid, age_s)


def place(host: str = "a", *, alive: bool | None = None, argv: tuple[str, ...] = (), **changes: Any) -> RunDir:
    """A run directory; with ``alive`` it has the guest web1, whose QEMU is process 17."""
    entries: tuple[Entry, ...] = changes.pop("entries", ())
    if alive is not None:
        entries = (entry("web1", "d"), entry("web1/pid"), entry("web1/argv.json"), *entries)
        changes.setdefault("records", {"web1": Record(ProcessId(17, 5, "boot"), alive)})
    if argv:
        changes.setdefault("processes", (Process(17, 7, 5, argv),))
    return RunDir(host, RUN, 7, "boot", entries, **changes)


def look(*places: RunDir, **more: Any) -> list[Finding]:
    return classify({p.host: p for p in places}, **more)


def one(*places: RunDir, **more: Any) -> Finding:
    (finding,) = look(*places, **more)
    return finding


def test_a_clean_host_has_none() -> None:
    epoch = (entry(".locks", "d"), entry(".locks/web1.epoch"), entry(".quarantine", "d"))
    assert look(place(entries=epoch)) == []


def test_a_running_guest_is_none() -> None:
    assert look(place(alive=True, argv=RUNS, qemus={"web1": RUNNING})) == []


def test_a_directory_whose_qemu_is_gone_goes_to_quarantine() -> None:
    finding = one(place(alive=False))
    assert (finding.kind, finding.action, finding.path) == (Kind.DIRECTORY, "would-quarantine", f"{RUN}/web1")


def test_a_directory_that_a_process_uses_stays() -> None:
    assert one(place(alive=False, processes=(Process(99, 0, 5, ("tail", f"{RUN}/web1/qemu.log")),))).action == "kept"


@pytest.mark.parametrize("record", [Record(None, None), Record(ProcessId(17, 5, "boot"), None)])
def test_what_cannot_be_proven_gone_stays(record: Record) -> None:
    finding = one(place(alive=False, records={"web1": record}))
    assert (finding.kind, finding.verdict, finding.action) == (Kind.UNPROVEN, "maybe-only-copy", "kept")


def test_a_silent_qemu_stays() -> None:
    assert one(place(alive=True, argv=WAITS, qemus={"web1": Qemu(problem="busy")})).kind is Kind.UNPROVEN
    assert one(place(alive=True, argv=WAITS)).action == "kept"


@pytest.mark.parametrize("status", ["none", "setup", "failed"])
def test_a_destination_that_waits_is_ended(status: str) -> None:
    finding = one(place(alive=True, argv=WAITS, qemus={"web1": Qemu("inmigrate", status, UUID)}))
    assert (finding.kind, finding.action, finding.pid) == (Kind.WAITING_DESTINATION, "would-remove", 17)


@pytest.mark.parametrize("argv", [RUNS, (*RUNS, "-S", "-incoming", "tcp:0:1"), (*RUNS, "-incoming", "defer")])
def test_a_qemu_that_waits_and_is_not_ours_is_left_alone(argv: tuple[str, ...]) -> None:
    finding = one(place(alive=True, argv=argv, qemus={"web1": Qemu("inmigrate", "none", UUID)}))
    assert (finding.kind, finding.action) == (Kind.NOT_OURS, "kept")


@pytest.mark.parametrize(
    "qemu",
    [Qemu("inmigrate", "active"), Qemu("running", "active"), Qemu("paused", "postcopy-active"), Qemu("x", "new")],
)
def test_a_migration_that_goes_on_is_never_touched(qemu: Qemu) -> None:
    finding = one(place(alive=True, argv=WAITS, qemus={"web1": qemu}))
    assert (finding.kind, finding.verdict, finding.action) == (Kind.UNDRIVEN, "maybe-only-copy", "kept")


def test_a_loaded_destination_without_another_copy_is_never_touched() -> None:
    finding = one(place(alive=True, argv=WAITS, qemus={"web1": LOADED}))
    assert (finding.kind, finding.verdict, finding.action) == (Kind.LOADED_DESTINATION, "maybe-only-copy", "kept")
    assert finding.hint


def _with(host: str, qemu: Qemu) -> RunDir:
    return place(host, alive=True, argv=RUNS, qemus={"web1": qemu})


def test_a_loaded_destination_goes_when_the_same_guest_runs_elsewhere() -> None:
    finding = one(place(alive=True, argv=WAITS, qemus={"web1": LOADED}), _with("b", RUNNING))
    assert (finding.kind, finding.action, finding.about) == (Kind.LOADED_DESTINATION, "would-remove", "b")


@pytest.mark.parametrize(
    "other",
    [
        replace(RUNNING, uuid="00000000-0000-0000-0000-000000000001"),
        replace(RUNNING, run_state="paused"),
        replace(RUNNING, run_state="postmigrate", status="completed"),
        replace(RUNNING, status="active"),
        replace(RUNNING, problem="does not answer"),
    ],
    ids=["another guest", "paused", "postmigrate", "sends", "silent"],
)
def test_a_loaded_destination_stays_where_the_other_does_not_surely_run(other: Qemu) -> None:
    found = look(place(alive=True, argv=WAITS, qemus={"web1": LOADED}), _with("b", other))
    assert [f.action for f in found if f.kind is Kind.LOADED_DESTINATION] == ["kept"]


def test_guests_without_a_uuid_are_not_the_same_guest() -> None:
    nil = "00000000-0000-0000-0000-000000000000"
    loaded, running = replace(LOADED, uuid=nil), replace(RUNNING, uuid=nil)
    assert one(place(alive=True, argv=WAITS, qemus={"web1": loaded}), _with("b", running)).action == "kept"


def test_a_guest_that_came_by_migration_and_was_paused_is_none() -> None:
    assert look(place(alive=True, argv=WAITS, qemus={"web1": Qemu("paused", "completed", UUID)})) == []


def test_a_stopped_source_is_never_touched_even_when_the_guest_runs_elsewhere() -> None:
    stopped = place(alive=True, argv=RUNS, qemus={"web1": Qemu("postmigrate", "completed", UUID)})
    for places in ((stopped,), (stopped, _with("b", RUNNING))):
        finding = one(*places)
        assert (finding.kind, finding.verdict, finding.action) == (Kind.STOPPED_SOURCE, "maybe-only-copy", "kept")


@pytest.mark.parametrize(
    "changes",
    [{"capabilities": frozenset({"return-path"})}, {"tls_creds": "tls-m1"}, {"credentials": ("tls-m1",)}],
)
def test_wiring_that_is_left_is_put_back(changes: dict[str, Any]) -> None:
    finding = one(place(alive=True, argv=RUNS, qemus={"web1": replace(RUNNING, **changes)}))
    assert (finding.kind, finding.action) == (Kind.WIRING, "would-put-back")


def test_credentials_of_others_are_theirs() -> None:
    assert look(place(alive=True, qemus={"web1": replace(RUNNING, tls_creds="tls0", credentials=("tls0",))})) == []


def test_keys_go_while_the_guest_runs_and_when_it_is_gone() -> None:
    keys = (entry("web1/tls-m1", "d"), entry("web1/tls-m1/keys.psk"))
    assert one(place(alive=True, qemus={"web1": RUNNING}, entries=keys)).kind is Kind.KEY_DIRECTORY
    assert [f.kind for f in look(place(alive=False, entries=keys))] == [Kind.KEY_DIRECTORY, Kind.DIRECTORY]
    assert one(place(entries=(entry("web1", "d"), *keys))).action == "would-remove"


def test_what_only_looks_like_a_key_directory_stays() -> None:
    for odd in (entry("web1/tls-m1", "l"), entry("web1/tls-m1", "d", uid=8), entry("web1/tls-..", "d")):
        assert look(place(alive=True, qemus={"web1": RUNNING}, entries=(odd,))) == []


def test_a_guest_that_somebody_holds_is_left_in_peace_everywhere() -> None:
    keys = (entry("web1/tls-m1", "d"), entry(".locks", "d"), entry(".locks/web1.lock"), entry(".locks/web1.beat"))
    there = place(alive=True, argv=WAITS, qemus={"web1": Qemu("inmigrate", "none", UUID)}, entries=keys)
    held = replace(there, holders={"web1": "another controller"})
    assert look(held) == []
    assert look(there, place("b", holders={"web1": "another controller"})) == []
    assert look(there, migrations=[OpenMigration("m1", "web1", "b", "a", driven=True)]) == []
    assert Kind.WAITING_DESTINATION in {f.kind for f in look(held, mine={("a", "web1")})}
    assert look(held, mine={("b", "web1")}) == []


@pytest.mark.parametrize("driven", [False, None])
def test_what_the_journal_knows_is_recovered_and_not_removed(driven: bool | None) -> None:
    there = place(alive=True, argv=WAITS, qemus={"web1": Qemu("inmigrate", "none", UUID)})
    finding = one(there, migrations=[OpenMigration("m1", "web1", "b", "a", driven=driven)])
    assert (finding.kind, finding.hint, finding.left) == (Kind.OPEN_MIGRATION, "qmp-migrate recover m1", True)


def test_locks_that_nobody_holds_and_old_temporary_files() -> None:
    files = ("web1.lock", "web1.beat", "web1.epoch", "web1.epoch.new", "web1.beat.new")
    found = look(place(entries=(entry(".locks", "d"), *(entry(f".locks/{name}") for name in files))))
    assert {f.path.rpartition("/")[2] for f in found if f.path} == set(files) - {"web1.epoch"}
    young = look(place(entries=(entry(".locks", "d"), entry(".locks/web1.epoch.new", age_s=3599))))
    assert young == []
    old = entry("web1/serial.log.1.abcdEFGH")
    assert one(place(alive=True, qemus={"web1": RUNNING}, entries=(old,))).kind is Kind.TEMPORARY_FILE
    for not_old in (replace(old, age_s=10), replace(old, uid=8), replace(old, kind="l"), entry("web1/mine.abcdEFGH")):
        assert look(place(alive=True, qemus={"web1": RUNNING}, entries=(not_old,))) == []


HOSTILE = ["-rf", "a b", "a\nb", "..", "a..b", "Web1", "$(id)", "x" * 64, "\udcff", ".hidden", "a\tb"]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_not_ours_and_can_be_printed(name: str) -> None:
    there = place(
        entries=(entry(name, "d"), entry(f"{name}/pid"), entry(".locks", "d"), entry(f".locks/{name}.lock")),
        records={name: Record(ProcessId(17, 5, "boot"), False)},
    )
    for finding in look(there):
        assert (finding.kind, finding.action, finding.left) == (Kind.NOT_OURS, "kept", False)
        assert finding.path is not None
        assert finding.path.isprintable()
        finding.path.encode()
    assert len(look(there)) == 2


@pytest.mark.parametrize("odd", [entry("web1", "l"), entry("web1", "d", uid=8), entry("web1", "f"), entry("web1", "d")])
def test_what_we_did_not_make_is_not_ours(odd: Entry) -> None:
    assert one(place(entries=(odd,))).kind is Kind.NOT_OURS
    if (odd.kind, odd.uid) != ("d", 7):
        assert one(place(entries=(odd, entry("web1/pid")), records={})).kind is Kind.NOT_OURS


@pytest.mark.parametrize("name", [".locks", ".quarantine"])
def test_directories_of_ours_that_others_made(name: str) -> None:
    assert one(place(entries=(entry(name, "l"),))).kind is Kind.NOT_OURS
    assert one(place(entries=(entry(name, "d", uid=8),))).kind is Kind.NOT_OURS


def test_a_stray_qemu_is_told_and_nothing_else_of_others() -> None:
    stray = Process(99, 7, 5, RUNS)
    finding = one(place(processes=(stray,)))
    assert (finding.kind, finding.verdict, finding.action, finding.pid) == (
        Kind.STRAY_QEMU,
        "maybe-only-copy",
        "kept",
        99,
    )
    both = look(place(alive=False, processes=(stray,)))
    assert {f.kind: f.action for f in both} == {Kind.STRAY_QEMU: "kept", Kind.DIRECTORY: "kept"}
    for other in (
        replace(stray, uid=8),
        replace(stray, argv=("sh", "-c", "...", *RUNS)),
        replace(stray, argv=("qemu", "-qmp", "unix:/run/q2/web1/qmp.sock")),
        replace(stray, argv=("qemu", "-drive", f"file={RUN}/disk.img")),
    ):
        assert look(place(processes=(other,))) == []


def test_the_answer_of_the_script_is_parsed() -> None:
    stat = "17 (a) b) S " + " ".join(["1"] * 18) + " 5 0"
    argv = base64.b64encode(b"qemu\0-name\0x\n\xff\0").decode()
    fields = [
        "h\t7\tboot\t1000",
        "e\td\t7\t900.5\ta\nb\tc",
        f"r\t17 5 boot\t{stat}\tweb1",
        f"r\t17 6 boot\t{stat}\treused",
        "r\t17 5 other\tabsent\trebooted",
        "r\t17 5 boot\t?\thidden",
        f"r\t17 5\t{stat}\tdamaged",
        f"r\t17 5 boot\t{stat.replace(') S', ') Z')}\tzombie",
        "l\theld\tme pid 1\tweb1.lock",
        "l\tfree\tme\tweb2.lock",
        f"p\t17\t7\t{argv}\t{stat}",
        f"p\t18\t\t{argv}\tabsent",
    ]
    found = run_dir_facts.parse("a", RUN, "\0".join([*fields, ""]).encode())
    assert found.entries == (Entry("a\nb\tc", "d", 7, 99.5),)
    assert {name: record.alive for name, record in found.records.items()} == {
        **{"web1": True, "reused": False, "rebooted": False, "hidden": None, "damaged": None, "zombie": False}
    }
    assert found.holders == {"web1": "me pid 1"}
    assert found.processes == (Process(17, 7, 5, ("qemu", "-name", "x\n\udcff")),)


@pytest.mark.parametrize("output", [b"", b"welcome\n", b"e\td\t7\tx\tweb1\0", b"h\t7\0"])
def test_an_answer_that_is_none_is_an_error(output: bytes) -> None:
    with pytest.raises(FileFailed):
        run_dir_facts.parse("a", RUN, output)


def test_names_are_shown_without_control_characters() -> None:
    assert shown("a\x1b[31m\n\udc80ü") == "a\\x1b[31m\\n\\udc80ü"
