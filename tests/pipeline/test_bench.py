"""The command line: what bad input gets, what needs no torch, and where records go."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import bench
from dfkd import paths, records, report
from dfkd.tables import definition
from dfkd.tables.definition import table_of
from dfkd.tables.pipeline import span
from dfkd.tables.resolve import resolve
from dfkd.tasks import store
from tests.conftest import BUDGET, PAIR, TINY

ROOT = paths.ROOT
SMALL = [f"--set={change}" for change in (*TINY["template"], *BUDGET)]


@pytest.fixture
def command(teacher, tmp_path, monkeypatch, capsys):
    """command(*arguments): (exit status, output, lines of the error stream) of bench.py, writing under tmp_path."""
    from dfkd.artifacts import TEACHER

    # Its card says that it was trained by the protocol's recipe, or the harness would refuse it.
    own = tmp_path / "results" / "teachers" / teacher[0].name
    own.parent.mkdir(parents=True)
    shutil.copyfile(teacher[0], own)
    TEACHER.write(own, {**teacher[1], "recipe": dict(table_of("digits").protocol("quick").teacher)})
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(paths, "WORK", tmp_path / "work")
    monkeypatch.setattr(report, "write", lambda data=None: ([], []))
    for name in ("DFKD_DATA", "DFKD_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)

    def call(*arguments) -> tuple[int, str, list[str]]:
        try:
            status = bench.main([str(argument) for argument in arguments])
        except SystemExit as end:
            status = end.code
        out, err = capsys.readouterr()
        return status, out, err.splitlines()

    return call


@pytest.fixture
def run(command, tmp_path):
    """run(*arguments): `bench.py run` of the template on digits, a few steps long."""

    def call(*arguments, method="template", data="digits", pair=PAIR, small=SMALL, out=tmp_path / "out"):
        named = (f"--method={method}", f"--data={data}", f"--pair={pair}", f"--out={out}")
        root = (f"--data-root={tmp_path / 'data'}", "--device=cpu")
        return command("run", *named, *root, *small, *arguments)

    return call


def written(tmp_path: Path) -> list[Path]:
    """Every record anywhere under the test's folder."""
    found = []
    for path in tmp_path.rglob("*.json"):
        content = json.loads(path.read_text())
        if isinstance(content, dict) and "status" in content:
            found.append(path)
    return found


@pytest.fixture
def stored(tmp_path):
    """A CIFAR-10 of four images."""
    split = (np.zeros((4, 32, 32, 3), np.uint8), np.arange(4))
    names = [str(i) for i in range(10)]
    store.write(tmp_path / "data", "cifar10", {"train": split, "test": split}, names)
    return tmp_path / "data" / "cifar10"


# --- bad input: one clear line, exit status 2, no record


def refused(result, tmp_path, *parts: str) -> None:
    status, _, errors = result
    assert status == 2, result
    lines = [line for line in errors if line.startswith("bench.py: ")]
    assert len(lines) == len(errors) == 1, errors
    for part in parts:
        assert part in lines[0]
    assert written(tmp_path) == []


def test_a_missing_array_is_named(run, stored, tmp_path, own_cifar):
    (stored / "test_images.npy").unlink()
    refused(
        run("--protocol=cpu", "--weights", own_cifar, data="cifar10", small=[]),
        tmp_path,
        str(stored / "test_images.npy"),
        "is missing",
    )


def test_a_corrupted_array_is_named_with_its_digest(run, stored, tmp_path, own_cifar):
    expected = store.manifest(stored.parent, "cifar10")["splits"]["test"]["images_sha256"]
    content = bytearray((stored / "test_images.npy").read_bytes())
    content[-1] ^= 1
    (stored / "test_images.npy").write_bytes(content)
    refused(
        run("--protocol=cpu", "--weights", own_cifar, data="cifar10", small=[]),
        tmp_path,
        str(stored / "test_images.npy"),
        f"sha256 {expected} expected",
    )


@pytest.fixture
def own_cifar(tmp_path):
    """A folder with a ResNet-8 for CIFAR-10, as DFKD_WEIGHTS names one."""
    from dfkd.artifacts import TEACHER, save
    from dfkd.networks import initialise
    from dfkd.tasks import task

    spec, folder = task("cifar10").spec, tmp_path / "weights"
    card = TEACHER.new("cifar10", "resnet8", spec=spec.to_dict(), origin="adopted", accuracy=10.0)
    save(initialise("resnet8", spec, 0), folder / "cifar10_resnet8.safetensors", card)
    return folder


