"""Files written whole or not at all, by any number of processes."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from dfkd import files
from dfkd.errors import UserError

ROOT = Path(__file__).parents[2]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "file"
    with files.replacing(path) as first:
        first.write(b"fir")
        files.replace_file(path, "second")
        first.write(b"st")
    assert path.read_bytes() == b"first"
    assert names(tmp_path) == ["file"]


def test_many_processes_write_one_file(tmp_path):
    code = (
        "import sys; from pathlib import Path; from dfkd.files import replace_file\n"
        "for _ in range(50): replace_file(Path(sys.argv[1]), sys.argv[2] * 100_000)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "file")]
    writers = [subprocess.Popen([*command, letter], cwd=ROOT) for letter in "abcd"]
    assert [writer.wait() for writer in writers] == [0, 0, 0, 0]
    text = (tmp_path / "file").read_text()
    assert len(text) == 100_000 and len(set(text)) == 1
    assert names(tmp_path) == ["file"]


def test_a_file_has_the_permissions_that_a_plain_one_has(tmp_path):
    before = os.umask(0o027)
    try:
        files.replace_file(tmp_path / "file", "")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_what_a_killed_process_left_is_removed_and_what_another_writes_is_not(tmp_path):
    left, being_written, foreign = (tmp_path / name for name in ("f.1.partial", "f.2.partial", "g.1.partial"))
    for path in (left, being_written, foreign):
        path.write_bytes(b"half")
    for path in (left, foreign):
        os.utime(path, (0, 0))
    files.replace_file(tmp_path / "f", "whole")
    assert names(tmp_path) == ["f", "f.2.partial", "g.1.partial"]


def test_file_and_folder_are_on_the_disk_before_it_goes_on(tmp_path, monkeypatch):
    synced, sync = [], os.fsync
    monkeypatch.setattr(files.os, "fsync", lambda d: (synced.append(stat.S_ISDIR(os.fstat(d).st_mode)), sync(d)))
    files.replace_file(tmp_path / "file", "")
    assert synced == [False, True]


def test_a_folder_in_its_place_is_one_line_and_stays(tmp_path):
    (tmp_path / "file" / "below").mkdir(parents=True)
    with pytest.raises(UserError, match=r"^cannot write .*file: "):
        files.replace_file(tmp_path / "file", "")
    assert names(tmp_path) == ["file"]


def test_what_is_unchanged_is_looked_at_once_and_afterwards_anew(tmp_path):
    path = tmp_path / "file"
    read = files.asked_once(lambda place, sign="": place.read_text() + sign)

    @files.unchanged()
    def twice():
        found = read(path)
        path.write_text("new")
        with files.unchanged():  # one within the other changes nothing
            assert read(path) == found
        assert read(path, sign="!") == "new!"
        return read(path)

    path.write_text("old")
    assert twice() == "old"
    assert read(path) == "new"
    with pytest.raises(FileNotFoundError), files.unchanged():
        read(tmp_path / "none")
    path.write_text("newest")
    assert read(path) == "newest"
