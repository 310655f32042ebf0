"""Methods that cheat, one a line: none gets data, a better score, more steps or less time into an `ok` record.

A cheat either ends its run with the message named beside it, or changes nothing: its record is that of the honest
method. What it could lay hands on it tells by ending the run, which does not happen.
"""

from __future__ import annotations

import functools
import socket
import time

import numpy as np
import pytest

from dfkd import paths
from dfkd.engine import confine, evaluator
from dfkd.engine.evaluator import Failed
from dfkd.engine.guard import DataFreeViolation
from dfkd.errors import UserError
from tests.conftest import outcome

pytestmark = pytest.mark.skipif(confine.isolation() != "landlock", reason="no Landlock on this machine")

METHOD = """
import ctypes, gc, io, mmap, os, socket, subprocess, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import torch
from dfkd.engine.method import METHODS, Method, Stage
from dfkd.synthesis.buffer import Samples

DATA, RECORDS = Path({data!r}), Path({records!r})
TEST = str(DATA / "other" / "test_images.npy")
HARNESS, RUN = os.getppid(), Path.cwd()
C = ctypes.CDLL(None)

def loot(content):
    raise SystemExit("LOOT " + repr(content)[:80])

def held(name):
    return str(DATA / "other" / name)

def found(name):
    return next(o for o in gc.get_objects() if type(o).__name__ == name)

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

    def state_dict(self):
        {state_dict}
        return {{}}
"""
HOOKS = ("steal", "schedule", "setup", "synthesize", "distill", "after_step", "report", "state_dict")

