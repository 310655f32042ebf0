"""Confinement by itself: what a confined interpreter can still open, by whatever means, and that torch works there."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from dfkd import paths
from dfkd.engine import confine
from dfkd.errors import UserError

needs_landlock = pytest.mark.skipif(not confine.version(), reason="no Landlock on this machine")


def confined(tmp_path: Path, code: str, deny: tuple[Path, ...] = ()) -> subprocess.CompletedProcess:
    """Run `code` in a fresh interpreter that may read the project's code and write `tmp_path`/work."""
    (tmp_path / "work").mkdir(exist_ok=True)
    (tmp_path / "data").mkdir(exist_ok=True)
    (tmp_path / "data" / "test_images.npy").write_bytes(b"real")
    program = f"""
import sys; sys.path.insert(0, {str(paths.ROOT)!r})
from pathlib import Path
from dfkd.engine.confine import bundled, confine
data, work = Path({str(tmp_path / "data")!r}), Path({str(tmp_path / "work")!r})
assert confine([Path({str(paths.ROOT / "dfkd")!r})], [work], [data, *bundled(), *map(Path, {[str(p) for p in deny]!r})])
{textwrap.dedent(code)}
"""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)


OPENINGS = {
    "open": "print(open(data / 'test_images.npy', 'rb').read())",
    "cat": "import subprocess; print(subprocess.check_output(['cat', str(data / 'test_images.npy')]))",
    "C": """
        import ctypes
        assert ctypes.CDLL(None).open(bytes(data / 'test_images.npy'), 0) < 0
        raise SystemExit(1)""",
    "aten": """
        import torch
        print(torch.ops.aten.from_file(str(data / 'test_images.npy'), False, 4, dtype=torch.uint8).tolist())""",
    "numpy": "import numpy; print(numpy.fromfile(data / 'test_images.npy', 'u1'))",
    "memmap": "import numpy; print(numpy.memmap(data / 'test_images.npy', 'u1', 'r'))",
    "a thread": """
        import concurrent.futures as f
        print(f.ThreadPoolExecutor().submit(lambda: open(data / 'test_images.npy').read()).result())""",
    "a link": "(work / 'x').symlink_to(data / 'test_images.npy'); print(open(work / 'x').read())",
    "a hard link": "(work / 'y').hardlink_to(data / 'test_images.npy'); print(open(work / 'y').read())",
    "a root in proc": "print(open(f'/proc/self/root{data}/test_images.npy').read())",
    "memory of the parent": "import os; print(open(f'/proc/{os.getppid()}/mem', 'rb').read(1))",
    "environment of the parent": "import os; print(open(f'/proc/{os.getppid()}/environ', 'rb').read(1))",
    "maps of the parent": "import os; print(open(f'/proc/{os.getppid()}/maps', 'rb').read(1))",
    "rights regained": """
        import os, subprocess
        print(subprocess.check_output(['cat', f'/proc/{os.getppid()}/environ']))""",
    "bundled digits": "import sklearn.datasets; print(sklearn.datasets.load_digits())",
    "bundled digits by lib64": """
        import glob
        print(open(glob.glob(sys.prefix + '/lib64/python*/site-packages/sklearn/datasets/data/digits.csv.gz')[0]))""",
    "a listing": "import os; print(os.listdir(data))",
    "writing elsewhere": "print((data / 'new').write_text('x'))",
    "shared memory": "from multiprocessing.shared_memory import SharedMemory as S; print(S(create=True, size=9))",
    "TCP": "import socket; socket.create_connection(('127.0.0.1', 9))",
    "UDP": "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
    "a signal to the parent": "import os; os.kill(os.getppid(), 0)",
}


@needs_landlock
@pytest.mark.parametrize("way", OPENINGS)
def test_no_way_out(tmp_path: Path, way: str):
    done = confined(tmp_path, OPENINGS[way])
    assert done.returncode == 1 and "real" not in done.stdout, done.stdout + done.stderr
    told = ("Permission denied", "Operation not permitted", "Errno 13", "Errno 1]", "cross-device")
    assert way == "C" or any(words in done.stderr for words in told), done.stderr