def test_a_teacher_that_does_not_fit_names_the_first_key(run, tmp_path, teacher):
    result = run(f"--teacher-weights={teacher[0]}", pair="wrn16_1-resnet8")
    refused(result, tmp_path, "does not fit wrn16_1 with 10 classes", "no key 'layer1.1.bn1.weight'")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_an_unsafe_pickle_is_refused_and_not_run(run, tmp_path):
    class Bomb:
        def __reduce__(self):
            return open, (str(tmp_path / "it ran"), "w")

    path = tmp_path / "bomb.pth"
    path.write_bytes(pickle.dumps({"conv1.weight": Bomb()}))
    refused(run(f"--teacher-weights={path}"), tmp_path, str(path))
    assert not (tmp_path / "it ran").exists()


def test_a_pickled_class_in_a_checkpoint_is_refused(run, tmp_path):
    import torch

    torch.save({"model": torch.nn.Linear(1, 1)}, tmp_path / "whole.pth")
    refused(run(f"--teacher-weights={tmp_path / 'whole.pth'}"), tmp_path, "is refused", "could run code")


@pytest.mark.slow
def test_a_data_download_without_network(command, tmp_path, monkeypatch):
    import urllib.error
    import urllib.request

    def offline(*args, **kwargs):
        raise urllib.error.URLError("Network is unreachable")

    pytest.importorskip("torchvision.datasets")
    monkeypatch.setattr(urllib.request, "urlopen", offline)
    result = command("data", "cifar10", "--data-root", tmp_path / "data")
    refused(result, tmp_path, "cifar10: cannot download")
    assert not list((tmp_path / "data").rglob("*.*"))


def test_a_record_that_breaks_the_schema_is_named(command, tmp_path):
    path = tmp_path / "results" / "records" / "digits" / "a-b" / "c" / "quick-seed0.json"
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    status, out, errors = command("plan")
    assert status == 1 and "--data digits" in out
    assert errors[0].startswith("# ") and errors[1].startswith(f"bench.py: {path}: record: ")
    assert len(errors) == 2


# --- where records go, and with what exit status


def test_a_changed_run_is_custom_and_stays_out_of_the_tables(command, tmp_path):
    cell = ("--data=digits", f"--pair={PAIR}", "--device=cpu")
    status, out, _ = command("--method=template", *cell, *SMALL)  # `run` is the default verb
    assert status == 0
    (path,) = written(tmp_path)
    assert path.is_relative_to(tmp_path / "work" / "custom")
    record = records.read(path)
    assert record["custom"] and record["status"] == "ok"
    assert str(path) in out and "student: " in out


def test_a_run_as_the_table_has_it_joins_the_records(command, tmp_path, monkeypatch):
    """With the protocol's own numbers made small, so that the run is short."""
    table = table_of("digits")
    quick = table.protocol("quick")
    training = quick.settings["training"] | {"steps": 4, "batch": 8}
    settings = {**quick.settings, "training": training, "rounds": 2, "synthesis_batch": 8, "evaluations": 2}
    smaller = replace(table, protocols={"quick": replace(quick, settings=settings)})
    monkeypatch.setattr(definition, "tables", lambda: {"digits": smaller})
    status, _, _ = command("--method=template", "--data=digits", f"--pair={PAIR}", "--device=cpu")
    assert status == 0
    expected = tmp_path / "results" / "records" / "digits" / PAIR / "template" / "quick-seed0.json"
    assert written(tmp_path) == [expected]
    assert not records.read(expected)["custom"]
    samples = tmp_path / "results" / "plots" / "samples" / "digits" / "quick" / f"{PAIR}-template.png"
    assert samples.is_file()


def method_file(tmp_path, body: str) -> Path:
    path = tmp_path / "outside.py"
    path.write_text(
        "import os, signal, torch\n"
        "from dfkd.engine.method import METHODS, Method\n"
        "from dfkd.synthesis.buffer import Samples\n\n"
        '@METHODS.register_module("outside", force=True)\n'
        'class Outside(Method):\n    """A guest."""\n\n'
        "    def synthesize(self, ctx):\n"
        "        shape = (ctx.budget.synthesis_batch, ctx.spec.channels, ctx.spec.size, ctx.spec.size)\n"
        '        return Samples(torch.rand(shape, generator=ctx.rng("noise")))\n\n'
        f"    def distill(self, ctx, batch):\n        {body}\n        return super().distill(ctx, batch)\n"
    )
    return path


BUDGETED = [f"--set={change}" for change in BUDGET]


@pytest.mark.parametrize(
    ("body", "exit_status", "status"),
    [
        ("pass", 0, "ok"),
        ("return {'kd': ctx.student(batch.images).sum() * float('nan')}", 0, "diverged"),
        ("os.kill(os.getpid(), signal.SIGTERM)", 75, "partial"),
        ("from sklearn.datasets import load_digits; load_digits()", 1, "failed"),
        ("raise ZeroDivisionError('oh')", 1, "failed"),
    ],
    ids=["ok", "diverged", "partial", "a cheat", "a crash"],
)
def test_exit_and_record_status(body, exit_status, status, run, tmp_path):
    path = method_file(tmp_path, body)
    result = run(f"--import={path}", method="outside", small=BUDGETED)
    assert result[0] == exit_status, result
    (found,) = written(tmp_path)
    record = records.read(found)  # it satisfies the schema
    assert record["status"] == status
    assert (record["metrics"]["last"] is not None) == (status == "ok")
    if status == "failed":
        assert result[2][-1].startswith("bench.py: ")


