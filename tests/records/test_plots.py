import subprocess
import sys
from pathlib import Path

import pytest

from dfkd import paths, report
from dfkd.report import histograms, plots
from tests.records.conftest import diagnostics, gathered


@pytest.fixture
def table(record):
    runs = [record("fast-10", 88.0 + seed, seed=seed, synthesis=500.0) for seed in range(3)]
    runs += [record("ssdkd", 90.0, synthesis=100.0), record("ssdkd", 90.5, seed=1, hardware="CPU 2 cores")]
    runs += [record("kd-real", 92.0, reference=True), record("kd-noise", 10.0, reference=True)]
    return runs


def test_a_figure_is_drawn_once_and_again_only_for_other_numbers(record, table, tmp_path):
    expected = [tmp_path / "cifar10-paper.png", tmp_path / "cifar10-paper.svg"]
    assert plots.outdated(gathered(table), tmp_path) == expected
    assert plots.draw(gathered(table), tmp_path) == expected
    assert expected[0].read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in expected[1].read_bytes()
    first = [path.read_bytes() for path in expected]
    assert plots.outdated(gathered(table), tmp_path) == plots.draw(gathered(table), tmp_path) == []
    more = [*table, record("deepinv", 80.0, synthesis=9000.0)]
    assert plots.draw(gathered(more), tmp_path) == expected
    assert [path.read_bytes() for path in expected] != first
    plots.draw(gathered(table), tmp_path)
    assert [path.read_bytes() for path in expected] == first  # no date, no random names


def test_the_part_paid_once_per_teacher_is_a_line_up_to_the_point(record):
    from matplotlib.figure import Figure

    runs = [record("dda", 90.0, shared=400.0, synthesis=450.0), record("ssdkd", 80.0)]
    panel = Figure().subplots()
    style = {"dda": "C0", "ssdkd": "C1"}, {"NVIDIA H200": "o"}
    plots._panel(panel, gathered(runs), *style)
    lines = [tuple(line.get_xdata()) for line in panel.get_lines() if len(line.get_xdata()) == 2]
    assert lines == [(652.0, 1052.0)]
    assert "once per teacher" in panel.get_xlabel()
    assert panel.get_xlim()[0] < 652 and panel.get_xlim()[1] > 1052
    panel = Figure().subplots()
    plots._panel(panel, gathered(runs[1:]), *style)
    assert panel.get_xlabel() == "total time without evaluation (log scale)"


def test_a_figure_is_drawn_again_where_other_time_is_paid_once_per_teacher(record):
    one, other = (plots._digest(gathered([record(shared=shared)])) for shared in (10.0, 20.0))
    assert one != other


def test_every_method_has_a_line_in_the_histograms_of_images(record, tmp_path):
    one, other = (
        {"classes": [0.1, 0.9], "confidence": [0.25, 0.75]},
        {"classes": [0.3, 0.7], "confidence": [0.5, 0.5]},
    )
    runs = [record("fast-10", seed=i, diagnostics=diagnostics() | found) for i, found in enumerate((one, other))]
    runs += [record("ssdkd", diagnostics=diagnostics() | other), record("cmi", diagnostics=diagnostics())]
    results = gathered(runs)
    name = "cifar10-paper-images"
    assert [path.name for path in plots.draw(results, tmp_path)][2:] == [f"{name}.png", f"{name}.svg"]
    figure = histograms.draw([each for each in results if histograms.described(each)], {"fast-10": "C0", "ssdkd": "C1"})
    left, right = figure.get_axes()
    steps = [list(patch.get_data().values) for patch in left.patches]
    assert steps == [pytest.approx([0.8, 0.2]), pytest.approx([0.7, 0.3])], "means of the seeds, commonest class first"
    assert [list(patch.get_data().values) for patch in right.patches] == [pytest.approx([0.375, 0.625]), [0.5, 0.5]]
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["fast-10", "ssdkd"]
    assert plots.outdated(results, tmp_path) == []
    runs[2]["diagnostics"] |= one
    assert [path.stem for path in plots.outdated(gathered(runs), tmp_path)] == [name, name]


def test_the_grid_lies_where_the_run_puts_it(record, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    monkeypatch.setattr(paths, "WORK", tmp_path / "work")
    (tmp_path / "work" / "here").mkdir(parents=True)
    (tmp_path / "work" / "here" / "samples.png").write_bytes(b"grid")
    made = record("dda") | {"work": "here"}
    report.after_run(made, tables=False)
    (result,) = gathered([made])
    assert (tmp_path / "plots" / plots.grid_of(result.cell)).read_bytes() == b"grid"


def test_a_table_of_reference_rows_or_of_broken_runs_has_no_figure(record, tmp_path):
    runs = [record("kd-real", reference=True), record("ssdkd", status="diverged")]
    assert plots.draw(gathered(runs), tmp_path) == []


def test_labels_that_would_cover_each_other_are_moved_apart():
    assert plots._apart([0.5, 0.5, 0.51], line=0.1) == pytest.approx([0.5, 0.6, 0.7])
    assert plots._apart([0.9, 0.95, 1.0], line=0.1) == pytest.approx([0.8, 0.9, 1.0])


def test_nothing_heavy_is_imported_until_a_figure_is_drawn():
    code = (
        "import sys, dfkd.report;"
        "print([name for name in ('torch', 'mmengine', 'matplotlib', 'pandas') if name in sys.modules])"
    )
    root = Path(__file__).parents[2]
    said = subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True)
    assert said.stdout.strip() == "[]"