# Libraries that read a format of their own; `held` gives a file below the data.
LIBRARIES = {
    "torch.load": "loot(torch.load(held('a.pt'), weights_only=False))",
    "PyTorchFileReader": "loot(torch._C.PyTorchFileReader(held('a.pt')))",
    "OpenCV": "import cv2; m = cv2.imread(held('a.png')); m is not None and loot(m)",
    "OpenCV's FileStorage": "import cv2; f = cv2.FileStorage(held('a.yml'), 0); f.isOpened() and loot(f)",
    "PIL": "from PIL import Image; loot(Image.open(held('a.png')))",
    "safetensors": "from safetensors import safe_open; loot(safe_open(held('a.safetensors'), 'pt'))",
    "h5py": "import h5py; loot(h5py.File(held('a.h5')))",
    "pandas": "import pandas; loot(pandas.read_csv(held('a.csv')))",
    "scipy": "import scipy.io; loot(scipy.io.loadmat(held('a.mat')))",
}
# Ways to the bytes of the test images, to those of other files, and to memory. All run in one `setup`.
OPENINGS = LIBRARIES | {
    "open": "loot(open(TEST, 'rb').read(9))",
    "os.open": "loot(os.read(os.open(TEST, 0), 9))",
    "FileIO": "loot(io.FileIO(TEST).read(9))",
    "mmap": "loot(mmap.mmap(os.open(TEST, 0), 9, prot=1))",
    "numpy.load": "import numpy; loot(numpy.load(TEST))",
    "numpy.fromfile": "import numpy; loot(numpy.fromfile(TEST, 'u1'))",
    "numpy.memmap": "import numpy; loot(numpy.memmap(TEST, 'u1', 'r')[:9])",
    "torch.from_file": "loot(torch.from_file(TEST, size=9, dtype=torch.uint8))",
    "aten::from_file": "loot(torch.ops.aten.from_file(TEST, False, 9, dtype=torch.uint8))",
    "UntypedStorage": "loot(torch.UntypedStorage.from_file(TEST, False, 9))",
    "torchvision": "from torchvision.io import read_file; loot(read_file(TEST))",
    "scikit-learn": "from sklearn.datasets import load_digits; loot(load_digits())",
    "resources": "from importlib.resources import files; d = files('sklearn.datasets') / 'data'; "
    "loot((d / 'digits.csv.gz').read_bytes())",
    "cffi": "import cffi; f = cffi.FFI(); f.cdef('int open(char*, int);'); "
    "d = f.dlopen(None).open(TEST.encode(), 0); d >= 0 and loot(d)",
    "C open": "d = C.open(TEST.encode(), 0); d >= 0 and loot(d)",
    "C fopen": "C.fopen.restype = ctypes.c_void_p; p = C.fopen(TEST.encode(), b'rb'); p and loot(p)",
    "openat": "d = C.syscall(257, -100, TEST.encode(), 0); d >= 0 and loot(d)",
    "cat": "loot(subprocess.check_output(['cat', TEST]))",
    "os.system": "os.system('cp ' + TEST + ' $TMPDIR/x') == 0 and loot('copied')",
    "posix_spawn": "p = os.posix_spawn('/bin/cat', ['cat', TEST], {}); os.waitpid(p, 0)[1] == 0 and loot(p)",
    "fork": "p = os.fork(); p or os._exit(not os.system('cat ' + TEST)); os.waitpid(p, 0)[1] and loot(p)",
    "an interpreter": "loot(subprocess.check_output([sys.executable, '-c', 'open(%r, \"rb\").read()' % TEST]))",
    "a thread": "loot(ThreadPoolExecutor().submit(open, TEST, 'rb').result())",
    "a str that lies": "k = type('K', (str,), {'__str__': lambda s: '/x'}); loot(open(k(TEST)).read(9))",
    "a symbolic link": "os.symlink(TEST, 'l'); loot(open('l', 'rb').read(9))",
    "a hard link": "os.link(TEST, 'h'); loot(open('h', 'rb').read(9))",
    "renaming": "os.rename(TEST, 'r'); loot(open('r', 'rb').read(9))",
    "a descriptor": "d = os.open(DATA, os.O_PATH); loot(os.open('other/test_images.npy', 0, dir_fd=d))",
    "chdir": "os.chdir(DATA / 'other'); loot(open('test_images.npy', 'rb').read(9))",
    "a root in /proc": "loot(open('/proc/self/root' + TEST, 'rb').read(9))",
    "a mount": "C.mount(str(DATA).encode(), os.fsencode(os.getcwd()), None, 4096, None) == 0 and loot('mounted')",
    "a namespace": "C.unshare(0x10020000) == 0 and C.mount(b'/', b'/', None, 4096, None) == 0 and loot('unshared')",
    "our task": "from dfkd.tasks import task; loot(task('digits').load('test', DATA))",
    "records": "loot([p.read_text() for p in RECORDS.glob('**/*.json')][0])",
    "the run's configuration": "loot((RUN.parent / 'runner.json').read_text())",
    "the harness's environment": "loot(open('/proc/%d/environ' % HARNESS, 'rb').read(9))",
    "the harness's descriptors": "d = '/proc/%d/fd' % HARNESS; loot([os.readlink(f'{d}/{n}') for n in os.listdir(d)])",
    "the harness's memory": "loot(open('/proc/%d/mem' % HARNESS, 'rb').read(1))",
    "ptrace": "C.ptrace(16, HARNESS, 0, 0) == 0 and loot('attached')",
    "a signal": "os.kill(HARNESS, 0); loot('sent')",
    "the network": "loot(socket.create_connection(('127.0.0.1', 22)))",
    "process_vm_readv": "b = ctypes.create_string_buffer(9); v = (ctypes.c_void_p * 2)(ctypes.addressof(b), 9); "
    "C.process_vm_readv(HARNESS, v, 1, v, 1, 0) > 0 and loot(b.raw)",
    "a copied descriptor": "d = C.syscall(438, C.syscall(434, HARNESS, 0), 0, 0); d >= 0 and loot(d)",
    "a handle": "h, m = (ctypes.c_uint * 34)(128), ctypes.c_int(); "
    "C.name_to_handle_at(-100, TEST.encode(), h, ctypes.byref(m), 0); "
    "d = C.open_by_handle_at(os.open('.', 0), h, 0); d >= 0 and loot(d)",
    "io_uring": "d = C.syscall(425, 8, ctypes.create_string_buffer(240)); d >= 0 and loot(d)",
    "a daemon of the user's": "s = socket.socket(socket.AF_UNIX); s.connect(str(DATA.parent / 'door')); loot(s)",
    "a message to a daemon": "loot(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))",
    "shared memory": "from multiprocessing.shared_memory import SharedMemory; loot(SharedMemory(create=True, size=9))",
    "a session of its own": "p = subprocess.Popen(['sleep', '9'], start_new_session=True); loot(p)",
    "tensors in memory": "t = [o for o in gc.get_objects() if type(o) is torch.Tensor and o.dtype == torch.uint8]; "
    "any(o.ndim == 4 and len(o) >= 500 for o in t) and loot(len(t))",
    "evaluator in memory": "any(type(o).__name__ in ('Evaluator', 'Batches') for o in gc.get_objects()) and loot(1)",
    "limits of the harness": "loot(__import__('resource').prlimit(HARNESS, 4, (4242, 4242)))",
    "priority of the harness": "loot(os.setpriority(0, HARNESS, 15))",
    "priority of the user": "loot(os.setpriority(2, 0, 15))",
    "a pair of sockets": "a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM); loot(a)",
    "a child that wakes": "p = C.syscall(56, 18, 0, 0, 0, 0); p == 0 and os._exit(0); p > 0 and loot(p)",
    "a child by clone3": "a = (ctypes.c_ulong * 8)(0, 0, 0, 0, 18); p = C.syscall(435, a, 64); "
    "p == 0 and os._exit(0); p > 0 and loot(p)",
    "processors of the harness": "loot(os.sched_setaffinity(HARNESS, {0}))",
    "modules of the harness": "'dfkd.engine.evaluator' in sys.modules and loot(sys.modules['dfkd.engine.evaluator'])",
}
EXTRA_STEP = (
    "o = torch.optim.SGD(ctx.student.parameters(), 0.1); super().distill(ctx, batch)['kd'].backward(); o.step()"
)
# On score, budget, teacher and messages: where it is done, what, and what the run ends with; None: without effect.
TRICKS = {
    "new_student gives the teacher": ("setup", "ctx.new_student = lambda: ctx.teacher", None),
    "the student is the teacher": ("setup", "ctx.student = ctx.teacher", "no loss .* has a gradient"),
    "the student's forward": ("setup", "ctx.student.forward = ctx.teacher.forward", "no loss .* has a gradient"),
    "the student's class": (
        "after_step",
        "type(ctx.student).__call__ = lambda s, x: ctx.teacher.network(s.normalise(x))",
        "no loss .* has a gradient",
    ),
    "a hook on the student": (
        "setup",
        "ctx.student.register_forward_hook(lambda m, i, o: None if m.training else loot(i))",
        None,
    ),
    "a hook on all modules": (
        "setup",
        "torch.nn.modules.module.register_module_forward_hook(lambda m, i, o: loot(i) if len(i[0]) >= 500 else None)",
        None,
    ),
    "a function mode": (
        "setup",
        "see = lambda s, f, t, a=(), k=None: loot(a) if len(a) and getattr(a[0], 'shape', ())[:1] == (500,) "
        "else f(*a, **(k or {})); "
        "type('K', (torch.overrides.TorchFunctionMode,), {'__torch_function__': see})().__enter__()",
        None,
    ),
    "a metric that is always right": ("setup", "import dfkd.metrics as m; m.Metric.of = lambda *a: 1.0", None),
    "an evaluation that is always right": (
        "setup",
        "import dfkd.engine.evaluation as e; e.confusion_of = lambda *a: torch.eye(10)",
        None,
    ),
    "more budget": ("setup", "object.__setattr__(ctx.budget, 'steps', 999)", None),
    "more scored steps": ("schedule", "stages[0] = Stage('x', 3, 1, 2)", "schedules 6 scored"),
    "fewer scored steps": ("schedule", "stages[0] = Stage('x', 1, 1, 2)", "schedules 2 scored"),
    "unscored steps first": ("schedule", "stages.insert(0, Stage('x', 1, 1, 3, scored=False))", "student reset"),
    "stages that grow": (
        "setup",
        "it = found('Distillation'); it.stages = (*it.stages, Stage('x', 1, 1, 2))",
        "schedules 6 scored",
    ),
    "stages that grow while they run": (
        "after_step",
        "for it in map(found, ('Distillation', 'StageLoop')): it.stages = (*it.stages, Stage('x', 1, 1, 2))",
        None,
    ),
    "an extra step in distill": ("distill", EXTRA_STEP, r"a student step of \d+ images, \d+ are granted"),
    "an extra step in after_step": ("after_step", EXTRA_STEP, "beside the optimizer's steps"),
    "an extra step but once": (
        "after_step",
        f"ctx.student_steps == 2 and exec({EXTRA_STEP.replace('super()', 'super(Cheat, self)')!r})",
        "beside the optimizer's steps",
    ),
    "a student changed before its first step": (
        "distill",
        "ctx.student_steps == 0 and ctx.student.network.fc.bias.data.add_(1)",
        "beside the optimizer's steps",
    ),
    "a student changed after an evaluation": (
        "distill",
        "ctx.student_steps == 2 and ctx.student.network.fc.bias.data.add_(1)",
        "beside the optimizer's steps",
    ),
    "a hook on all optimizers": (
        "setup",
        "from torch.optim.optimizer import register_optimizer_step_post_hook as hook; hook(lambda *a: None)",
        "hooked into the optimizer's steps",
    ),
    "a hook on the optimizer": (
        "after_step",
        "found('SGD').register_step_pre_hook(lambda *a: None)",
        "hooked into the optimizer's steps",
    ),
    "more images in a step": (
        "distill",
        "ctx.student(batch.images[:1])",
        r"a student step of \d+ images, \d+ are granted",
    ),
    "images that do not count": (
        "synthesize",
        "shape = (ctx.budget.synthesis_batch, ctx.spec.channels, ctx.spec.size, ctx.spec.size)\n        "
        "return Samples(torch.rand(shape, generator=ctx.rng('noise')), made=0)",
        None,
    ),
    "passes of the teacher that do not count": (
        "distill",
        "with torch.no_grad(): told = ctx.teacher.network(ctx.teacher.normalise(batch.images))\n        "
        "return {'kd': __import__('dfkd.synthesis.losses').synthesis.losses.kl("
        "told, ctx.student(batch.images), self.temperature).mean()}",
        None,
    ),
    "a new student that is none": (
        "schedule",
        "stages[:] = [Stage('x', 1, 1, 1, scored=False), Stage('y', 2, 0, 2, reset_student=True)]; "
        "plain = torch.nn.Module.to; torch.nn.Module.to = lambda m, *a, **k: "
        "(type(m).__name__ == 'Student' and next(m.parameters()).data.add_(1), plain(m, *a, **k))[1]",
        "changed the student before its first step",
    ),
    "a student trained in setup": (
        "setup",
        "torch.nn.init.normal_(next(ctx.student.parameters()))",
        "changed the student before its first step",
    ),
    "a step inside the backward pass": (
        "setup",
        "next(ctx.student.parameters()).register_post_accumulate_grad_hook(lambda p: (p.data.add_(1), None)[1])",
        "beside the optimizer's steps",
    ),
    "weights by their data": ("after_step", "ctx.student.network.fc.bias.data.add_(1)", "beside the optimizer's steps"),
    "a trained student in synthesis": (
        "synthesize",
        "with torch.no_grad(): ctx.student.network.fc.bias.add_(1)",
        "beside the optimizer's steps",
    ),
    "statistics in synthesis": (
        "synthesize",
        "ctx.student.train()(torch.rand(8, 3, 16, 16)); ctx.student.eval()",
        "beside the optimizer's steps",
    ),
    "a student changed at the end": (
        "report",
        "found('Distillation').student.network.fc.bias.data.add_(1)",
        "changed after",
    ),
    "the counter of steps stays": (
        "after_step",
        "ctx._progress.student_steps = 1",
        "sent for evaluation at step 2, due is 4",
    ),
    "the counter runs ahead": ("after_step", "ctx._progress.student_steps += 1", "changed after its last evaluation"),
    "a clock that claims more": ("report", "found('Clock').seconds['distillation'] += 100", "seconds add up"),
    "a clock that claims less": ("report", "found('Clock').seconds['setup'] -= 100", "seconds add up"),
    "the teacher's weights": ("setup", "next(ctx.teacher.parameters()).data.add_(1)", "changed the teacher's weights"),
    "the teacher's statistics": (
        "synthesize",
        "next(ctx.teacher.buffers()).add_(1)",
        "changed the teacher's weights or buffers",
    ),
    "the teacher's network": ("setup", "ctx.teacher.network = ctx.new_student().network", "changed the teacher's"),
    "the teacher's file": (
        "setup",
        "all = (o for o in gc.get_objects() if type(o) is dict); "
        "open(next(o['weights'] for o in all if {'weights', 'arch'} <= o.keys()), 'ab')",
        "Permission denied: .*: data and records are closed to a method",
    ),
    "a hook on the teacher": ("setup", "ctx.teacher.register_forward_hook(lambda *a: None)", "left a hook"),
    "os._exit": ("after_step", "os._exit(0)", "left with status 0 before its last message"),
    "sys.exit": ("after_step", "sys.exit(0)", "the method raised SystemExit"),
    "killed": ("after_step", "os.kill(os.getpid(), 9)", "was ended by SIGKILL before its last message"),
    "a forged end": (
        "setup",
        "found('Channel').send('done', {'status': 'ok'})",
        "message 'done' makes no sense: 'error'",
    ),
    "an end that is none": ("setup", "found('Channel').send('done', {'status': 'best'})", "'best' is no status"),
    "an early start": ("setup", "found('Channel').send('started')", "sent 'started', which is no message"),
    "a message that is none": (
        "setup",
        "c = found('Channel')._outgoing; c.write(b'x' * 99); c.flush()",
        "bytes is too long",
    ),
    "a score in a message": (
        "setup",
        "found('Channel').send('score', {'value': 1})",
        "sent 'score', which is no message",
    ),
    "an early student": ("setup", "found('Channel').send('student', {'step': 4})", "at step 4, due is None"),
    "another network": (
        "setup",
        "found('Channel').send('ready', {'stages': [[True, False, 4]], 'prior': 'none'}); "
        "found('Channel').send('student', {'step': 2}, {'fc': torch.ones(1)})",
        "'student' makes no sense",
    ),
    "the teacher as the student": (
        "setup",
        "found('Channel').send('ready', {'stages': [[True, False, 4]], 'prior': 'none'}); "
        "found('Channel').send('student', {'step': 2})",
        "'student' makes no sense",
    ),
    "seconds that are none": ("setup", "found('Channel').send('saving', {'save': float('nan')})", "NaN is no number"),
    "images that are none": (
        "setup",
        "found('Channel').send('ready', {'stages': [[True, False, 4]], 'prior': 'none'}); "
        "found('Channel').send('result', {}, {'images': torch.ones(2), 'newest': torch.ones(2)})",
        "'result' makes no sense",
    ),
    "an error without end": ("setup", "raise RuntimeError('a line\\n' * 10**6)", r"^a line\\na line"),
    "names that it does not declare": ("setup", "ctx.class_names and loot(ctx.class_names)", None),
    "what it prints": ("setup", "os.write(1, b'x' * 999); print('x')", None),
    "a report of words": ("report", "return {'share': 'all'}", "finite numbers"),
    "a state that is no state": ("setup", "Path('state.pt').write_bytes(b'x')", None),
}
SLOW_SAVING = """with found('Clock').phase('bookkeeping'):
            c = found('Channel'); c.send('saving', {'state': 'x'}); c.receive()
            open('state.pt', 'wb').truncate(10**10); time.sleep(4); c.send('saved'); c.receive()
            os.remove('state.pt')"""
