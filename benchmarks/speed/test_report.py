"""Leaderboard, figures and page of 2,000 records; the bounds are ten seconds each on two free cores."""

from __future__ import annotations

import pytest

from dfkd import report
from dfkd.report import site
from tests.records.conftest import place, results_in, two_thousand


@pytest.fixture
def results(tmp_path, monkeypatch):
    results_in(tmp_path, monkeypatch)
    place(*two_thousand())


@pytest.mark.benchmark(group="report")
@pytest.mark.parametrize("write", [report.write, site.write], ids=["leaderboard", "site"])
def test_two_thousand_records(write, results, benchmark):
    _, problems = benchmark.pedantic(write, rounds=1)
    assert not problems
