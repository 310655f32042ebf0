"""Methods that cheat, one a line: none gets data, a better score, more steps or less time into an `ok` record.

A cheat either ends its run with the message named beside it, or changes nothing: its record is that of the honest
method. What it could lay hands on it writes to `LOOT`, which stays empty.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dfkd import paths
from dfkd.engine import confine
from dfkd.engine.guard import DataFreeViolation
from dfkd.engine.harness import Failed
from dfkd.errors import UserError
from tests.conftest import outcome

pytestmark = pytest.mark.skipif(not confine.version(), reason="no Landlock on this machine")

METHOD = """
import os, sys, time, gc, ctypes, subprocess, threading
from pathlib import Path
import torch
from dfkd.engine.method import METHODS, Method, Stage
from dfkd.synthesis.buffer import Samples

DATA = Path({data!r}); TEST = str(DATA / "other" / "test_images.npy")

def loot(content):
    Path(os.environ["TMPDIR"]).joinpath("loot").write_text(repr(content))
    raise SystemExit("LOOT " + repr(content)[:80])

def steal():
    {steal}

@METHODS.register_module("cheat", force=True)
class Cheat(Method):
    def schedule(self, budget):
        stages = super().schedule(budget)
        {schedule}
        return stages

    def setup(self, ctx):
        {setup}

    def synthesize(self, ctx):
        {synthesize}
        shape = (ctx.budget.synthesis_batch, ctx.spec.channels, ctx.spec.size, ctx.spec.size)
        return Samples(torch.rand(shape, generator=ctx.rng("noise")))

    def distill(self, ctx, batch):
        {distill}
        return super().distill(ctx, batch)

    def after_step(self, ctx, batch, outputs):
        {after_step}

    def report(self):
        {report}
        return {{}}