CLOCK = "c = found('Clock'); time.sleep(2); "
# Each hides four seconds, more than honest evaluations take on a machine that has much to do, and pays them.
HIDING = {
    "a clock that is put forward": ("synthesize", CLOCK + "c._mark = time.perf_counter()"),
    "called evaluation": ("synthesize", "with found('Clock').phase('evaluation'): time.sleep(2)"),
    "called bookkeeping": ("synthesize", "with found('Clock').phase('bookkeeping'): time.sleep(2)"),
    "moved to evaluation": ("synthesize", CLOCK + "c.seconds['evaluation'] += 2; c.seconds['synthesis'] -= 2"),
    "billed to the prior": (
        "synthesize",
        CLOCK + "c.phase('prior').__enter__(); c.seconds['prior'] += 2; c.seconds['synthesis'] -= 2",
    ),
    "a clock that stands": ("synthesize", "c = found('Clock'); t = c._now(); time.sleep(2); c._now = lambda: t"),
    "called saving, of a state that is huge": ("synthesize", SLOW_SAVING),
    "in a state": ("state_dict", "time.sleep(4)"),
    "in the report": ("report", "time.sleep(4)"),
}


def hold(folder):
    """Real data in the format of each library."""
    import cv2
    import h5py
    import scipy.io
    import torch
    from safetensors.numpy import save_file

    images = np.ones((4, 8, 8, 3), np.uint8)
    np.save(folder / "test_images.npy", images)
    torch.save(images.tolist(), folder / "a.pt")
    cv2.imwrite(str(folder / "a.png"), images[0])
    storage = cv2.FileStorage(str(folder / "a.yml"), 1)
    storage.write("images", images[0])
    storage.release()
    save_file({"images": images}, folder / "a.safetensors")
    with h5py.File(folder / "a.h5", "w") as file:
        file["images"] = images
    (folder / "a.csv").write_text("x,y\n1,2\n")
    scipy.io.savemat(folder / "a.mat", {"images": images})


