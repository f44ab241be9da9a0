"""Beats: what is a sign of life, what is none, and what cannot be believed; and only what was watched counts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hostagent.guardian import heartbeat
from hostagent.guardian.heartbeat import MOST_WATCHED_S, BeatWatch, age_s, beat_path, read_beat


class Host:
    """A host's clocks, set by the test."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._uptime = directory / "uptime"
        self._monotonic = 50.0
        self.beat = directory / "web1.beat"
        monkeypatch.setattr(heartbeat, "UPTIME", self._uptime)
        monkeypatch.setattr(heartbeat.time, "monotonic", lambda: self._monotonic)
        self.uptime_s = 0.0
        self.passes(1000)

    def passes(self, seconds: float) -> None:
        self.uptime_s += seconds
        self._monotonic += seconds
        self._uptime.write_text(f"{self.uptime_s:.2f} 17.00\n")

    def beats(self) -> None:
        self.beat.write_text(f"{self.uptime_s:.2f}\n")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


def test_where_it_is() -> None:
    assert beat_path(Path("/run/x"), "web1") == Path("/run/x/.locks/web1.beat")


@pytest.mark.parametrize(
    ("text", "seconds"), [("12.34\n", 12.34), ("0.00\n", 0.0), ("7", 7.0), ("123456789.5\n", 123456789.5)]
)
def test_a_beat(tmp_path: Path, text: str, seconds: float) -> None:
    path = tmp_path / "web1.beat"
    path.write_text(text)
    assert read_beat(path) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "soon\n",
        "-1.0\n",
        "nan\n",
        "inf\n",
        "1e3\n",
        "1.5 2.5\n",
        "1.5\n2.5\n",
        " 1\n",
        "1.\n",
        "9" * 200,
        "\0\0\0\0",
        "١\n",
    ],
)
def test_damage(tmp_path: Path, text: str) -> None:
    path = tmp_path / "web1.beat"
    path.write_text(text)
    with pytest.raises(ValueError, match="not one line with a number"):
        read_beat(path)


def test_no_file_is_no_beat_and_a_thing_that_is_no_file_is_not_to_be_believed(tmp_path: Path) -> None:
    assert read_beat(tmp_path / "absent") is None
    assert read_beat(tmp_path / "absent" / "web1.beat") is None
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="not a file"):
        read_beat(tmp_path / "pipe")
    with pytest.raises(ValueError, match="not a file"):
        read_beat(tmp_path)
    (tmp_path / "real").write_text("1.0\n")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(OSError, match="symbolic"):
        read_beat(tmp_path / "link")


def test_age_is_by_the_uptime(host: Host) -> None:
    assert age_s(host.uptime_s - 2.5) == pytest.approx(2.5)
    assert age_s(host.uptime_s + 0.01) == 0.0
    with pytest.raises(ValueError, match="ahead of this host's uptime"):
        age_s(host.uptime_s + 1)  # from before a reboot


def test_the_kernels_own_uptime_is_understood() -> None:
    assert 0 < age_s(0.0) == pytest.approx(float(Path("/proc/uptime").read_text().split()[0]), abs=1)


def test_only_the_same_beat_is_watched_longer(host: Host) -> None:
    watch = BeatWatch(host.beat)
    assert watch.look() == heartbeat.Beat()
    host.beats()
    assert watch.look() == heartbeat.Beat(0.0, 0.0)
    for _ in range(4):
        host.passes(0.25)
        watch.look()
    assert (watch.beat.age_s, watch.beat.watched_s) == (pytest.approx(1.0), pytest.approx(1.0))
    host.beats()
    assert watch.look() == heartbeat.Beat(0.0, 0.0)


def test_time_in_which_nobody_looked_does_not_count(host: Host) -> None:
    """A host that was suspended, or an agent that was frozen together with the writer of the beat."""
    host.beats()
    watch = BeatWatch(host.beat)
    watch.look()
    host.passes(3600)
    beat = watch.look()
    assert (beat.age_s, beat.watched_s) == (pytest.approx(3600), MOST_WATCHED_S)


@pytest.mark.parametrize("bad", ["", "99999999.0\n"], ids=["damaged", "ahead"])
def test_what_cannot_be_believed_is_said_and_forgets_what_was_watched(host: Host, bad: str) -> None:
    host.beats()
    good = host.beat.read_text()
    watch = BeatWatch(host.beat)
    watch.look()
    host.passes(0.25)
    assert watch.look().watched_s > 0
    host.beat.write_text(bad)
    beat = watch.look()
    assert (beat.age_s, beat.watched_s, bool(beat.fault)) == (None, 0.0, True)
    host.beat.write_text(good)
    host.passes(0.25)
    assert watch.look().watched_s == 0.0
