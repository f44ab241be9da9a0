"""The state file's layout, and its images: what is read back, and what is refused."""

from __future__ import annotations

import hashlib
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from qmp_migrate.errors import ConfigError, UsageError
from qmp_migrate.migration.savefile import scripts
from qmp_migrate.migration.savefile.file_format import (
    CHUNK_BYTES,
    FOOTER_BYTES,
    ZERO_CHUNK,
    Document,
    document_length,
    opened,
)
from qmp_migrate.migration.savefile.image_stamps import Stamp, changes
from qmp_migrate.migration.savefile.restore_request import RestoreRequest
from qmp_migrate.migration.savefile.save_plan import knows_file_uri
from qmp_migrate.migration.savefile.save_request import SaveRequest, chosen_format

IMAGE = Stamp("/srv/web1.img", "file", True, 4096, "1700000000.123456789", 17, 2049)
DOCUMENT = Document(
    id="s1",
    vm="web1",
    saved_at=1.5,
    host="a",
    directory="/run/q/web1",
    addresses="10.0.0.11",
    qemu="7.2.22",
    argv=("/usr/bin/qemu", "-name", "web1\udcff"),
    machine="pc-q35-7.2",
    cpu=None,
    cpu_model="x",
    cpu_flags=("a", "b"),
    cpu_lacking=(),
    accel="tcg",
    running=True,
    memory_bytes=1 << 28,
    format="stream",
    channels=0,
    state_bytes=1000,
    state_sum="ab" * 32,
    images=(IMAGE,),
)


def test_a_document_is_read_back_as_it_was_written() -> None:
    sealed = DOCUMENT.sealed()
    found = document_length(sealed[-FOOTER_BYTES:])
    assert found is not None
    length, digest = found
    assert length + FOOTER_BYTES == len(sealed)
    assert opened(sealed[:length], digest) == DOCUMENT


def test_what_was_cut_off_or_changed_is_no_state_file() -> None:
    sealed = DOCUMENT.sealed()
    assert document_length(sealed[-FOOTER_BYTES - 1 : -1]) is None
    assert document_length(b"") is None
    length, digest = document_length(sealed[-FOOTER_BYTES:]) or (0, "")
    with pytest.raises(ConfigError, match="damaged"):
        opened(sealed[:length].replace(b"web1", b"web2"), digest)


def test_a_newer_schema_is_refused_and_newer_members_are_skipped() -> None:
    text = DOCUMENT.sealed()[:-FOOTER_BYTES]

    def opens(changed: bytes) -> Document:
        return opened(changed, hashlib.sha256(changed).hexdigest())

    assert opens(text.replace(b'"vm"', b'"new":1,"vm"')) == DOCUMENT
    with pytest.raises(ConfigError, match="state-file/2"):
        opens(text.replace(b"state-file/1", b"state-file/2"))
    with pytest.raises(ConfigError, match="cannot be read"):
        opens(b"[]\n")


def test_the_chunk_of_zeros_is_what_it_says() -> None:
    assert hashlib.sha256(bytes(CHUNK_BYTES)).hexdigest() == ZERO_CHUNK


def test_the_hosts_checksum_is_the_one_of_the_documentation(tmp_path: Path) -> None:
    file = tmp_path / "it's a file"
    with file.open("wb") as f:
        f.write(os.urandom(3000))
        f.truncate(2 * CHUNK_BYTES + 77)
    content = file.read_bytes()
    for size in (len(content), 2 * CHUNK_BYTES, 3001):
        lines = "".join(
            f"{at // CHUNK_BYTES} {hashlib.sha256(content[at : min(at + CHUNK_BYTES, size)]).hexdigest()}\n"
            for at in range(0, size, CHUNK_BYTES)
        )
        words = ["sh", "-c", scripts.SUM, "sh", str(file), str(size), str(CHUNK_BYTES), ZERO_CHUNK]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == hashlib.sha256(lines.encode()).hexdigest()


def test_a_file_that_cannot_be_read_has_no_checksum(tmp_path: Path) -> None:
    words = ["sh", "-c", scripts.SUM, "sh", str(tmp_path), "1000", str(CHUNK_BYTES), ZERO_CHUNK]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "cannot be read back" in done.stderr