@pytest.fixture
def cell(tiny, tmp_path):
    """cell(hook=code): that of a method which does it there. Beside it lies a note, beside the data a door."""
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "note").touch()
    (tmp_path / "data" / "other").mkdir(parents=True)
    hold(tmp_path / "data" / "other")
    count = iter(range(9))

    def make(**done: str):
        path = tmp_path / "method" / f"cheat_{next(count)}.py"
        hooks = {name: done.get(name, "pass") for name in HOOKS}
        path.write_text(METHOD.format(data=str(tmp_path / "data"), records=str(paths.records()), **hooks))
        return tiny("cheat", extra=str(path))

    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(tmp_path / "door"))
        door.listen()
        yield make


@pytest.fixture
def cheat(cell, execute):
    """cheat(hook=code): the record of a method that does it there."""
    return lambda **done: execute(cell(**done), apart=True)


@pytest.fixture(scope="module")
def known() -> dict:
    return {}


@pytest.fixture
def honest(cheat, known) -> dict:
    """What the method comes to that does nothing; it runs once."""
    if not known:
        known.update(same(cheat()))
    return known


def same(record: dict) -> dict:
    return {key: outcome(record)[key] for key in ("status", "metrics", "cost", "diagnostics")}


def swallowed(ways: dict[str, str]) -> str:
    tries = (f"try: {code}\n    except Exception as error: print({name!r}, error)" for name, code in ways.items())
    return "\n    ".join(tries)


