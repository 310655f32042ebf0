"""The pipeline in a fresh clone, with budgets cut to nothing: what runs, and what does not run again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dfkd.catalog import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("git") is None, reason="needs git"),
    pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs a checkout"),
]


class Clone:
    """A clone of the working tree in which `dvc repro` takes seconds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        files = subprocess.run(
            ["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            capture_output=True, text=True, check=True,
        ).stdout.split("\0")
        for name in set(files) - {"", "dvc.lock"}:  # the root's lock is never committed
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        self.git("init", "-q")
        self.edit("params.yaml", lambda p: p["digits"]["quick"].update(recipes=["teacher", "template"], seeds=[0]))
        self.edit("params.yaml", lambda p: p["digit-scenes"]["quick"].update(recipes=["teacher"]))
        for data in ("digits", "digit-scenes"):
            self.edit(f"benchmarks/{data}/protocol.yaml", self.shrink)
        self.edit("benchmarks/priors.yaml", lambda p: p["glyphs16"].update(steps=2))
        self.git("add", "-A")
        self.git("-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "all")

    @staticmethod
    def shrink(protocols: dict) -> None:
        quick = protocols["quick"]
        quick["training"].update(steps=4, batch=8)
        quick.update(rounds=2, synthesis_batch=8, evaluations=1)
        quick["teacher"]["epochs"] = 1

    def git(self, *arguments: str) -> None:
        subprocess.run(["git", "-C", self.folder, *arguments], check=True, capture_output=True)

    def edit(self, name: str, change) -> None:
        content = yaml.safe_load((self.folder / name).read_text())
        change(content)
        (self.folder / name).write_text(yaml.safe_dump(content))

    def repro(self) -> list[str]:
        """Run `dvc repro`; the names of the run stages that it really ran."""
        tools = Path(sys.executable).parent
        environment = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1"}
        done = subprocess.run(
            [tools / "dvc", "repro"], cwd=self.folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        lines = [line for line in done.stdout.splitlines() if line.startswith("Running stage 'run@")]
        return [line.split("'")[1].removeprefix("run@") for line in lines]

    def record(self, recipe: str, seed: int = 0) -> Path:
        return self.folder / f"results/records/digits/wrn16_2-wrn16_1/{recipe}/quick-seed{seed}.json"


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    return Clone(tmp_path_factory.mktemp("clone"))


def test_a_change_runs_what_depends_on_it_and_nothing_else(clone):
    both = {"wrn16_2-wrn16_1-teacher-0", "wrn16_2-wrn16_1-template-0"}
    assert set(clone.repro()) == both, "a fresh clone runs every cell, committed records or not"
    made = json.loads(clone.record("template").read_text())
    assert made["cost"]["student_steps"] == 4, "the committed record was replaced by one made here"
    assert clone.repro() == [], "a second repro runs none"

    clone.edit("params.yaml", lambda p: p["digits"]["quick"].update(seeds=[0, 1], recipes=["template", "teacher"]))
    assert set(clone.repro()) == {"wrn16_2-wrn16_1-teacher-1", "wrn16_2-wrn16_1-template-1"}

    template = clone.folder / "methods/template.py"
    template.write_text(template.read_text().replace('"""A whole method', '"""Words: a whole method'))
    (clone.folder / "dfkd/units.py").write_text((clone.folder / "dfkd/units.py").read_text() + "\nUNUSED = 1\n")
    assert clone.repro() == [], "neither words nor the harness make a cell run again"

    template.write_text(template.read_text().replace("steps: int = 10", "steps: int = 2"))
    assert set(clone.repro()) == {"wrn16_2-wrn16_1-template-0", "wrn16_2-wrn16_1-template-1"}
    table = (clone.folder / "results/tables/digits.md").read_text().splitlines()
    rows = [line.split("|") for line in table if "→" in line]
    # The wide table; notes and the table of synthetic images below it name the pair too.
    status = {row[4].strip(" *"): row[-2].strip() for row in rows if len(row) > 15}
    assert (status["template"], status["teacher"]) == ("ok", "ok")
    assert status["ssdkd"] == "stale", "a committed record of another protocol"


def test_the_lock_of_the_root_is_not_committed():
    """With it a fresh clone would call every committed record up to date and run nothing."""
    tracked = subprocess.run(["git", "-C", ROOT, "ls-files", "dvc.lock"], capture_output=True, text=True)
    assert tracked.stdout == ""
