"""Whether others had the machine too: processor seconds, and what else was busy."""

from __future__ import annotations

import os
import time
from collections import namedtuple

import psutil
import pytest

from dfkd.engine.machine import Activity

Times = namedtuple("Times", "user nice system idle iowait steal guest")


def test_others_are_what_is_busy_less_what_we_are(monkeypatch):
    """In ten seconds the machine is busy for 9 + 2 + 1 + 3 stolen ones, of which 1 + 0.5 + 4 + 0.5 are ours."""
    machine = iter([Times(100, 0, 50, 500, 5, 1, 7), Times(109, 2, 51, 503, 10, 4, 11)])
    ours = iter([(3.0, 1.0, 0.0, 0.0, 70.0), (4.0, 1.5, 4.0, 0.5, 80.0)])
    clock = iter([1000.0, 1010.0])
    monkeypatch.setattr(psutil, "cpu_times", lambda: next(machine))
    monkeypatch.setattr(os, "times", lambda: next(ours))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    own, others = Activity().measured()
    assert own == pytest.approx(6.0) and others == pytest.approx(0.9)


def test_processor_seconds_are_of_this_machine():
    activity = Activity()
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass
    own, others = activity.measured()
    assert 0.25 < own < 5.0 and 0.0 <= others < os.cpu_count() + 0.5