@pytest.mark.parametrize("way", LIBRARIES)
def test_each_library_reads_its_file_where_it_may(way: str, tmp_path):
    class Looted(Exception):
        pass

    def loot(content):
        raise Looted

    hold(tmp_path)
    with pytest.raises(Looted):
        exec(f"import torch; {LIBRARIES[way]}", {"loot": loot, "held": lambda name: str(tmp_path / name)})


def test_no_opening_gets_anything(cheat, honest):
    """All in one run, each refusal swallowed: nothing is got, and the record is the honest one."""
    assert same(cheat(steal=swallowed(OPENINGS), setup="steal()")) == honest


@pytest.mark.slow
@pytest.mark.parametrize("name", TRICKS)
def test_no_trick_pays(cheat, name: str, request):
    hook, code, told = TRICKS[name]
    if told is None:
        assert same(cheat(**{hook: code})) == request.getfixturevalue("honest")
    else:
        with pytest.raises((Failed, UserError, DataFreeViolation), match=told) as caught:
            cheat(**{hook: code})
        assert "\n" not in str(caught.value) and len(str(caught.value)) <= 4000


def test_a_teacher_whose_file_changes_meanwhile(cheat, monkeypatch: pytest.MonkeyPatch):
    digests = iter(("before", "after"))
    monkeypatch.setattr(evaluator, "file_digest", lambda path: next(digests))
    with pytest.raises(DataFreeViolation, match="the teacher's file has changed"):
        cheat()


