"""`bench.py teacher`, and `run` and `plan` where they concern teachers and priors."""

import json
import os
import signal
import time
from dataclasses import replace

import pytest

import bench
from dfkd import artifacts, paths
from dfkd.artifacts import TEACHER
from dfkd.tables import definition
from dfkd.tables.definition import table_of
from dfkd.tasks import task
from dfkd.teachers import training

MAKE = ("teacher", "--data=digits", "--arch=resnet8", "--device=cpu")


@pytest.fixture
def command(command, monkeypatch):
    """As everywhere; a teacher takes three steps."""
    digits, whole = type(task("digits")), type(task("digits")).load
    monkeypatch.setattr(digits, "load", lambda self, *a: tuple(part[:64] for part in whole(self, *a)))
    table = table_of("digits")
    quick = replace(table.protocol("quick"), teacher=dict(table.protocol("quick").teacher) | {"epochs": 3})
    shorter = dict(definition.tables()) | {"digits": replace(table, protocols={"quick": quick})}
    monkeypatch.setattr(definition, "tables", lambda: shorter)
    return command


def test_a_teacher_is_trained_once(command, tmp_path):
    status, out, _ = command(*MAKE)
    path = tmp_path / "results" / "teachers" / "digits_resnet8.safetensors"
    assert status == 0 and "epoch 3/3" in out and f"{path}: trained, top1 " in out
    assert command(*MAKE)[1].splitlines() == out.splitlines()[-1:]
    assert TEACHER.read(path)["recipe"]["epochs"] == 3


@pytest.mark.parametrize("verb", [MAKE, ("run", "--method=template", "--data=digits", "--pair=resnet8-resnet8")])
def test_a_time_limit_and_a_signal_are_told_by_the_status(command, tmp_path, monkeypatch, verb):
    status, _, err = command(*verb, "--time-limit=1e-9")
    assert (status, err) == (
        75,
        "bench.py: the time limit was reached at epoch 1/3; the same with --resume goes on\n",
    )
    train_step = training.Supervised.train_step

    def interrupted(self, data, optim_wrapper):
        os.kill(os.getpid(), signal.SIGTERM)
        train_step(self, data, optim_wrapper)

    monkeypatch.setattr(training.Supervised, "train_step", interrupted)
    status, out, err = command(*verb, "--resume")
    assert (status, err) == (
        75,
        "bench.py: stopped by SIGTERM at epoch 2/3; the same with --resume goes on\n",
    )
    assert "going on from epoch 1/3" in out
    assert not [path for path in (tmp_path / "results").rglob("*") if path.is_file()]
    monkeypatch.setattr(training.Supervised, "train_step", train_step)
    status, _, err = command(*MAKE)
    assert status == 2 and "is a saved state of this training: pass --resume" in err
    assert command(*MAKE, "--resume")[0] == 0


def test_the_limit_of_a_run_counts_from_its_start(command, monkeypatch):
    """What teacher and prior have used up is not there for the run, which still goes one step."""
    seen = {}

    def teacher(*arguments, until, **options):
        seen["teacher"] = until - time.monotonic()
        raise KeyboardInterrupt

    monkeypatch.setattr(artifacts, "teacher", teacher)
    status, _, _ = command("--method=template", "--data=digits", "--time-limit=5", "--device=cpu")
    assert status == 75 and 0 < seen["teacher"] <= 300


def test_the_prior_of_the_tutorial_is_limited_too(command, tmp_path, monkeypatch):
    status, _, err = command("prior", "--data=glyphs", "--size=16", "--device=cpu", "--time-limit=1e-9")
    assert (status, err) == (
        75,
        "bench.py: the time limit was reached at step 1/160; the same with --resume goes on\n",
    )


def test_a_folder_of_teachers_that_cannot_be_written_is_found_before_one_is_trained(command, tmp_path):
    (tmp_path / "results").write_text("")
    status, out, err = command(*MAKE)
    assert status == 2 and err.startswith(f"bench.py: cannot write to {paths.teachers()}: ") and err.count("\n") == 1
    assert "training" not in out


# --- plan


def plan(command, *arguments):
    lines = command("plan", *arguments)[1].splitlines()
    lines = [line.partition("  #")[0] for line in lines]
    makes = [line.split()[2:] for line in lines if "--method" not in line]
    assert lines[: len(makes)] == [f"python bench.py {' '.join(words)}" for words in makes]  # they come first
    return makes


def test_a_plan_begins_with_the_teachers_and_priors_that_are_missing(command):
    both = plan(command, "--data=digits")
    assert [words[0] for words in both] == ["teacher", "prior"]
    options = bench.parser().parse_args(both[0])
    assert (options.data, options.arch, options.protocol, options.resume) == (
        "digits",
        "wrn16_2",
        "quick",
        True,
    )
    options = bench.parser().parse_args(both[1])
    assert (options.data, options.size, options.name, options.resume) == ("glyphs", 16, None, True)
    paths.teachers().mkdir(parents=True)
    paths.teacher("digits", "wrn16_2").touch()
    assert plan(command, "--data=digits") == both[1:]
    (paths.priors() / "glyphs16").mkdir(parents=True)
    assert plan(command, "--data=digits") == []


def test_each_shard_makes_what_its_cells_lack(command):
    """So they may run in any order, at once or not; where two make the same, one waits."""
    for index in range(1, 8):
        lines = command("plan", f"--shard={index}/7")[1].splitlines()
        cells = [
            bench.parser().parse_args(["run", *line.partition("#")[0].split()[2:]])
            for line in lines
            if "--method" in line
        ]
        needed = {(cell.data, cell.pair.split("-")[0]) for cell in cells}
        made = [
            bench.parser().parse_args(line.partition("#")[0].split()[2:]) for line in lines if " teacher --data" in line
        ]
        assert {(options.data, options.arch) for options in made} == needed


def test_cards_of_the_project_satisfy_their_schemas():
    for path in paths.teachers().glob("*.json"):
        assert TEACHER.read_of(path.with_suffix(".safetensors"), path.stem) == json.loads(path.read_text("utf-8"))
