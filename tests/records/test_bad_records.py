"""Records from anybody's hand: what is wrong is named, all of it, the rest is rendered, nothing hangs or crashes."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from filelock import FileLock

import bench
from dfkd import paths, records, report
from dfkd.errors import UserError
from dfkd.identity import Run
from dfkd.report import commit, current


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """command(*arguments): (exit status, output, lines of the error stream) of bench.py, with results in tmp_path."""
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    (tmp_path / "published.csv").write_text(
        "data,teacher,student,method,metric,value,source,url,verified,primary,note\n"
    )

    def call(*arguments):
        status = bench.main(list(arguments))
        out, err = capsys.readouterr()
        return status, out, err.splitlines()

    return call


CELL = dict(data="digits", teacher="wrn16_2", student="wrn16_1", protocol="quick", method="fast-5")


@pytest.fixture
def good(record, tmp_path):
    """A record that stands beside the bad ones, under tmp_path."""
    return records.write(record(**CELL), tmp_path / "records")


def change(*path, to):
    """An edit of one value of a record."""

    def edit(record):
        parent = record
        for key in path[:-1]:
            parent = parent[key]
        parent[path[-1]] = to
        return json.dumps(record)

    return edit


def unfinished(record):
    return json.dumps(record | {"status": "failed"})


def raw(old, new):
    return lambda record: json.dumps(record).replace(old, new)


DEEP = "[" * 200_000
# Name → an edit of a valid record, or a text; a part of the line that names the file.
BAD = {
    "half": ('{"half', "cannot be read"),
    "empty": ("", "cannot be read"),
    "a list": ("[]", "not of type 'object'"),
    "deep": (raw('"lr": 0.1', f'"lr": {DEEP}'), "nested too deeply"),
    "duplicate key": (raw('"custom"', '"status": "failed", "custom"'), "'status' stands there twice"),
    "latin-1": (lambda r: json.dumps(r | {"note": "é"}, ensure_ascii=False).encode("latin-1"), "not UTF-8"),
    "conflict": (lambda r: "<<<<<<< HEAD\n" + json.dumps(r), "cannot be read"),
    "NaN": (change("metrics", "last", to=float("nan")), "metrics.last: nan is no number"),
    "1e999": (raw('"lr": 0.1', '"lr": 1e999'), "config.lr: inf is no number"),
    "400 digits": (raw('"seed": 1', '"seed": ' + "9" * 400), "identity.seed: an integer beyond 64 bits"),
    "5000 digits": (raw('"seed": 1', '"seed": ' + "9" * 5000), "cannot be read"),
    "surrogate": (change("note", to="\ud800"), "note: text with a lone surrogate"),
    "note": (change("note", to=["a", "b"]), "note: ['a', 'b'] is not of type 'string', 'null'"),
    "error": (change("error", to={"a": 1}), "error: "),
    "report": (change("report", to={"a\nb": "much"}), "report.a b: 'much' is not of type 'number'"),
    "huge report": (change("report", to={"a": 1e308}), "report.a: 1e+308 is greater than the maximum"),
    "huge time": (change("time", "synthesis", to=1e300), "time.synthesis: 1e+300 is greater than the maximum"),
    "huge count": (change("cost", "student_steps", to=1e300), "cost.student_steps: 1e+300 is greater than"),
    "line break": (change("identity", "method", to="fast-5\n"), "identity.method: 'fast-5\\n' does not match"),
    "other name": (change("identity", "method", to="fast-6"), "names another place"),
    "other seed": (change("identity", "seed", to=2), "names another place"),
    "no seed": (lambda r: json.dumps({k: v for k, v in r.items() if k != "identity"}), "'identity' is a required"),
    "top-1 of 150": (change("metrics", "teacher", to=150), "metrics.teacher: 150 is greater than the maximum of 100"),
    "top-1 of -5": (change("metrics", "curve", 0, "value", to=-5), "metrics.curve.0.value: -5 is less than"),
    "mIoU of 38": (change("metrics", "name", to="miou"), "is greater than the maximum of 1"),
    "last": (change("metrics", "last", to=89.0), "metrics.last: 89.0 is not the last point of the curve"),
    "no curve": (change("metrics", "curve", to=[]), "metrics.last: 90.0 is not the last point of the curve"),
    "oracle": (
        change("metrics", "oracle_best", to=99.0),
        "metrics.oracle_best: 99.0, but the best point of the curve is 90.0",
    ),
    "steps": (change("metrics", "curve", 1, "step", to=750), "metrics.curve: step 750 comes after step 750"),
    "seconds": (change("metrics", "curve", 1, "seconds", to=1.0), "metrics.curve: step 1500 comes after step 750"),
    "ok without a score": (change("metrics", "last", to=None), "metrics.last: None is not of type 'number'"),
    "ok with an error": (change("error", to="out of memory"), "error: 'out of memory' is not of type 'null'"),
    "failed with a score": (unfinished, "metrics.last: 90.0 is not of type 'null'"),
    "declined without a reason": (change("status", to="unsupported"), "record: "),
    "clock": (change("time", "total", to=5.0), "time.total: 5.0 s, but the categories add up to"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_record_is_named_in_one_line_and_the_rest_is_rendered(name, record, good, command, tmp_path):
    edit, reason = BAD[name]
    path = good.with_name("quick-seed1.json")
    content = edit if isinstance(edit, str) else edit(record(**CELL, seed=1))
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    status, _, errors = command("leaderboard")
    assert status == 1 and len(errors) == 1, errors
    assert errors[0].startswith(f"bench.py: {path}") and reason in errors[0] and len(errors[0]) < 500
    assert "| fast-5" in (tmp_path / "LEADERBOARD.md").read_text()


PLACES = {
    "folder": (lambda path: path.mkdir(), "no regular file"),
    "pipe": (os.mkfifo, "no regular file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "no regular file"),
    "link to nowhere": (lambda path: path.symlink_to(path.parent / "gone"), "there is no such file"),
    "link to itself": (lambda path: path.symlink_to(path), "cannot be read"),
}


@pytest.mark.parametrize("name", PLACES)
def test_what_is_no_file_is_named_and_nothing_hangs(name, good, command):
    make, reason = PLACES[name]
    path = good.with_name("quick-seed1.json")
    make(path)
    status, _, errors = command("leaderboard")
    assert status == 1 and len(errors) == 1 and str(path) in errors[0] and reason in errors[0]


def test_every_bad_file_is_named_by_every_verb(good, command):
    bad = [good.with_name(f"quick-seed{seed}.json") for seed in (7, 8, 9)]
    for path in bad:
        path.write_text("{")
    for verb in (["leaderboard"], ["leaderboard", "--check"], ["plan"], ["list"]):
        status, _, errors = command(*verb)
        named = [error.split(" cannot")[0] for error in errors if not error.startswith("# ")]
        assert (status, named) == (1, [f"bench.py: {path}" for path in bad])


def test_hidden_files_are_passed_over(good, command):
    """macOS leaves `._name` beside each file on foreign disks; notebooks and editors leave folders."""
    good.with_name("._quick-seed0.json").write_bytes(b"\x00\x05\x16\x07")
    (good.parent.parent / ".checkpoints").mkdir()
    (good.parent.parent / ".checkpoints" / "quick-seed0.json").write_text("{")
    assert command("leaderboard")[::2] == (0, [])


def test_another_cells_bad_record_is_no_fault_of_a_run(good, command, capsys):
    bad = good.with_name("quick-seed9.json")
    bad.write_text("{")
    report.after_run(records.read(good) | {"work": "nowhere"})
    (line,) = capsys.readouterr().err.splitlines()
    assert str(bad) in line and line.endswith("then: python bench.py leaderboard")


def test_a_run_is_not_failed_by_tables_that_cannot_be_written(good, command, monkeypatch, capsys, tmp_path):
    (tmp_path / "published.csv").write_text("nonsense\n")
    report.after_run(records.read(good) | {"work": "nowhere"})
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("this run's record is written") and "published.csv" in line


# --- code and recipes that are broken make nothing stale


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A copy of methods, reference rows and recipes that a test may break."""
    for folder in (*paths.METHODS, paths.BENCHMARKS):
        shutil.copytree(folder, tmp_path / "project" / folder.name)
    monkeypatch.setattr(paths, "METHODS", tuple(tmp_path / "project" / folder.name for folder in paths.METHODS))
    monkeypatch.setattr(paths, "ROOT", tmp_path / "project")
    monkeypatch.setattr(paths, "BENCHMARKS", tmp_path / "project" / "benchmarks")
    return tmp_path / "project"