@pytest.mark.slow
@pytest.mark.parametrize("way", HIDING)
def test_hidden_seconds_are_paid(cheat, way: str):
    hook, code = HIDING[way]
    record = cheat(**{hook: code})
    assert record["status"] == "ok" and record["time"]["scored"] > 3.9
    assert record["time"]["evaluation"] + record["time"]["prior"] < 3.9


@pytest.mark.slow
def test_nothing_works_while_the_harness_evaluates(cheat, monkeypatch: pytest.MonkeyPatch):
    """Those seconds are free. A thread and a process would use them; neither gets a turn."""
    plain = evaluator.confusion_of
    monkeypatch.setattr(evaluator, "confusion_of", lambda *arguments: (time.sleep(1), plain(*arguments))[1])
    tick = "import time\nwhile True: print(time.perf_counter(), flush=True); time.sleep(0.01)"
    wake = """import signal; signal.signal(signal.SIGCONT, lambda *a: None)
        event, timer = (ctypes.c_int * 16)(0, 0, int(signal.SIGCONT)), ctypes.c_int()
        C.timer_create(1, event, ctypes.byref(timer))
        C.timer_settime(ctypes.c_void_p(timer.value), 0, (ctypes.c_long * 4)(0, 10**6, 0, 10**6), None)"""
    begin = f"""{wake}
        Cheat.ticks, Cheat.child = [time.perf_counter()], subprocess.Popen(
            [sys.executable, '-c', {tick!r}], stdout=subprocess.PIPE, text=True)
        Cheat.child.stdout.readline()
        def tick():
            while True: Cheat.ticks.append(time.perf_counter()); time.sleep(0.01)
        threading.Thread(target=tick, daemon=True).start()"""
    end = """Cheat.child.kill()
        for ticks in (Cheat.ticks, [float(line) for line in Cheat.child.stdout if line.strip()]):
            gaps = [after - before > 0.9 for before, after in zip(ticks, ticks[1:])]
            sum(gaps) >= 2 or loot(gaps)"""
    assert cheat(setup=begin, report=end)["status"] == "ok"


