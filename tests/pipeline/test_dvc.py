"""The pipeline in a fresh clone, with budgets cut to nothing: what runs, and what does not run again."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dfkd import paths
from dfkd.identity import Run
from dfkd.paths import ROOT
from dfkd.tables import pipeline


def in_a_checkout(test):
    """Marks a test that copies the files git knows of, which takes its time."""
    there = shutil.which("git") is not None and (ROOT / ".git").exists()
    return pytest.mark.slow(pytest.mark.skipif(not there, reason="needs git and a checkout")(test))


TABLE, PAIR = "benchmarks/{}/table.yaml", "digits/wrn16_2-wrn16_1"
STAGE = f"run@{PAIR.replace('/', '-')}"
FIRST, SECOND = "quick-seed0", "quick-seed1"
SCENES = "digit-scenes/deeplabv3plus_thin32-deeplabv3plus_thin16"


class Clone:
    """A clone of the working tree, with git or as a download without it, in which `dvc repro` takes seconds."""

    def __init__(self, folder: Path, with_git: bool = True) -> None:
        self.folder = folder
        files = subprocess.run(
            ["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split("\0")
        for name in set(files) - {""}:
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        for family in ("digits", "digit-scenes"):
            self.edit(TABLE.format(family), self.shrink)
        # One of digits has a prior, which is made; of scenes there is the teacher alone.
        self.span(recipes=["teacher", "template"], seeds=[0])
        self.edit(TABLE.format("digit-scenes"), lambda t: t["protocols"]["quick"].update(recipes=["teacher"]))
        self.edit("benchmarks/priors.yaml", lambda p: p["glyphs16"].update(steps=2))
        assert self.call("python", "bench.py", "plan", "--pipeline").returncode == 0
        if not with_git:
            return
        self.git("init", "-q")
        self.git("add", "-A")
        self.git("-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "all")

    @staticmethod
    def shrink(table: dict) -> None:
        quick = table["protocols"]["quick"]
        quick["training"].update(steps=4, batch=8)
        quick.update(rounds=2, synthesis_batch=8, evaluations=1)
        quick["teacher"]["epochs"] = 1

    def span(self, **lists: list) -> None:
        """Change what the table of digits spans, and the maps of the pipelines with it."""
        self.edit(TABLE.format("digits"), lambda table: table["protocols"]["quick"].update(lists))
        done = self.call("python", "bench.py", "plan", "--pipeline")
        assert done.returncode == 0, done.stderr

    def git(self, *arguments: str) -> None:
        subprocess.run(["git", "-C", self.folder, *arguments], check=True, capture_output=True)

    def edit(self, name: str, change) -> None:
        content = yaml.safe_load((self.folder / name).read_text())
        change(content)
        (self.folder / name).write_text(yaml.safe_dump(content))

    def call(self, *command: str) -> subprocess.CompletedProcess:
        """A tool of this environment, in the clone. Repositories above its folder are none of its business."""
        tools = Path(sys.executable).parent
        environment = {
            **os.environ,
            "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
            "DVC_NO_ANALYTICS": "1",
            "GIT_CEILING_DIRECTORIES": str(self.folder.parent),
        }
        return subprocess.run(
            [tools / command[0], *command[1:]], cwd=self.folder, env=environment, capture_output=True, text=True
        )

    def repro(self, *arguments: str) -> list[str]:
        """Run `dvc repro`; the records that it really made, by their paths below the folder of records."""
        done = self.call("dvc", "repro", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return re.findall(r"record: .*/results/records/(.*)\.json$", done.stdout, re.MULTILINE)

    def record(self, recipe: str, seed: int = 0) -> Path:
        return self.folder / f"results/records/digits/wrn16_2-wrn16_1/{recipe}/quick-seed{seed}.json"


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    return Clone(tmp_path_factory.mktemp("clone"))


@in_a_checkout
def test_a_change_runs_what_depends_on_it_and_nothing_else(clone):
    all_of_them = {f"{PAIR}/teacher/{FIRST}", f"{PAIR}/template/{FIRST}", f"{SCENES}/teacher/{FIRST}"}
    assert set(clone.repro()) == all_of_them, "a fresh clone runs every cell, committed records or not"
    made = json.loads(clone.record("template").read_text())
    assert made["cost"]["student_steps"] == 4, "the committed record was replaced by one made here"
    assert clone.repro() == [], "a second repro runs none"

    clone.span(seeds=[0, 1], recipes=["template", "teacher"])
    assert set(clone.repro()) == {f"{PAIR}/teacher/{SECOND}", f"{PAIR}/template/{SECOND}"}

    template = clone.folder / "methods/template.py"
    template.write_text(template.read_text().replace('"""A whole method', '"""Words: a whole method'))
    (clone.folder / "dfkd/units.py").write_text((clone.folder / "dfkd/units.py").read_text() + "\nUNUSED = 1\n")
    assert clone.repro() == [], "neither words nor the harness make a cell run again"

    template.write_text(template.read_text().replace("steps: int = 10", "steps: int = 2"))
    assert set(clone.repro()) == {f"{PAIR}/template/{FIRST}", f"{PAIR}/template/{SECOND}"}
    with open(clone.folder / "results/all.csv", encoding="utf-8", newline="") as file:
        stale = {row["method"]: row["stale"] for row in csv.DictReader(file) if row["data"] == "digits"}
    assert (stale["template"], stale["teacher"]) == ("False", "False")
    assert stale["ssdkd"] == "True", "a committed record of another protocol"


@in_a_checkout
def test_a_stage_that_fails_leaves_what_was_finished(clone):
    clone.repro()
    before = clone.record("template").read_bytes()
    template = clone.folder / "methods/template.py"
    good = template.read_text()
    head = "    def synthesize(self, ctx: Context) -> Samples:\n"
    template.write_text(good.replace(head, f"{head}        1 / 0\n"))
    assert template.read_text() != good
    assert clone.call("dvc", "repro", "-s", "inputs").returncode == 0
    done = clone.call("dvc", "repro", "-s", STAGE)
    template.write_text(good)
    assert done.returncode != 0 and "template 0: ZeroDivisionError" in done.stdout
    assert "finished: " in done.stdout, "what else the stage runs, and was there, was left as it is"
    assert clone.record("template").read_bytes() == before


@in_a_checkout
def test_a_download_without_git(tmp_path):
    clone = Clone(tmp_path, with_git=False)
    assert set(clone.repro(STAGE)) == {f"{PAIR}/teacher/{FIRST}", f"{PAIR}/template/{FIRST}"}
    done = clone.call("python", "bench.py", "leaderboard", "--committed")
    assert (done.returncode, done.stderr) == (0, "")
    first, *rows = done.stdout.splitlines()
    assert first.startswith("committed values are left out, for they come from git (git says: not a git repository")
    assert any(line.split()[1:3] == ["teacher", "0"] for line in rows)
    # Outputs outlive the start of their stage, which all the same makes them anew.
    clone.edit(TABLE.format("digits"), lambda t: t["protocols"]["quick"]["teacher"].update(epochs=2))
    clone.edit("benchmarks/priors.yaml", lambda p: p["glyphs16"].update(steps=3))
    clone.span(recipes=["teacher", "diffdfkd"])  # which has the prior
    clone.repro("-s", "inputs", "teacher@digits-wrn16_2", "data@glyphs", "prior@glyphs16")
    cards = {
        name: json.loads((tmp_path / f"results/{name}.json").read_text())
        for name in ("teachers/digits_wrn16_2", "priors/glyphs16")
    }
    assert [card["recipe"].get("epochs", card["recipe"].get("steps")) for card in cards.values()] == [2, 3]


PIPELINES = [ROOT / "dvc.yaml", ROOT / "benchmarks" / "dvc.yaml"]


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_stage_deletes_what_it_is_to_make(path):
    """DVC does before it runs a stage, unless told otherwise: a failed run would take the finished record with it."""
    for name, stage in yaml.safe_load(path.read_text(encoding="utf-8"))["stages"].items():
        stage = stage.get("do", stage)
        for output in stage.get("outs", []) + stage.get("metrics", []) + stage.get("plots", []):
            assert isinstance(output, dict), (name, output)
            (options,) = output.values()
            assert options.get("persist") is True, (name, output)


@pytest.mark.parametrize(("path", "name"), zip(PIPELINES, pipeline.PIPELINES, strict=True))
def test_a_template_names_the_places_that_the_code_writes_to(path, name):
    stages, maps = yaml.safe_load(path.read_text(encoding="utf-8"))["stages"], pipeline.stages(name)

    def records_of(item: dict) -> Path:
        record = Run.of({"identity": item | {"student": item["pair"].split("-")[1]}}).path()
        return record.parents[1] if name == "quick" else record  # of all runs of a pair, or of one

    for stage, place in {
        "run": lambda key, item: records_of(item),
        "teacher": lambda key, item: paths.teacher(item["data"], item["arch"]),
        "prior": lambda key, item: paths.priors() / key,
    }.items():
        outputs = [*stages[stage]["do"].get("outs", []), *stages[stage]["do"].get("metrics", [])]
        for key, item in maps[f"{stage}s"].items():
            values = {"${key}": key} | {f"${{item.{field}}}": str(value) for field, value in item.items()}
            written = [next(iter(out)) for out in outputs]
            for word, value in values.items():
                written = [out.replace(word, value) for out in written]
            assert place(key, item).relative_to(ROOT).as_posix() in written


def test_the_lock_of_the_root_is_ignored():
    """With it a fresh clone would call every committed record up to date and run nothing."""
    assert "/dvc.lock" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("name", pipeline.PIPELINES)
def test_the_maps_are_those_of_the_tables(name):
    assert paths.pipeline(name).read_text(encoding="utf-8") == pipeline.text(name), "bench.py plan --pipeline"


def test_the_leaderboard_waits_for_every_quick_table():
    stage = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]["leaderboard"]
    assert set(stage["deps"]) == {f"results/tables/{data}.md" for data in pipeline.stages("quick")["tables"]}
