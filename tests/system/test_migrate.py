"""The main job on real QEMU, real sshd and a real guest: each sentence of what `migrate` promises."""

from __future__ import annotations

import json
import re

from qmp_migrate.rig.guest.disk_journal import check_journal
from tests.support.real.interrupted import SLOW
from tests.support.real.lab import Guest, Lab, interrupt, qemus
from tests.support.real.lab_journal import assert_untouched, wait_for_phase
from tests.support.real.raw_qmp import qmp


def test_a_running_guest_moves_live_and_proves_that_it_went_on(lab: Lab, guest: Guest) -> None:
    ran = lab.cli("migrate", guest.name, "--to", "b", "--json")

    result = ran.doc
    assert result["schema"] == "migration.result/1"
    assert (result["outcome"], result["owner"], result["error"]) == ("completed", "destination", None)
    assert (result["source"], result["destination"], result["mode"]) == ("a", "b", "live")
    assert result["encrypted"] is True
    assert result["qemu"]["total_ms"] > 0
    assert 0 < result["blackout_ms"] < result["total_ms"]
    assert result["ram_bytes"] > 256 << 20
    assert 0 < result["transferred_bytes"] < result["ram_bytes"] * 3
    assert result["passes"] >= 1
    guest.wait_survived("b")
    assert not guest.directory("a").exists(), "the source leaves nothing"
    assert qemus(guest.name) == [guest.pid("b")]
    assert not list(guest.directory("b").glob("tls-*")), "the key is gone"


def test_it_tells_people_what_happens_and_keeps_data_apart(lab: Lab, guest: Guest) -> None:
    ran = lab.cli("migrate", guest.name, "--to", "b")

    assert ran.out == "", "the summary is for people, so it is on standard error"
    for words in (
        "preflight",
        "locked",
        "wired",
        "copying memory",
        "handed over",
        "blackout",
        "encrypted",
        "owner now",
    ):
        assert words in ran.err, ran.err
    assert "\x1b[" not in ran.err, "no colours in a pipe"


def test_there_and_back_again_with_every_tick_and_every_acknowledged_disk_record(lab: Lab) -> None:
    with lab.guest(disk=True, append="qm.rate=4 qm.ws=8 qm.tick=1") as guest:
        guest.wait("a", lambda v: len(v.journal) > 3)
        for target, origin in (("b", "a"), ("a", "b"), ("b", "a")):
            before = len(guest.verdict(origin).journal)
            result = lab.cli("migrate", guest.name, "--to", target, "--json").doc
            assert result["outcome"] == "completed"
            guest.wait(target, lambda v, before=before: len(v.journal) > before + 3 or bool(v.reasons and v.corruption))
        verdict = guest.wait_survived("b")
        assert not verdict.tick_faults
        assert guest.disk is not None
        acknowledged = verdict.journal
        replay = check_journal(guest.disk.read_bytes(), acknowledged)
        assert not replay.lost, replay


def test_the_downtime_limit_starts_low_and_is_raised_only_by_need(lab: Lab) -> None:
    with lab.guest(append="qm.rate=60 qm.ws=16 qm.tick=10") as guest:  # each pass has 16 MiB, 0.8 s
        result = lab.cli(
            "migrate",
            guest.name,
            "--to",
            "b",
            "--policy",
            "gentle",
            "--downtime-limit",
            "2s",
            "--bandwidth",
            "20MiB",
            "--json",
        ).doc
        assert result["outcome"] == "completed"
        assert result["steps"]
        for step in result["steps"]:
            assert re.search(r"downtime limit \d+ -> \d+ ms \(allowed: 2000 ms\)", step), step
        guest.wait_survived("b")


def test_ten_milliseconds_are_accepted(lab: Lab) -> None:
    with lab.guest(append="qm.rate=0 qm.ws=16 qm.tick=10") as guest:
        result = lab.cli("migrate", guest.name, "--to", "b", "--downtime-limit", "10ms", "--json").doc
        assert result["outcome"] == "completed"
        assert result["steps"] == []
        guest.wait_survived("b")


