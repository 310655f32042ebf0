"""Tables as plain numbers and as LaTeX."""

from __future__ import annotations

import io
import re

import pandas
import pytest

import bench
from dfkd import catalog, paths, records, report
from dfkd.report import cells
from tests.records.test_leaderboard import seeds


@pytest.fixture
def results(record, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    paths.published().write_text(
        "data,teacher,student,method,metric,value,source,url,verified,primary,note\n"
        "cifar10,wrn40_2,wrn16_1,fast-10,top1,89.29,Fast,https://example.org,yes,yes,\n"
    )
    made = [*seeds(record, "fast-10", 89.0), record("ssdkd", 80.0, protocol="cpu"), record("cmi", status="diverged")]
    for each in made:
        each["config"]["class"] = each["identity"]["method"].split("-")[0]
        records.write(each, paths.records())
    return tmp_path


def command(capsys, *arguments):
    status = bench.main(["leaderboard", *arguments])
    out, err = capsys.readouterr()
    return status, out, err


def test_a_line_of_cells_has_what_the_tables_have_in_plain_numbers(results, capsys):
    report.write()
    text = (results / "cells.csv").read_text()
    table = pandas.read_csv(io.StringIO(text))
    assert list(table["method"][:3]) == ["fast-10", "cmi", "ssdkd"]  # in the order of the tables
    assert set(table["state"][3:]) == {"open"} and set(table["protocol"][3:]) == {"paper"}  # of the papers' tables
    fast = table.iloc[0]
    half = 4.302653 * 0.1 / 3**0.5
    assert (fast["last_low95"], fast["last_high95"]) == pytest.approx((89 - half, 89 + half), abs=1e-3)
    assert (fast["n"], fast["last_std"], fast["retention"]) == (
        3,
        pytest.approx(0.1),
        pytest.approx(89 / 94.87, abs=1e-5),
    )
    assert (fast["paper"], fast["paper_verdict"], fast["state"]) == (89.29, "matches", "stale")
    status, out, _ = command(capsys, "--format", "csv")
    assert (status, out) == (0, text)
    status, out, _ = command(capsys, "--format", "csv", "--data", "cifar10", "--protocol", "cpu")
    assert out.splitlines() == [text.splitlines()[0], text.splitlines()[3]]
    status, out, _ = command(capsys, "--format", "csv", "--data", "nyuv2")
    open_ = pandas.read_csv(io.StringIO(out))
    assert status == 0 and list(open_["method"][:3]) == ["teacher", "student-real", "kd-real"]


def test_latex_names_its_methods_papers(results, capsys):
    status, out, _ = command(capsys, "--format", "latex", "--protocol", "cpu")
    assert status == 0 and "ssdkd" in out and "fast-10" not in out
    status, out, _ = command(capsys, "--format", "latex", "--protocol", "paper")
    assert r"89.00 $\pm$ 0.10 (3)" in out and r"\begin{tabular}" in out and r"93.8\%" in out
    assert out.count("@inproceedings{fang2022fast,") == 1 and "@inproceedings{fang2021cmi," in out
    measured = out.split(r"\end{tabular}")[0]
    assert "fast-10" in measured and "ssdkd" not in measured
    assert re.search(r" fast-10 +& +89\.29 +& 89\.\d\d .* & +matches ", out)  # of the paper's table
    assert re.search(r" ssdkd +& +-- & +open & +no reference ", out)
    body = re.sub(r"(?m)^%.*$", "", out.split("@")[0])
    assert not re.search(r"(?<!\\)[%_#±–→]", body)


def test_what_there_is_no_table_of_is_one_line(results, capsys):
    for wanted in (["--data", "digits"], ["--protocol", "quick"], ["--data", "no-such"]):
        status, out, err = command(capsys, "--format", "csv", *wanted)
        assert (status, out, err.count("\n")) == (2, "", 1)


def test_every_key_that_a_method_cites_is_in_the_bibliography():
    known = cells.references()
    assert all(text.count("{") == text.count("}") for text in known.values())
    cited = {name: entry.cites for name, entry in catalog.entries().items() if entry.cites}
    assert {"ssdkd", "diffdfkd", "dda", "fast", "cmi", "deepinv", "dfad"} <= cited.keys()
    assert {key for keys in cited.values() for key in keys} <= known.keys()
