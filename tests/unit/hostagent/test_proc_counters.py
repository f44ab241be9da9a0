"""What the kernel counts: parsed without trust, absent where it is absent."""

from __future__ import annotations

import os
import time
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from hostagent.discovery.guests import Guest, start_ticks
from hostagent.telemetry import proc_counters
from hostagent.telemetry.load import LoadMeter
from hostagent.telemetry.proc_counters import CpuTimes, Stall

STAT = "cpu  100 10 50 800 20 1 2 17 30 0\ncpu0 1 2 3 4\nintr 7\n"
PRESSURE = "some avg10=1.53 avg60=0.87 avg300=0.29 total=2451234\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=1234\n"
NET = """Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo: 100 1 0 0 0 0 0 0 100 1 0 0 0 0 0 0
  eth0:1234 5 0 0 0 0 0 0 5678 6 0 0 0 0 0 0
"""


def test_processors() -> None:
    assert proc_counters.cpu_times(STAT) == CpuTimes(busy=163, idle=800, iowait=20, steal=17)
    assert proc_counters.cpu_times("cpu 1 2\n") is not None  # an old kernel tells less
    for text in (None, "", "cpu x y", "intr 5"):
        assert proc_counters.cpu_times(text) is None


def test_memory() -> None:
    found = proc_counters.meminfo(
        "MemTotal:  16 kB\nHugePages_Total:       4\nHugepagesize:       2048 kB\nOdd: ? kB\n"
    )
    assert found == {"MemTotal": 16384, "HugePages_Total": 4, "Hugepagesize": 2 << 20}


def test_pressure() -> None:
    assert proc_counters.pressure(PRESSURE) == {"some": Stall(1.53, 2451234), "full": Stall(0.0, 1234)}
    assert proc_counters.pressure("some avg10=x total=1\nsome\n") == {}
    assert proc_counters.pressure(None) == {}


def test_interfaces_and_their_rates() -> None:
    assert proc_counters.interfaces(NET) == {"eth0": (1234, 5678)}
    before, after = {"eth0": (1000, 500), "gone": (1, 1)}, {"eth0": (3000, 100), "new": (9, 9)}
    assert proc_counters.rates(before, after, 2.0) == {"eth0": (1000, 0)}  # what counts anew has lost its past


def test_oneself() -> None:
    found = proc_counters.process(os.getpid())
    assert found is not None
    assert found.start_ticks == start_ticks(os.getpid())
    assert found.resident_bytes > 1 << 20
    assert proc_counters.process(2**30) is None


@given(st.text(max_size=300))
def test_nothing_that_a_kernel_might_say_is_an_exception(text: str) -> None:
    proc_counters.cpu_times(text)
    proc_counters.meminfo(text)
    proc_counters.pressure(text)
    proc_counters.interfaces(text)
    proc_counters.load_average(text)


def test_a_busy_process_is_measured_as_busy_as_it_is() -> None:
    """Against the process's own clock."""
    ticks = start_ticks(os.getpid())
    assert ticks is not None
    guest = Guest("me", Path("/none"), os.getpid(), ticks, ("x",))
    meter = LoadMeter("a")
    at = [(time.process_time(), time.monotonic())]
    meter.read([guest])
    at.append((time.process_time(), time.monotonic()))
    while time.monotonic() - at[1][1] < 1.0:
        sum(range(1000))
    at.append((time.process_time(), time.monotonic()))
    load = meter.read([guest])
    at.append((time.process_time(), time.monotonic()))
    (mine,) = load.guests
    (least_cpu, least_wall), (most_cpu, most_wall) = (
        [after - before for before, after in zip(at[first], at[last], strict=True)] for first, last in [(1, 2), (0, 3)]
    )  # a busy machine may have kept us waiting within a reading
    assert least_cpu / most_wall * 100 - 5.0 < mine.cpu_percent < most_cpu / least_wall * 100 + 5.0
    assert meter.read([Guest("other", guest.directory, os.getpid(), ticks + 1, ("x",))]).guests == []  # a later process
