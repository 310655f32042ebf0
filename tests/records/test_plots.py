import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from dfkd import paths, report
from dfkd.identity import Run
from dfkd.report import figure, histograms, lines, plots, points
from tests.records.conftest import diagnostics, gathered


@pytest.fixture
def table(record):
    runs = [record("fast-10", 88.0 + seed, seed=seed, synthesis=500.0) for seed in range(3)]
    runs += [record("ssdkd", 90.0, synthesis=100.0), record("ssdkd", 90.5, seed=1, hardware="CPU 2 cores")]
    runs += [record("kd-real", 92.0, reference=True), record("kd-noise", 10.0, reference=True)]
    return runs


def test_a_figure_is_drawn_once_and_again_only_for_other_numbers(record, table, tmp_path):
    expected = [tmp_path / f"cifar10-paper{name}.png" for name in ("", "-curves")]
    assert plots.outdated(gathered(table), tmp_path) == expected
    assert plots.draw(gathered(table), tmp_path) == expected
    assert expected[0].read_bytes().startswith(b"\x89PNG")
    first = [path.read_bytes() for path in expected]
    assert plots.outdated(gathered(table), tmp_path) == plots.draw(gathered(table), tmp_path) == []
    more = [*table, record("deepinv", 80.0, synthesis=9000.0)]
    assert plots.draw(gathered(more), tmp_path) == expected
    assert [path.read_bytes() for path in expected] != first
    plots.draw(gathered(table), tmp_path)
    assert [path.read_bytes() for path in expected] == first  # no date, no random names


def test_ablations_change_no_figure(record, table, tmp_path):
    drawn = plots.draw(gathered(table), tmp_path)
    runs = [*table, record("ssdkd-no-phi", 91.0)]
    of = {Run.of(runs[-1]).cell: "ssdkd"}
    assert plots.outdated(gathered(runs, ablations=of), tmp_path) == []
    assert plots.outdated(gathered(runs), tmp_path) == drawn, "not called one, it is a method like any"


def test_the_part_paid_once_per_teacher_is_a_line_up_to_the_point(record):
    runs = [record("dda", 90.0, shared=400.0, synthesis=450.0), record("ssdkd", 80.0)]
    markers = {"NVIDIA H200": "o"}
    panel = axes()
    points.panel(panel, gathered(runs), markers)
    drawn = [[tuple(x for x, _ in segment) for segment in each.get_segments()] for each in segments(panel)]
    assert [(652.0, 1052.0)] in drawn
    assert "once per teacher" in panel.get_xlabel()
    assert panel.get_xlim()[0] < 652 and panel.get_xlim()[1] > 1052
    panel = axes()
    points.panel(panel, gathered(runs[1:]), markers)
    assert panel.get_xlabel() == "total time without evaluation (log scale)"


