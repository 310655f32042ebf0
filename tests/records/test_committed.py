"""The committed results: every record valid and current, the tables what the records give, the bounds reached."""

from __future__ import annotations

import bench
from dfkd import leaderboard, records


def test_every_committed_record_is_valid_and_current():
    found = records.read_all(bench.RESULTS / "records")
    assert len(found) >= 14
    digests = bench.current_digests(found)
    for record in found:
        made_with = {
            "method": record["provenance"]["code"]["method"],
            "config": record["provenance"]["config"],
        }
        assert record["status"] in records.FINISHED and not record["custom"]
        assert digests[records.cell_of(record)] == made_with, f"{record['identity']} is stale"


def test_tables_and_plots_are_what_the_records_give():
    assert leaderboard.check(*bench.tables()) == []


def test_on_digits_every_method_is_within_ten_points_of_real_data_and_noise_far_below():
    last = {
        record["identity"]["method"]: record["metrics"]["last"]
        for record in records.read_all(bench.RESULTS / "records")
        if record["identity"]["data"] == "digits" and record["identity"]["seed"] == 0
    }
    methods = last.keys() - {"teacher", "student-real", "kd-real", "kd-noise"}
    assert {"deepinv", "fast-5", "ssdkd"} <= methods
    assert all(last[method] >= last["kd-real"] - 10 for method in methods)
    assert all(last[method] >= last["kd-noise"] + 30 for method in methods)