@needs_landlock
def test_torch_processes_and_the_work_folder_work(tmp_path: Path):
    done = confined(
        tmp_path,
        """
        import subprocess, tempfile
        import torch
        net = torch.nn.Conv2d(3, 4, 3)
        net(torch.rand(1, 3, 8, 8)).sum().backward()
        (work / "deep").mkdir()
        torch.save(net.state_dict(), work / "deep" / "net.pt")
        torch.load(work / "deep" / "net.pt")
        print(subprocess.check_output(["echo", "hello"], text=True))
        """,
    )
    assert "hello" in done.stdout, done.stderr


def test_of_a_private_folder_only_what_is_named_can_be_read(tmp_path: Path):
    """The project with a method beside it, or in it: other runs' students are nobody's."""
    project = tmp_path / "project"
    for name in ("code", "work/other/student", "work/own/method/mine"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(name)
    (tmp_path / "out").mkdir()
    program = f"""
import sys; sys.path.insert(0, {str(paths.ROOT)!r})
from pathlib import Path
from dfkd.engine.confine import confine
project = Path({str(project)!r})
assert confine([project, project / "work", project / "work/own/method"], [Path({str(tmp_path / "out")!r})], [],
               private=[project / "work"])
for name in ("code", "work/own/method/mine", "work/other/student"):
    print((project / name).read_text(), flush=True)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["code", "work/own/method/mine"] and "PermissionError" in done.stderr


def test_a_file_is_made_by_touch_and_copied_with_its_times(tmp_path: Path):
    """Times cannot be set there (they would be notes), and nobody who asks for it fails or is told what is not so."""
    done = confined(
        tmp_path,
        """
        import shutil
        (work / "there").touch()
        shutil.copy2(work / "there", work / "copy")
        (work / "copy").touch()
        print(sorted(path.name for path in work.iterdir()))
        """,
    )
    assert done.stdout == "['copy', 'there']\n", done.stderr


def test_a_link_lets_no_denied_tree_in_again(tmp_path: Path):
    (tmp_path / "lib" / "data").mkdir(parents=True)
    (tmp_path / "lib" / "code").mkdir()
    (tmp_path / "lib64").symlink_to("lib")
    allowed = dict(confine.around([tmp_path], [str(tmp_path / "lib" / "data")]))
    assert allowed == {str(tmp_path): 8, str(tmp_path / "lib"): 8, str(tmp_path / "lib" / "code"): 13}


@needs_landlock
def test_a_work_folder_around_the_data_is_refused(tmp_path: Path):
    assert "may not be written" in confined(tmp_path, "", deny=(tmp_path / "work" / "data",)).stderr


def test_without_landlock_nothing_happens(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(confine, "version", lambda: 0)
    assert confine.confine([], [], []) is False


@pytest.mark.parametrize(
    ("asked", "version", "found"),
    [
        ("", 7, "landlock"),
        ("landlock", 7, "landlock"),
        ("audit-hook", 7, "audit-hook"),
        ("", 0, "audit-hook"),
        ("audit-hook", 0, "audit-hook"),
    ],
)
def test_what_isolates_is_landlock_unless_something_else_is_asked_for(monkeypatch, asked, version, found):
    monkeypatch.setattr(confine, "version", lambda: version)
    monkeypatch.setenv("DFKD_ISOLATION", asked)
    assert confine.isolation() == found


@pytest.mark.parametrize(("asked", "version"), [("landlock", 0), ("none", 7), ("Landlock", 7)])
def test_an_isolation_that_there_is_not_is_refused(monkeypatch, asked, version):
    monkeypatch.setattr(confine, "version", lambda: version)
    monkeypatch.setenv("DFKD_ISOLATION", asked)
    with pytest.raises(UserError, match="DFKD_ISOLATION"):
        confine.isolation()