# What a run leaves that kills itself: an hour's work after its last save would be free, were it found again.
LEFT = {
    "a file": ("Path('kept').write_text('x')", None),
    "a folder": ("os.makedirs('home/deep/kept')", None),
    "in the log": ("open('bank.bin', 'ab').write(b'kept')", None),
    "in another log": ("Path('bank.bin').write_bytes(b'kept' * 9**6)", "does not hold the images of the saved state"),
    "another state": ("torch.save({}, 'state.pt')", "is no state that journal.json knows"),
}
FIND = "AGAIN and (any(Path.cwd().rglob('kept')) or b'kept' in Path('bank.bin').read_bytes()) and loot('kept')"
AGAIN = "AGAIN = (DATA.parent / 'method' / 'again').exists(); "


@pytest.mark.slow
@pytest.mark.parametrize("what", LEFT)
def test_a_run_that_goes_on_finds_its_state_and_nothing_else(what: str, cell, execute, tmp_path, request):
    deed, told = LEFT[what]
    die = f"{AGAIN}\n        if not AGAIN and ctx.student_steps == 3: {deed}; os.kill(os.getpid(), 9)"
    run = functools.partial(execute, cell(setup=AGAIN + FIND, after_step=die), apart=True, save_every=0)
    with pytest.raises(Failed, match="SIGKILL"):
        run()
    (tmp_path / "method" / "again").touch()
    if told is None:
        assert same(run(resume=True)) == request.getfixturevalue("honest")
    else:
        with pytest.raises(UserError, match=told):
            run(resume=True)


@pytest.mark.slow
def test_a_cache_is_of_one_run(cheat):
    """Whatever a run leaves, wherever it may write, is gone before the next; and it can leave no note elsewhere."""
    places = "[Path.home(), Path(os.environ['XDG_CACHE_HOME']), Path(os.environ['TMPDIR']), Path.cwd()]"
    code = f"""for p in {places}: loot(p) if (p / 'left').exists() else (p / 'left').write_text('x')
        note = DATA.parent / 'method' / 'note'
        (os.listxattr(note) or note.stat().st_mtime == 7 or note.stat().st_mode & 0o111) and loot(note.stat())
        C.ioctl(os.open(note, 0), 0x40086602, ctypes.byref(ctypes.c_long(0x40))) == 0 and loot('attributes')
        os.setxattr(note, 'user.left', b'x'); os.utime(note, (7, 7)); os.chmod(note, 0o777)"""
    assert cheat(setup=code)["status"] == cheat(setup=code)["status"] == "ok"


PRIOR = """
import torch
from dfkd.engine.method import METHODS, Method
from dfkd.synthesis.buffer import Samples

@METHODS.register_module("knowing", force=True)
class Knowing(Method):
    prior = "diffusion"

    def setup(self, ctx):
        assert ctx.prior is not None
        self.prior = {said!r}

    def synthesize(self, ctx):
        shape = (ctx.budget.synthesis_batch, ctx.spec.channels, ctx.spec.size, ctx.spec.size)
        return Samples(torch.rand(shape, generator=ctx.rng("noise")))
"""


@pytest.mark.parametrize("said", ["diffusion", "none"])
def test_a_prior_that_was_given_is_billed_and_named_whatever_is_said_of_it_later(tiny, execute, tmp_path, said):
    path = tmp_path / "knowing.py"
    path.write_text(PRIOR.format(said=said))
    record = execute(tiny("knowing", extra=str(path)), apart=True)
    assert (record["status"], record["prior"]["kind"]) == ("ok", "diffusion")
    assert record["time"]["prior"] == record["prior"]["seconds"] > 0