def broken_syntax(project):
    (project / "methods" / "mine.py").write_text("class (")


def two_of_one_name(project):
    """Step 1 of our own tutorial, before the copy is renamed."""
    (project / "methods" / "mine.py").write_text((project / "methods" / "template.py").read_text())


def unknown_key(project):
    path = project / "benchmarks" / "digits" / "recipes" / "fast-5.yaml"
    path.write_text(path.read_text() + "argz: {}\n")


def unknown_argument(project):
    path = project / "benchmarks" / "digits" / "recipes" / "fast-5.yaml"
    path.write_text("method: fast\nargs: {no_such: 1}\n")


def unknown_base(project):
    path = project / "benchmarks" / "digits" / "recipes" / "fast-5.yaml"
    path.write_text("base: no-such\n")


@pytest.mark.parametrize(
    "fault",
    [broken_syntax, two_of_one_name, unknown_key, unknown_argument, unknown_base],
    ids=lambda f: f.__name__,
)
def test_broken_code_and_recipes_are_an_error_and_no_staleness(fault, project, good, command, tmp_path):
    assert command("leaderboard")[0] == 0
    before = (tmp_path / "LEADERBOARD.md").read_bytes()
    fault(project)
    said = []
    for verb in (["list"], ["plan"], ["leaderboard"], ["leaderboard", "--check"]):
        status, out, errors = command(*verb)
        assert (status, len(errors)) == (2, 1), (verb, out, errors)
        said += errors
    assert len(set(said)) == 1
    assert (tmp_path / "LEADERBOARD.md").read_bytes() == before
    with pytest.raises(UserError):  # nor by itself, whoever else looks at the tables
        current.current_digests([records.read(good)])