def test_a_stopped_run_goes_on_with_resume(run, tmp_path):
    path = method_file(tmp_path, "ctx.student_steps == 1 and os.kill(os.getpid(), signal.SIGTERM)")
    arguments = {"method": "outside", "small": BUDGETED}
    assert run(f"--import={path}", **arguments)[0] == 75
    status, _, errors = run(f"--import={path}", **arguments)
    assert status == 2 and "holds a saved state of this run: pass --resume" in errors[-1], "hours would be lost"
    assert run(f"--import={path}", "--resume", **arguments)[0] == 0
    (found,) = written(tmp_path)
    assert records.read(found)["time"]["resumes"] == 1


def test_a_stopped_run_begins_anew_when_asked_to(run, tmp_path):
    """Stopped in its second step each time: a run that went on from there would come to its end."""
    path = method_file(tmp_path, "ctx.student_steps == 1 and os.kill(os.getpid(), signal.SIGTERM)")
    for again in ([], ["--again"]):
        assert run(f"--import={path}", *again, method="outside", small=BUDGETED)[0] == 75


def test_a_finished_cell_is_run_again_when_asked_to(run, tmp_path):
    assert run()[0] == 0
    (path,), (student,) = written(tmp_path), tmp_path.rglob("student.safetensors")
    before = path.read_bytes(), student.stat().st_mtime_ns
    status, out, errors = run()
    assert (status, errors) == (0, []) and out.splitlines()[-1] == f"finished: {path}; to run it once more: --again"
    assert (path.read_bytes(), student.stat().st_mtime_ns) == before
    assert run("--resume")[1] == out, "there is nothing to go on from"
    assert run("--again")[0] == 0
    assert path.read_bytes() != before[0]


@pytest.mark.parametrize("change", ["no student", "no record", "a broken record", "another teacher"])
def test_a_cell_is_run_where_something_is_missing_or_different(change, run, tmp_path):
    from dfkd.artifacts import TEACHER, save
    from dfkd.networks import initialise
    from dfkd.tasks import task

    assert run()[0] == 0
    (path,), (student,) = written(tmp_path), tmp_path.rglob("student.safetensors")
    before = path.read_bytes()
    if change == "no student":
        student.unlink()
    elif change == "no record":
        path.unlink()
    elif change == "a broken record":
        path.write_text('{"half')
    else:
        (weights,) = (tmp_path / "results" / "teachers").glob("*.safetensors")
        card = TEACHER.read(weights)
        save(initialise("resnet8", task("digits").spec, 1), weights, card)
    assert run()[0] == 0
    assert path.read_bytes() != before
    assert records.read(path)["status"] == "ok"


@pytest.mark.slow
def test_a_method_that_declines_has_no_teacher_trained_for_it(command, tmp_path):
    """Nobody has made one for label maps."""
    pair = "deeplabv3plus_thin16-deeplabv3plus_thin16"
    cell = ("--method=cmi", "--data=digit-scenes", f"--pair={pair}", "--device=cpu", f"--out={tmp_path / 'out'}")
    status, out, errors = command("run", *cell, *BUDGETED)
    assert (status, errors) == (0, [])
    assert "unsupported" in out and "training" not in out
    (path,) = written(tmp_path)
    assert records.read(path)["metrics"]["teacher"] is None


@pytest.mark.parametrize("body", ["raise SystemExit(0)", "os._exit(0)", "torch.zeros(10**15)"])
def test_what_one_line_tells_is_told_in_one_line(body, run, tmp_path):
    result = run(f"--import={method_file(tmp_path, body)}", method="outside", small=BUDGETED)
    assert result[0] == 1
    assert len([line for line in result[2] if " · " not in line]) == 1
    (path,) = written(tmp_path)
    assert records.read(path)["status"] == "failed"


@pytest.fixture
def with_prior(run, tmp_path, monkeypatch):
    """`run` of a method that uses a prior, of which none is there."""
    monkeypatch.setattr(paths, "priors", lambda: tmp_path / "priors" / "own")
    return lambda: run(method="diffdfkd", small=BUDGETED)