def test_a_guest_that_dirties_more_than_the_link_carries_is_given_up_and_runs_on(lab: Lab) -> None:
    with lab.guest(append="qm.rate=100 qm.ws=96 qm.tick=10") as guest:
        ran = lab.cli(
            "migrate", guest.name, "--to", "b", "--bandwidth", "30MiB", "--downtime-limit", "50ms", "--json", code=6
        )
        assert ran.doc["outcome"] == "rolled_back"
        assert ran.doc["owner"] == "source"
        assert ran.doc["error"]["code"] == "not_converging"
        assert "--downtime-limit" in ran.doc["error"]["hint"]
        assert_untouched(guest)


def test_no_encrypt_is_explicit_and_warned(lab: Lab, guest: Guest) -> None:
    ran = lab.cli("migrate", guest.name, "--to", "b", "--no-encrypt", "--json")
    assert ran.doc["encrypted"] is False
    assert "in the clear" in ran.err
    assert any("in the clear" in warning for warning in ran.doc["warnings"])
    guest.wait_survived("b")


def test_a_bandwidth_limit_is_kept(lab: Lab) -> None:
    with lab.guest(append="qm.rate=0 qm.ws=64 qm.tick=10") as guest:
        result = lab.cli("migrate", guest.name, "--to", "b", "--bandwidth", "40MiB", "--json").doc
        assert result["throughput_bytes_per_s"] < 48 << 20
        guest.wait_survived("b")


def test_a_paused_guest_arrives_paused(lab: Lab, guest: Guest) -> None:
    qmp(guest.directory("a") / "qmp.sock", "stop")
    ran = lab.cli("migrate", guest.name, "--to", "b", "--json")
    assert ran.doc["outcome"] == "completed"
    assert lab.cli("vm", "show", guest.name, "--json").doc["state"] == "paused"
    qmp(guest.directory("b") / "qmp.sock", "cont")
    guest.wait_survived("b")


def test_dry_run_and_check_change_nothing(lab: Lab, guest: Guest) -> None:
    before = sorted(path.name for path in lab.run_dir("b").iterdir() if path.name != ".locks")
    ran = lab.cli("migrate", guest.name, "--to", "b", "--dry-run")
    assert "nothing was touched" in ran.err
    assert "-incoming defer" in ran.err
    check = lab.cli("check", guest.name, "--to", "b")
    lines = check.out.splitlines()
    assert all(re.match(r"\[( OK |WARN|FAIL)\] ", line) for line in lines[:-1]), lines
    assert lines[-1] == "Preflight: no blockers."
    document = lab.cli("check", guest.name, "--to", "b", "--json").doc
    assert document["ok"] is True
    assert {
        "ssh-source",
        "qemu",
        "machine",
        "cpu",
        "memory",
        "files",
        "sockets",
        "run-dir",
        "address",
        "blocked",
        "name",
        "idle",
    } <= {check["id"] for check in document["checks"]}
    assert sorted(path.name for path in lab.run_dir("b").iterdir() if path.name != ".locks") == before
    assert_untouched(guest)


def test_ctrl_c_cancels_and_waits_for_the_proof(lab: Lab) -> None:
    with lab.guest(append="qm.rate=30 qm.ws=64 qm.tick=10") as guest:
        process = lab.popen("migrate", guest.name, "--to", "b", *SLOW, "--json")
        wait_for_phase(lab, guest, "copying")
        interrupt(process)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 6, err
        result = json.loads(out)
        assert (result["outcome"], result["owner"]) == ("cancelled", "source")
        assert_untouched(guest)


def test_cancel_by_id_from_another_process(lab: Lab) -> None:
    with lab.guest(append="qm.rate=30 qm.ws=64 qm.tick=10") as guest:
        process = lab.popen("migrate", guest.name, "--to", "b", *SLOW, "--json")
        record = wait_for_phase(lab, guest, "copying")
        assert record["id"] in lab.cli("status").out
        lab.cli("cancel", record["id"])
        out, err = process.communicate(timeout=60)
        assert process.returncode == 6, err
        assert json.loads(out)["outcome"] == "cancelled"
        assert_untouched(guest)
        again = lab.cli("cancel", record["id"], code=2)
        assert "has ended already" in again.err