GONE = [dict(method="no-such"), dict(protocol="cpu-2"), dict(teacher="vgg99"), dict(data="mnist")]
GONE += [dict(teacher="deeplabv3plus_thin32")]  # no network for such a task


@pytest.mark.parametrize("identity", GONE, ids=str)
def test_a_record_of_what_is_gone_is_stale(identity, record):
    made = record(**CELL | identity)
    assert current.current_digests([made]) == {Run.of(made).cell: (None, None)}


def test_a_record_with_networks_of_a_library_is_of_today(record):
    networks = dict(teacher="torchvision.resnet34", student="torchvision.resnet18")
    made = record(**CELL | networks | dict(data="domainnet-sketch", protocol="paper", method="fast-10"))
    assert None not in current.current_digests([made])[Run.of(made).cell]


def test_a_record_of_a_method_that_was_removed_is_stale(project, record):
    recipe = project / "benchmarks" / "digits" / "recipes" / "passing.yaml"
    recipe.write_text("method: fast\n")
    made = record(**CELL | dict(method="passing"))
    assert current.current_digests([made])[Run.of(made).cell][0]
    recipe.write_text("method: no-such\n")
    assert current.current_digests([made])[Run.of(made).cell][0] is None
    recipe.unlink()
    assert current.current_digests([made])[Run.of(made).cell][0] is None


def test_a_guest_is_taken_as_it_is(record):
    made = record(**CELL | dict(method="guest"))
    made["provenance"]["code"]["external"] = True
    assert current.current_digests([made])[Run.of(made).cell] == ("m1", "c1")


@pytest.mark.parametrize("text", ["{", "[]", '{"metrics": {}}'])
def test_a_committed_record_that_cannot_be_read_is_none(text, monkeypatch):
    monkeypatch.setattr(commit, "git", lambda *_: text)
    assert commit.committed(Run(**CELL, seed=0)) is None


@pytest.mark.parametrize(
    ("score", "hardware", "scores", "said"),
    [
        (97.0, "A", {0: 97.0}, "equal"),
        (97.0, "B", {0: 97.0}, "equal"),
        (97.2, "A", {0: 97.0}, "DIFFERS on the same hardware"),
        (97.2, "B", {0: 97.0}, "other hardware"),
        (97.9, "B", {0: 97.0, 1: 97.5, 2: 96.5}, "other hardware, within 2 sd"),  # 97.0 ± 0.5
        (96.0, "B", {0: 97.0, 1: 97.5, 2: 96.5}, "other hardware, within 2 sd"),
        (95.9, "B", {0: 97.0, 1: 97.5, 2: 96.5}, "other hardware, BEYOND 2 sd"),
        (97.2, "B", {1: 97.0, 2: 97.5}, ""),
        (97.2, "B", {}, ""),
    ],
)
def test_what_is_measured_is_compared_with_what_is_committed(record, score, hardware, scores, said):
    kept = {seed: record("fast-5", value, seed=seed, hardware="A") for seed, value in scores.items()}
    made = record("fast-5", score, hardware=hardware)
    made["provenance"]["date"] = "2027-01-02T03:04:05+00:00"
    assert commit.compared(made, kept) == said
    assert {commit.compared(each, kept) for each in kept.values()} <= {"not run since"}


def test_records_written_by_a_run_raise_before_anything_is_written(record, tmp_path):
    with pytest.raises(UserError, match=r"metrics\.last: 89\.0 is not the last point"):
        broken = record()
        broken["metrics"]["last"] = 89.0
        records.write(broken, tmp_path)
    assert not list(tmp_path.iterdir())


def test_four_leaderboards_at_once_all_succeed(record, tmp_path):
    """Each process with the records there are when its turn comes: the last one writes what all records give."""
    for seed in range(4):
        records.write(record(**CELL, seed=seed), tmp_path / "records")
    shutil.copy(paths.published(), tmp_path)
    code = (
        "import sys, bench; from pathlib import Path; from dfkd import paths\n"
        f"paths.RESULTS = Path({str(tmp_path)!r}); sys.exit(bench.main(['leaderboard']))"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code], cwd=paths.ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(4)
    ]
    outcomes = [(process.communicate()[1], process.returncode) for process in started]
    assert outcomes == [(b"", 0)] * 4
    assert not list(tmp_path.rglob("*.partial"))
    assert "(4)" in (tmp_path / "LEADERBOARD.md").read_text(encoding="utf-8")


def test_a_process_that_keeps_the_tables_to_itself_does_not_fail_a_run(good, command, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(report, "PATIENCE", 0.1)
    with FileLock(tmp_path / ".lock"):
        report.after_run(records.read(good) | {"work": "nowhere"})
        assert command("leaderboard")[0] == bench.EXIT_PARTIAL
    assert not (tmp_path / "LEADERBOARD.md").exists()