def test_a_run_that_is_stopped_while_its_prior_trains_is_to_be_tried_again(with_prior, tmp_path, monkeypatch):
    from dfkd import artifacts
    from dfkd.signals import Stopped

    def provide(*_, resume=True, **options):
        assert resume  # it goes on although the run was not asked to
        raise Stopped("stopped by SIGINT at step 4 of 6; the same with --resume goes on")

    monkeypatch.setattr(artifacts, "prior", provide)
    status, _, err = with_prior()
    assert status == bench.EXIT_PARTIAL
    assert err == ["bench.py: stopped by SIGINT at step 4 of 6; the same with --resume goes on"]
    assert written(tmp_path) == []


def test_an_unwritable_folder_of_priors_is_found_before_one_is_trained(with_prior, tmp_path):
    (tmp_path / "priors").write_text("")
    refused(with_prior(), tmp_path, "cannot write to", str(tmp_path / "priors"))


def test_a_failed_run_leaves_a_finished_record_alone(run, tmp_path):
    arguments = {"method": "outside", "small": BUDGETED}
    assert run(f"--import={method_file(tmp_path, 'pass')}", **arguments)[0] == 0
    (found,) = written(tmp_path)
    before = found.read_bytes()
    again = tmp_path / "again"
    again.mkdir()
    assert run(f"--import={method_file(again, '1 / 0')}", **arguments)[0] == 1
    assert found.read_bytes() == before


def test_a_method_from_outside_is_listed(command, tmp_path):
    status, out, _ = command("list", "--import", method_file(tmp_path, "pass"))
    assert status == 0
    assert re.search(r"^outside +none +A guest\.$", out, re.M)


def test_somebody_s_own_teacher_makes_a_run_custom(run, tmp_path, teacher):
    assert run(f"--teacher-weights={teacher[0]}")[0] == 0
    (found,) = written(tmp_path)
    record = records.read(found)
    assert record["custom"] and record["provenance"]["teacher"]["origin"] == "foreign"


# --- plan


def test_plan_names_every_cell_without_a_record(command):
    status, out, errors = command("plan")
    assert status == 0
    cells = [line for line in out.splitlines() if "--method" in line]
    assert len(cells) == len(list(span()))
    assert errors[-1].startswith(f"# {len(cells)} runs, about ")


@pytest.mark.parametrize("count", [1, 2, 7])
def test_shards_divide_the_plan(count, command):
    def cells(*arguments):
        return [line for line in command("plan", *arguments)[1].splitlines() if "--method" in line]

    whole, shards = cells(), [cells(f"--shard={i}/{count}") for i in range(1, count + 1)]
    assert sorted(line for shard in shards for line in shard) == sorted(whole)
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_what_plan_prints_can_be_run(command):
    line = command("plan", "--data=digits")[1].splitlines()[-1]
    arguments = line.partition("#")[0].split()[2:]
    options = bench.parser().parse_args(["run", *arguments])
    assert resolve(options.data, options.protocol, *options.method, options.pair, *options.seed)


# --- without torch, on one screen


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "--help"], ["list"], ["plan"], ["leaderboard", "--check"]], ids=" ".join
)
def test_no_torch_is_imported_for(arguments):
    code = (
        "import sys, bench\n"
        "try:\n    status = bench.main(sys.argv[1:])\n"
        "except SystemExit as end:\n    status = end.code\n"
        "print('imported:', *(m for m in ('torch', 'mmengine', 'sklearn') if m in sys.modules))"
    )
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].strip() == "imported:"


@pytest.mark.parametrize("verb", ["", *bench.VERBS])
def test_help_fits_a_screen(verb, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    status, out, _ = command(*filter(None, [verb, "--help"]))
    assert status == 0
    assert len(out.splitlines()) <= 40
    assert max(map(len, out.splitlines())) <= 80


def test_help_names_every_verb_and_the_flags_the_field_expects(command):
    assert all(verb in command("--help")[1] for verb in bench.VERBS)
    out = command("run", "--help")[1]
    flags = "--method --data --pair --seed --protocol --set --device --precision --resume --out --import"
    assert all(flag in out for flag in flags.split())


# --- what is in the repository


def tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_the_lock_names_no_download_address():
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock and "file:" not in lock and " @ " not in lock
    assert lock.count("--hash=sha256:") > lock.count("==") > 100


def test_no_tracked_file_names_a_place_of_one_machine():
    # Written in pieces, so that this file passes too. A home folder counts where a user's name follows.
    places = r"(?<![\w.}\")])/(?:wo" + r"rk|ho" + r"me|ro" + r"ot|Us" + r"ers|mnt|scratch)/\w"
    hosts = r"(?:artifact" + r"ory|nex" + r"us|dev" + r"pi|index" + r"-url|find-" + r"links\s*=)"
    forbidden = re.compile(f"{places}|{hosts}")
    found = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        lines = (f"{path.relative_to(ROOT)}: {line.strip()[:100]}" for line in text.splitlines())
        found += [line for line in lines if forbidden.search(line.partition(": ")[2])]
    assert found == []