def test_after_a_cancel_the_next_try_works(lab: Lab) -> None:
    with lab.guest() as guest:
        process = lab.popen("migrate", guest.name, "--to", "b", *SLOW)
        wait_for_phase(lab, guest, "copying")
        interrupt(process)
        process.communicate(timeout=60)
        assert lab.cli("migrate", guest.name, "--to", "b", "--json").doc["outcome"] == "completed"
        guest.wait_survived("b")


def test_two_controllers_want_the_same_guest_and_one_gets_it(lab: Lab) -> None:
    with lab.guest() as guest:
        first = lab.popen("migrate", guest.name, "--to", "b", *SLOW, "--json")
        record = wait_for_phase(lab, guest, "copying")
        second = lab.cli("migrate", guest.name, "--to", "b", code=None)
        assert second.code == 75, second.err
        assert "pid" in second.err, "it says who holds the guest"
        lab.quicken(str(record["id"]))
        out, err = first.communicate(timeout=90)
        assert first.returncode == 0, err
        assert json.loads(out)["outcome"] == "completed"
        guest.wait_survived("b")


def test_history_and_report_tell_the_story(lab: Lab, guest: Guest) -> None:
    result = lab.cli("migrate", guest.name, "--to", "b", "--json").doc
    listed = lab.cli("history", "--vm", guest.name, "--json").doc["migrations"]
    assert [record["id"] for record in listed] == [result["id"]]
    story = lab.cli("report", result["id"]).out
    acts = ["preflight", "lock", "launch-destination", "wire", "migrate", "commit", "release-source", "done"]
    positions = [story.index(f" {act}") for act in acts]
    assert positions == sorted(positions), "an intent stands before its act, in order"


def test_a_guest_that_powers_off_on_the_way_is_off_and_nothing_is_left(lab: Lab) -> None:
    # Not waited for: its migration begins long before the guest ends, on a busy machine too.
    with lab.guest(ready=False, append="qm.rate=5 qm.ws=16 qm.tick=10 qm.poweroff_after_ticks=1000") as guest:
        ran = lab.cli("migrate", guest.name, "--to", "b", "--bandwidth", "1MiB", "--json", code=1)
        assert ran.doc["error"]["code"] == "guest_shutdown"
        assert ran.doc["owner"] == "none"
        assert not qemus(guest.name)


def test_a_guest_that_resets_itself_on_the_way_is_told_of(lab: Lab) -> None:
    with lab.guest(append="qm.rate=5 qm.ws=16 qm.tick=10 qm.reboot_after_ticks=1000") as guest:
        process = lab.popen("migrate", guest.name, "--to", "b", "--bandwidth", "1MiB", "--json")
        wait_for_phase(lab, guest, "copying")
        boots = guest.verdict("a").boots  # on a busy machine, it may have done so before
        guest.wait("a", lambda v: v.boots > boots)
        interrupt(process)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 6, err
        assert any("reset itself" in warning for warning in json.loads(out)["warnings"]), out
        assert qemus(guest.name) == [guest.pid("a")]


def test_a_guest_that_panics_on_the_way_stays_where_it_is(lab: Lab) -> None:
    with lab.guest(
        ready=False,  # as above
        append="qm.rate=5 qm.ws=16 qm.tick=10 qm.panic_after_ticks=1000",
        args=["-device", "pvpanic", "-action", "panic=pause"],
    ) as guest:
        ran = lab.cli("migrate", guest.name, "--to", "b", "--bandwidth", "1MiB", "--json", code=None)
        assert ran.doc["error"]["code"] == "guest_panicked", ran.doc
        assert lab.cli("vm", "show", guest.name, "--json").doc["state"] == "guest-panicked"
        assert qemus(guest.name) == [guest.pid("a")]


def test_vm_stop_asks_the_guest_to_power_off(lab: Lab, guest: Guest) -> None:
    lab.cli("vm", "stop", guest.name)
    assert not qemus(guest.name)
    assert not guest.directory("a").exists()


def test_vm_stop_does_not_pull_the_plug_unless_told(lab: Lab) -> None:
    with lab.guest(ready=False, firmware_only=True) as guest:
        ran = lab.cli("vm", "stop", guest.name, "--timeout", "300ms", code=1)
        assert "--force" in ran.err
        assert qemus(guest.name) == [guest.pid("a")], "it runs on"
        lab.cli("vm", "stop", guest.name, "--force")
        assert not qemus(guest.name)