"""
HOOKS = ("steal", "schedule", "setup", "synthesize", "distill", "after_step", "report")

# Ways to the bytes of the test images. Each runs in `setup` and swallows its refusal: there is nothing to steal.
OPENINGS = {
    "open": "loot(open(TEST, 'rb').read(9))",
    "os.open": "loot(os.read(os.open(TEST, 0), 9))",
    "numpy.load": "import numpy; loot(numpy.load(TEST))",
    "numpy.fromfile": "import numpy; loot(numpy.fromfile(TEST, 'u1'))",
    "numpy.memmap": "import numpy; loot(numpy.memmap(TEST, 'u1', 'r')[:9])",
    "torch.from_file": "loot(torch.from_file(TEST, size=9, dtype=torch.uint8))",
    "aten::from_file": "loot(torch.ops.aten.from_file(TEST, False, 9, dtype=torch.uint8))",
    "UntypedStorage": "loot(torch.UntypedStorage.from_file(TEST, False, 9))",
    "torch.load": "loot(torch.load(TEST, weights_only=False))",
    "PyTorchFileReader": "loot(torch._C.PyTorchFileReader(TEST))",
    "mmap": "import mmap; loot(mmap.mmap(os.open(TEST, 0), 9, prot=1))",
    "C open": "fd = ctypes.CDLL(None).open(TEST.encode(), 0); fd >= 0 and loot(fd)",
    "C fopen": "f = ctypes.CDLL(None).fopen; f.restype = ctypes.c_void_p; p = f(TEST.encode(), b'rb'); p and loot(p)",
    "C syscall": "fd = ctypes.CDLL(None).syscall(257, -100, TEST.encode(), 0); fd >= 0 and loot(fd)",
    "cat": "loot(subprocess.check_output(['cat', TEST]))",
    "os.system": "os.system('cp ' + TEST + ' $TMPDIR/x') == 0 and loot('copied')",
    "posix_spawn": "p = os.posix_spawn('/bin/cat', ['cat', TEST], {}); os.waitpid(p, 0)[1] == 0 and loot(p)",
    "fork": "p = os.fork(); p or os._exit(not os.system('cat ' + TEST)); os.waitpid(p, 0)[1] and loot(p)",
    "a new interpreter": "loot(subprocess.check_output([sys.executable, '-c', 'open(%r, \"rb\").read()' % TEST]))",
    "PIL": "from PIL import Image; loot(Image.open(TEST))",
    "safetensors": "from safetensors import safe_open; loot(safe_open(TEST, 'pt'))",
    "h5py": "import h5py; loot(h5py.File(TEST))",
    "tifffile-like": "import io; loot(io.FileIO(TEST).read(9))",
    "pandas": "import pandas; loot(pandas.read_fwf(TEST))",
    "scipy": "import scipy.io; loot(scipy.io.loadmat(TEST))",
    "scikit-learn": "from sklearn.datasets import load_digits; loot(load_digits())",
    "importlib.resources": "import importlib.resources as r; loot(r.files('sklearn.datasets.data').joinpath('digits.csv.gz').read_bytes())",
    "a str that lies": "C = type('C', (str,), {'__fspath__': lambda s: TEST, '__str__': lambda s: '/x'}); loot(open(C(TEST)).read(9))",
    "a symbolic link": "os.symlink(TEST, 'l'); loot(open('l', 'rb').read(9))",
    "a hard link": "os.link(TEST, 'h'); loot(open('h', 'rb').read(9))",
    "renaming": "os.rename(TEST, 'r'); loot(open('r', 'rb').read(9))",
    "a folder's descriptor": "d = os.open(DATA, os.O_PATH); loot(os.open('other/test_images.npy', 0, dir_fd=d))",
    "chdir": "os.chdir(DATA / 'other'); loot(open('test_images.npy', 'rb').read(9))",
    "/proc/self/root": "loot(open('/proc/self/root' + TEST, 'rb').read(9))",
    "the harness's files": "loot(os.listdir('/proc/%d/fd' % os.getppid()) and open('/proc/%d/environ' % os.getppid()).read())",
    "the harness's memory": "loot(open('/proc/%d/mem' % os.getppid(), 'rb').read(1))",
    "ptrace": "ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == 0 and loot('attached')",
    "process_vm_readv": "ctypes.CDLL(None).process_vm_readv(os.getppid(), 0, 0, 0, 0, 0) > 0 and loot('read')",
    "a thread": "import concurrent.futures as f; loot(f.ThreadPoolExecutor().submit(open, TEST, 'rb').result())",
    "the record of another run": "loot(list(Path(%r).glob('**/*.json'))[0].read_text())"
    % str(paths.RESULTS / "records"),
    "a network": "import socket; loot(socket.create_connection(('127.0.0.1', 22)))",
    "the garbage collector": "t = [o for o in gc.get_objects() if type(o) is torch.Tensor and o.dtype == torch.uint8 and o.ndim == 4 and o.any()]; t and loot(t)",
    "frames": "f = sys._getframe()\n    while f:\n        [loot(k) for k in f.f_locals if k in ('test', 'real', 'judge') and f.f_locals[k] is not None]\n        f = f.f_back",
}

# On score, budget, time and teacher: where it is done, what, and what the run ends with; None: without effect.
TRICKS = {
    "new_student gives the teacher": ("setup", "ctx.new_student = lambda: ctx.teacher", None),
    "the student is the teacher": ("setup", "ctx.student = ctx.teacher", "makes no sense"),
    "the student's forward": ("setup", "ctx.student.forward = ctx.teacher.forward", "grad"),
    "the student's class": ("after_step", "type(ctx.student).__call__ = lambda s, x: ctx.teacher.network(x)", ".*"),
    "a global hook sees images": (
        "setup",
        "torch.nn.modules.module.register_module_forward_hook(lambda m, i, o: None if torch.is_grad_enabled() or 1 else loot(i))",
        None,
    ),
    "a metric that is always right": ("setup", "import dfkd.metrics as m; m.Metric.of = lambda *a: 1.0", None),
    "argmax is patched": (
        "after_step",
        "import dfkd.engine.evaluation as e; e.confusion_of = lambda *a: torch.eye(10)",
        None,
    ),
    "more budget": ("setup", "object.__setattr__(ctx.budget, 'steps', 999)", None),
    "more scored steps": ("schedule", "stages[0] = Stage('x', 3, 1, 2)", "schedules 6 scored"),
    "fewer scored steps": ("schedule", "stages[0] = Stage('x', 1, 1, 2)", "schedules 2 scored"),
    "unscored steps first": (
        "schedule",
        "stages.insert(0, Stage('x', 1, 1, 3, scored=False))",
        "without a student reset",
    ),
    "stages are a list": ("setup", "f = sys._getframe()\n        while f.f_back: f = f.f_back", None),
    "the counter of steps": ("after_step", "ctx._progress.student_steps = 1", "due is|steps were taken"),
    "the counter runs ahead": ("after_step", "ctx._progress.student_steps += 1", "due is|steps were taken"),
    "the clock is slowed": (
        "synthesize",
        "time.sleep(1); c = [o for o in gc.get_objects() if type(o).__name__ == 'Clock'][0]; c._mark = time.perf_counter()",
        "seconds add up",
    ),
    "time is called evaluation": (
        "synthesize",
        "c = [o for o in gc.get_objects() if type(o).__name__ == 'Clock'][0]\n        with c.phase('evaluation'): time.sleep(1)",
        "are called evaluation",
    ),
    "time is called bookkeeping": (
        "synthesize",
        "c = [o for o in gc.get_objects() if type(o).__name__ == 'Clock'][0]\n        with c.phase('bookkeeping'): time.sleep(2)",
        "are called bookkeeping",
    ),
    "perf_counter is patched": (
        "setup",
        "t = time.perf_counter()\n        c = [o for o in gc.get_objects() if type(o).__name__ == 'Clock'][0]; c._now = lambda: t\n        time.sleep(2)",
        "seconds add up",
    ),
    "the teacher changes": ("setup", "next(ctx.teacher.parameters()).data.add_(1)", "changed the teacher"),
    "a hook on the teacher": ("setup", "ctx.teacher.register_forward_hook(lambda *a: None)", "left a hook"),
    "os._exit": ("after_step", "os._exit(0)", "left with status 0"),
    "sys.exit": ("after_step", "sys.exit(0)", "SystemExit"),
    "killed": ("after_step", "os.kill(os.getpid(), 9)", "SIGKILL"),
    "a forged message": (
        "setup",
        "c = [o for o in gc.get_objects() if type(o).__name__ == 'Channel'][0]; c.send('done', {'status': 'ok'})",
        ".*",
    ),
    "a message that is none": (
        "setup",
        "c = [o for o in gc.get_objects() if type(o).__name__ == 'Channel'][0]; c._outgoing.write(b'x' * 99); c._outgoing.flush()",
        "too long|read",
    ),
    "a score in a message": (
        "setup",
        "c = [o for o in gc.get_objects() if type(o).__name__ == 'Channel'][0]; c.send('score', {'value': 1})",
        "is no message",
    ),
    "an early student": (
        "setup",
        "c = [o for o in gc.get_objects() if type(o).__name__ == 'Channel'][0]; c.send('student', {'step': 4, 'seconds': 0})",
        "due is None",
    ),
    "what it prints": ("setup", "os.write(1, b'x' * 999); print('x')", None),
    "a report of words": ("report", "return {'share': 'all'}", "finite numbers"),
}


@pytest.fixture
def cheat(tiny, execute, tmp_path):
    """cheat(hook=code): the record of a method that does it there."""
    (tmp_path / "method").mkdir()
    (tmp_path / "data" / "other").mkdir(parents=True)
    np.save(tmp_path / "data" / "other" / "test_images.npy", np.ones((4, 8, 8, 3), np.uint8))
    count = iter(range(9))

    def run(**done: str) -> dict:
        path = tmp_path / "method" / f"cheat_{next(count)}.py"
        hooks = {name: done.get(name, "pass") for name in HOOKS}
        path.write_text(METHOD.format(data=str(tmp_path / "data"), **hooks))
        return execute(tiny("cheat", extra=str(path)))

    return run


def swallowed(name: str) -> str:
    return f"try:\n            steal()\n        except Exception as e:\n            print('refused', {name!r}, e)"


@pytest.fixture(scope="module")
def honest() -> dict:
    """The outcome of the honest method, once it is there."""
    return {}


def same(record: dict) -> dict:
    return {key: outcome(record)[key] for key in ("status", "metrics", "cost", "diagnostics")}


@pytest.mark.slow
def test_no_opening_gets_the_data(cheat, honest):
    """All in one run, each refusal swallowed: nothing is got, and the record is the honest one."""
    ways = "\n    ".join(
        f"try:\n        {code.replace(chr(10), chr(10) + '    ')}\n    except Exception as e:\n        print('refused', {name!r}, e)"
        for name, code in OPENINGS.items()
    )
    assert same(cheat(steal=ways, setup="steal()")) == same(cheat())


@pytest.mark.slow
@pytest.mark.parametrize("name", TRICKS)
def test_no_trick_pays(cheat, honest, name: str):
    hook, code, told = TRICKS[name]
    if told is None:
        if not honest:
            honest.update(same(cheat()))
        assert same(cheat(**{hook: code})) == honest
    else:
        with pytest.raises((Failed, UserError, DataFreeViolation), match=told):
            cheat(**{hook: code})