def axes():
    """An empty panel that can measure texts."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    return FigureCanvasAgg(Figure()).figure.subplots()


def segments(panel):
    from matplotlib.collections import LineCollection

    return [each for each in panel.collections if isinstance(each, LineCollection)]


def test_the_frontier_passes_through_what_nothing_beats(record):
    runs = [record("fast", 80.0, synthesis=10.0), record("beaten", 79.0, synthesis=20.0)]
    runs += [record("good", 90.0, synthesis=500.0)]
    for more in [], [record("elsewhere", 30.0, synthesis=5.0, hardware="A")]:
        panel, results = axes(), gathered([*runs, *more])
        points.panel(panel, results, figure.markers_of([results]))
        (line,) = [line for line in panel.get_lines() if line.get_linewidth() == points.FRONTIER["linewidth"]]
        assert list(line.get_xydata()[:-1, 0]) == [612.0, 1102.0] and list(line.get_ydata()) == [80.0, 90.0, 90.0]


def test_curves_have_a_band_over_seeds_and_the_line_that_time_is_measured_to(record):
    from matplotlib.collections import PolyCollection

    runs = [record("ssdkd", last, last - 1, seed=seed) for seed, last in enumerate([88.0, 90.0, 92.0])]
    for run in runs:
        run["metrics"]["curve"][0]["value"] = run["metrics"]["last"] - 10
    runs += [record("kd-real", 95.0, reference=True), record("cmi", 80.0)]
    panel = axes()
    lines.panel(panel, gathered(runs), {"NVIDIA H200": "o"})
    curves = {tuple(map(tuple, segment)) for each in segments(panel) for segment in each.get_segments()}
    assert ((330.0, 80.0), (660.0, 90.0)) in curves and ((330.0, 80.0), (660.0, 80.0)) in curves
    (bands,) = [each for each in panel.collections if isinstance(each, PolyCollection)]
    (band,) = bands.get_paths()
    assert {tuple(corner) for corner in band.vertices} == {(330, 78), (660, 88), (660, 92), (330, 82)}
    assert 0.9 * 95.0 in [line.get_ydata()[0] for line in panel.get_lines()]


def test_curves_end_in_the_marker_of_their_hardware_where_there_are_several(record):
    from matplotlib.collections import PathCollection

    runs = [record(seed=seed, hardware=name) for seed, name in enumerate(["NVIDIA H200", "NVIDIA A100"])]
    results = gathered(runs)
    markers = figure.markers_of([results])
    assert markers == {"NVIDIA A100": "o", "NVIDIA H200": "s"}
    names = [artist.get_label() for artist in lines.legend([results], markers)]
    assert names[:2] == list(markers)
    assert lines.legend([results], {"NVIDIA H200": "o"}) == lines.legend([results], {}) == []
    panel = axes()
    lines.panel(panel, results, markers)
    dots = [each for each in panel.collections if isinstance(each, PathCollection)]
    ends = [each for each in dots if len(each.get_offsets()) == 1]
    assert len(ends) == 2


def test_a_row_stands_at_one_place_on_the_hardware_of_most_rows(record):
    """Two machines ran Fast, twice and once; the other rows ran where it did once, one of them elsewhere alone."""
    runs = [record("fast-10", seed=seed, hardware=name) for seed, name in enumerate(["A", "A", "B"])]
    runs += [record("ssdkd", hardware="B"), record("deepinv", hardware="B"), record("cmi", hardware="C")]
    runs += [record("kd-real", 92.0, seed=seed, reference=True, hardware="A") for seed in range(3)]
    shown = figure.one_class(gathered(runs))
    places = {result.cell.method: [cost.hardware for cost in result.costs] for result in shown}
    assert places == {"fast-10": ["B"], "ssdkd": ["B"], "deepinv": ["B"], "cmi": ["C"], "kd-real": ["A"]}
    (pairs,) = [pairs for name, pairs in plots._figures(gathered(runs)).items() if name == "cifar10-paper"]
    assert figure.markers_of(pairs) == {"B": "o", "C": "s"}
    assert all(result.last.n == 3 for result in shown if result.cell.method == "fast-10")  # the score is of all seeds


@pytest.mark.parametrize(
    ("letters", "shape"),
    [([4, 4, 4], (3, 1)), ([33, 52, 15], (2, 2)), ([33, 25, 15, 35], (2, 2)), ([60, 60, 60, 20], (1, 4)), ([], (1, 0))],
)
def test_a_legend_has_as_many_columns_as_fit_on_the_page(letters, shape):
    assert figure._legend_shape(["x" * n for n in letters], 6.2) == shape


def test_a_method_has_one_colour_and_its_recipes_differ_in_dashes(record):
    runs = [record(name, protocol=protocol) for name in ("fast-2", "fast-10", "mine") for protocol in ("cpu", "paper")]
    for run in runs:
        run["config"]["class"] = run["identity"]["method"].split("-")[0]
    results = gathered(runs)
    assert {figure.colour_of(result.family) for result in results if result.family == "fast"} == {"#D55E00"}
    dashes = {result.cell.method: figure.dash_of(result, results) for result in results}
    assert dashes["fast-2"] != dashes["fast-10"]
    assert figure.colour_of("mine") in figure.COLOURS.values()
    assert len(set(figure.COLOURS.values())) == len(figure.COLOURS)


def test_many_figures_are_drawn_by_several_processes_to_the_same_bytes(record, tmp_path, monkeypatch):
    results = gathered([record(data=f"set{i}") for i in range(2)])
    alone = plots.draw(results, tmp_path / "alone")
    monkeypatch.setattr(plots, "FEW", 2)
    monkeypatch.setattr(plots.os, "cpu_count", lambda: 2)
    shared = plots.draw(results, tmp_path / "shared")
    assert [path.name for path in alone] == [path.name for path in shared]
    assert [path.read_bytes() for path in alone] == [path.read_bytes() for path in shared]


def test_a_figure_is_drawn_again_where_other_time_is_paid_once_per_teacher(record):
    one, other = (plots._digest("x", [gathered([record(shared=shared)])]) for shared in (10.0, 20.0))
    assert one != other


def test_every_method_has_a_line_in_the_histograms_of_images(record, tmp_path):
    one, other = (
        {"classes": [0.1, 0.9], "confidence": [0.25, 0.75]},
        {"classes": [0.7, 0.3], "confidence": [0.5, 0.5]},
    )
    runs = [record("fast-10", seed=i, diagnostics=diagnostics() | found) for i, found in enumerate((one, other))]
    runs += [record("ssdkd", diagnostics=diagnostics() | other), record("cmi", diagnostics=diagnostics())]
    results = gathered(runs)
    name = "cifar10-paper-images"
    drawn = [f"cifar10-paper{kind}.png" for kind in ("", "-curves", "-images")]
    assert [path.name for path in plots.draw(results, tmp_path)] == drawn
    left, right = Figure().subplots(1, 2)
    histograms._row(left, right, [each for each in results if histograms.drawable(each)])
    steps = [list(patch.get_data().values) for patch in left.patches]
    assert steps == [pytest.approx([0.8, 0.2]), pytest.approx([0.7, 0.3])], (
        "means of each run's commonest class, and so on"
    )
    assert [list(patch.get_data().values) for patch in right.patches] == [pytest.approx([0.375, 0.625]), [0.5, 0.5]]
    legend = [text.get_text() for text in right.get_legend().get_texts()]
    assert legend == ["fast-10, 2,880 images", "ssdkd, 2,880 images"]
    assert plots.outdated(results, tmp_path) == []
    runs[2]["diagnostics"] |= one
    assert [path.stem for path in plots.outdated(gathered(runs), tmp_path)] == [name]


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
    assert figure.apart([0.5, 0.5, 0.51], line=0.1) == pytest.approx([0.5, 0.6, 0.7])
    assert figure.apart([0.9, 0.95, 1.0], line=0.1) == pytest.approx([0.8, 0.9, 1.0])


def test_nothing_heavy_is_imported_until_a_figure_is_drawn():
    code = (
        "import sys, dfkd.report;"
        "print([name for name in ('torch', 'mmengine', 'matplotlib', 'pandas') if name in sys.modules])"
    )
    root = Path(__file__).parents[2]
    said = subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True)
    assert said.stdout.strip() == "[]"