def test_renaming_never_replaces_a_file(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("1")
    other.write_text("2")
    done = subprocess.run(["sh", "-c", scripts.RENAME, "sh", one, other], capture_output=True, check=False)
    assert done.returncode == 1
    assert (one.read_text(), other.read_text()) == ("1", "2")


@pytest.mark.parametrize("size", [200_000, 1_000_000])
def test_the_writer_behind_exec_survives_how_qemu_ends_it(tmp_path: Path, size: int) -> None:
    """QEMU: SIGTERM as soon as the last byte is in the pipe (64 KiB; a state is larger), SIGKILL 10 ms later."""
    link = tmp_path / "saved-state"
    command = scripts.write_uri(str(link), file_uri=False).removeprefix("exec:")
    process = subprocess.Popen(["/bin/sh", "-c", command], stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(bytes(size))
    process.stdin.flush()
    process.terminate()
    process.stdin.close()
    process.kill()
    process.wait()
    subprocess.run(["sh", "-c", scripts.WHOLE, "sh", str(link), "100"], check=True)
    assert link.stat().st_size == size


def test_a_writer_that_fails_says_so(tmp_path: Path) -> None:
    link = tmp_path / "saved-state"
    link.symlink_to("/dev/full")
    command = scripts.write_uri(str(link), file_uri=False).removeprefix("exec:")
    subprocess.run(["/bin/sh", "-c", command], input=b"x", check=False, capture_output=True)
    assert link.with_name("saved-state.torn").exists()
    done = subprocess.run(["sh", "-c", scripts.WHOLE, "sh", str(link), "10"], capture_output=True, check=False)
    assert b"could not be written" in done.stderr


@pytest.mark.parametrize("directory", ["/run/my dir/web1", "/run/$(x)/web1", "/run/a,offset=1/web1", "/run/'/w"])
def test_what_means_something_to_a_shell_or_to_qemu_is_never_in_a_uri(directory: str) -> None:
    with pytest.raises(UsageError, match="characters"):
        scripts.link_path(directory, "a")


def test_a_path_must_be_one() -> None:
    for path in ("", "relative", "/srv/", "/srv/..", "/a\nb", "/a\0b"):
        with pytest.raises(UsageError, match="absolute path"):
            SaveRequest("web1", path)
        with pytest.raises(UsageError, match="absolute path"):
            RestoreRequest(path, "a")
    with pytest.raises(UsageError, match="format"):
        SaveRequest("web1", "/f", "zip")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="channels"):
        SaveRequest("web1", "/f", channels=-1)


def test_the_format_is_what_this_qemu_has() -> None:
    assert chosen_format("auto", has_mapped_ram=True) == "mapped-ram"
    assert chosen_format("auto", has_mapped_ram=False) == "stream"
    assert chosen_format("stream", has_mapped_ram=True) == "stream"
    assert chosen_format("mapped-ram", has_mapped_ram=False) is None


def test_file_uris_are_found_in_the_schema() -> None:
    def schema(*names: str) -> list[dict[str, object]]:
        return [{"meta-type": "object"}, {"meta-type": "enum", "values": list(names)}]

    assert knows_file_uri(schema("socket", "exec", "rdma", "file"))
    assert not knows_file_uri(schema("socket", "exec", "rdma"))
    assert not knows_file_uri(schema("file", "raw"))
    assert not knows_file_uri([])


def changed(**what: object) -> list[tuple[bool, str]]:
    now = replace(IMAGE, **what)  # type: ignore[arg-type]
    return [(c.grave, c.text) for c in changes([IMAGE], {IMAGE.path: now})]


def test_images_that_are_as_they_were_are_not_worth_a_word() -> None:
    assert changed() == []
    assert changed(device=99) == [], "the same file system has another number on another host"


@pytest.mark.parametrize(
    "what",
    [
        {"size": 8192},
        {"mtime": "1700000001.123456789"},
        {"mtime": "1700000000.123456788"},
        {"kind": "absent"},
        {"kind": "block"},
    ],
)
def test_images_that_were_written_to_are_grave(what: dict[str, object]) -> None:
    ((grave, text),) = changed(**what)
    assert grave
    assert "/srv/web1.img" in text


def test_a_copy_with_its_times_kept_is_only_remarked() -> None:
    assert [grave for grave, _ in changed(inode=18)] == [False]
    assert [grave for grave, _ in changed(inode=18, mtime="1700000000.000000000")] == [False], "whole seconds"


def test_a_device_tells_nothing_and_that_is_said() -> None:
    device = replace(IMAGE, kind="block", mtime="1.0")
    (found,) = changes([device], {IMAGE.path: replace(device, mtime="2.0")})
    assert not found.grave
    assert "nobody can tell" in found.text
    assert changes([IMAGE], {})[0].grave, "an image that is not there"
