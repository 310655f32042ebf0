"""`bench.py doctor` says what would make a first run fail, and remarks on what would not."""

from __future__ import annotations

import collections
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

import bench
from dfkd import checkout, doctor, paths
from dfkd.errors import UserError
from dfkd.paths import ROOT
from dfkd.tasks import TASKS


@pytest.fixture
def lines(tmp_path, monkeypatch):
    """lines(): what the doctor says of an empty folder, by line; packages, data sets and priors apart."""
    for name in ("DFKD_WEIGHTS", "DFKD_DATA"):
        monkeypatch.delenv(name, raising=False)
    for name in ("PACKAGES", "TASKS", "POOLS", "HUB"):
        monkeypatch.setattr(doctor, name, {})
    monkeypatch.setattr(doctor, "recipes", dict)

    def call(root=tmp_path / "data"):
        return {line: good for good, line in doctor.examine(root, tmp_path / "results/teachers", tmp_path)}

    return call


def said(lines, part):
    (found,) = [(good, line) for line, good in lines.items() if part in line]
    return found


def weights(value):
    return lambda patch: patch.setenv("DFKD_WEIGHTS", value)


def home(value):
    return lambda patch: patch.setenv("HOME", value)


def elsewhere(patch):
    patch.setattr(checkout, "paths", SimpleNamespace(ROOT=ROOT / "dfkd"))


def stdout(encoding):
    return lambda patch: patch.setattr(sys, "stdout", SimpleNamespace(encoding=encoding))


def disk(free):
    usage = collections.namedtuple("usage", "free")(free * 2**30)
    return lambda patch: patch.setattr(shutil, "disk_usage", lambda path: usage)


@pytest.mark.parametrize(
    ("change", "good", "line"),
    [
        (lambda patch: patch.setattr(sys, "version", "3.10.4 (main)"), False, "Python 3.10.4, >=3.11,<3.15 is needed"),
        (lambda patch: patch.setattr(sys, "version", "3.15.0 (main)"), False, "Python 3.15.0, >=3.11,<3.15 is needed"),
        (lambda patch: patch.setattr(sys, "version", "3.14.1 (main)"), True, "Python 3.14.1"),
        (lambda patch: patch.setenv("PATH", "/nowhere"), None, "git: records will name no commit (git cannot be run"),
        (elsewhere, None, "git: records will name no commit"),
        (weights("/nowhere"), False, "there is no weights folder /nowhere (--weights, DFKD_WEIGHTS)"),
        (weights(str(ROOT)), True, f"weights folder {ROOT} (DFKD_WEIGHTS)"),
        (weights(str(ROOT / "bench.py")), False, "is no folder"),
        (home("/dev/null"), None, "home folder /dev/null cannot be written"),
        (disk(1), False, "1 GiB of disk are free"),
        (disk(9), True, "9 GiB of disk are free"),
        (stdout("ascii"), None, "locale: ascii has no"),
        (stdout("no-such"), None, "locale: no-such has no"),
    ],
)
def test_what_is_wrong_with_the_surroundings(lines, change, good, line, monkeypatch):
    with monkeypatch.context() as patch:
        change(patch)
        found = lines()
    assert said(found, line)[0] is good


def test_folders_that_cannot_be_written(lines, tmp_path):
    assert said(lines(), "results can be written")[0] is True
    (tmp_path / "results").write_text("")
    assert said(lines(), "results cannot be written: Not a directory")[0] is False


def test_what_has_the_name_of_a_teacher_and_is_no_file(lines, tmp_path, monkeypatch):
    """Named like any other fault, and the rest is still looked at."""
    monkeypatch.setattr(doctor, "TASKS", {"digits": TASKS["digits"]})
    (tmp_path / "results/teachers/digits_resnet8.safetensors").mkdir(parents=True)
    assert said(lines(), "teacher digits_resnet8.safetensors: ")[0] is False
    assert said(lines(), "digits_resnet8.safetensors is a folder")


def test_a_data_root_that_a_run_could_not_live_with(lines, tmp_path):
    assert said(lines(), "data root")[0] is None
    (tmp_path / "data").mkdir()
    assert said(lines(), "data root") == (True, f"data root {tmp_path / 'data'}")
    for root, held in ((ROOT, "the project"), (ROOT.parent, "the project"), ("/", "Python")):
        good, line = said(lines(type(ROOT)(root)), "data root")
        assert good is False and f"{held} (" in line and "no data-free run could open that" in line
    (tmp_path / "file").write_text("")
    assert said(lines(tmp_path / "file"), "data root folder")[0] is False
    link = tmp_path / "link"
    link.symlink_to(ROOT)
    assert said(lines(link), "data root")[0] is False


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_git_answers_for_this_project_only(tmp_path, monkeypatch):
    """A download inside a checkout of something else must not take that one's commit, nor a run inside its hook."""
    from dfkd.engine import machine

    def init(folder):
        own = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        subprocess.run(["git", "init", "-q", folder], check=True)
        subprocess.run(["git", "-C", folder, *own, "commit", "-qm", str(folder), "--allow-empty"], check=True)

    init(tmp_path)
    monkeypatch.setattr(paths, "ROOT", tmp_path / "download")
    (tmp_path / "download").mkdir()
    with pytest.raises(UserError, match="git says: not a git repository") as caught:
        checkout.git("rev-parse", "HEAD")
    assert "\n" not in str(caught.value) and machine.commit() is None
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    own = machine.commit()
    init(tmp_path / "other")
    for name, value in (("DIR", tmp_path / "other" / ".git"), ("INDEX_FILE", "/nowhere"), ("WORK_TREE", "/")):
        monkeypatch.setenv(f"GIT_{name}", str(value))
    assert machine.commit() == own


def test_without_git_the_committed_values_are_left_out(monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    assert bench.main(["leaderboard", "--committed", "--data=digits"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("committed values are left out, for they come from git (git cannot be run: ")
    assert {line.split()[0] for line in out.splitlines()[3:]} == {"digits"}
    assert err == ""
