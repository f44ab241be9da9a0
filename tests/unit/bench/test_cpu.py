"""CPU time out of ``/proc``."""

from __future__ import annotations

import os
import time

import pytest

from bench.measure.cpu import cpu_seconds, parse_stat


def test_a_name_with_spaces_and_parentheses_does_not_shift_the_fields() -> None:
    stat = "42 (a) b (c d) S 1 42 42 0 -1 4194560 500 0 0 0 150 50 7 7 20 0 3 0 9999 1 2"
    assert parse_stat(stat, ticks_per_s=100) == 2.0


def test_it_rises_while_a_process_computes() -> None:
    before = cpu_seconds(os.getpid())
    assert before is not None
    until = time.process_time() + 0.05
    while time.process_time() < until:
        pass
    after = cpu_seconds(os.getpid())
    assert after is not None
    assert after - before == pytest.approx(0.05, abs=0.025)


def test_a_process_that_is_gone_has_none() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    assert cpu_seconds(pid) is None
