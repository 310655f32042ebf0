"""The guard of machines without Landlock bites: methods that cheat by way of Python, and the same methods honest.

A cheat swallows whatever it is told, so that what is tested is the harder case: the run fails all the same, and
the method has got nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dfkd import records
from dfkd.engine.guard import DataFreeViolation, guard
from dfkd.tasks import store

PLACES = ("import", "setup", "synthesize", "draw", "distill", "after_step", "thread")
METHOD = """
import os, subprocess, sys, threading
from pathlib import Path
import numpy as np
import torch
from dfkd.engine.method import METHODS, Method
from dfkd.synthesis.buffer import Samples

ROOT, ASIDE, LOOT, ERRORS = Path({root!r}), Path({aside!r}), [], []

{ways}

def reach(ctx=None):
    for way in WAYS:
        here = os.getcwd()
        try:
            LOOT.append((way.__name__, way(ctx)))
        except {swallowed} as error:
            ERRORS.append((way.__name__, type(error).__name__))
        os.chdir(here)

if "import" in {places!r}:
    reach()

@METHODS.register_module("cheat", force=True)
class Cheat(Method):
    {declared}

    def at(self, place, ctx):
        if place in {places!r}:
            reach(ctx)

    def setup(self, ctx):
        self.at("setup", ctx)

    def synthesize(self, ctx):
        self.at("synthesize", ctx)
        if "thread" in {places!r}:
            thread = threading.Thread(target=reach)
            thread.start()
            thread.join()
        shape = (ctx.budget.synthesis_batch, ctx.spec.channels, ctx.spec.size, ctx.spec.size)
        return Samples(torch.rand(shape, generator=ctx.rng("noise")))

    def draw(self, ctx):
        self.at("draw", ctx)
        return super().draw(ctx)

    def distill(self, ctx, batch):
        self.at("distill", ctx)
        return super().distill(ctx, batch)

    def after_step(self, ctx, batch, outputs):
        self.at("after_step", ctx)
"""
IMAGES = "ROOT / 'cifar10' / 'train_images.npy'"
RAW = "ROOT / 'cifar10' / 'download' / 'cifar-10-batches-py' / 'data_batch_1'"
DIGITS = "from sklearn import datasets; import os; folder = os.path.dirname(datasets.__file__) + '/data'"
WAYS = {
    "our task, embedded data": "from dfkd.tasks import task; return task('digits').load('train', ROOT)",
    "our task, test split": "from dfkd.tasks import task; return task('digits').load('test', ROOT)",
    "our task, stored data": "from dfkd.tasks import task; return task('cifar10').load('train', ROOT)",
    "np.load": f"return np.load({IMAGES})",
    "np.load of labels": "return np.load(ROOT / 'cifar10' / 'test_labels.npy')",
    "np.load, memory map": f"return np.load({IMAGES}, mmap_mode='r')",
    "np.memmap": f"return np.memmap({IMAGES}, np.uint8, 'r')",
    "np.fromfile": f"return np.fromfile({IMAGES}, np.uint8)",
    "open": f"return open({IMAGES}, 'rb').read()",
    "bytes as a path": f"return open(os.fsencode({IMAGES}), 'rb').read()",
    "a path with dots": "return open(str(ROOT) + '/../data/cifar10/train_images.npy', 'rb').read()",
    "raw archive": f"return ({RAW}).read_bytes()",
    "current directory": "os.chdir(ROOT / 'cifar10'); return open('test_images.npy', 'rb').read()",
    "os.open": f"return os.open({IMAGES}, os.O_RDONLY)",
    "directory descriptor": (
        "there = os.open(ROOT.parent, os.O_RDONLY); "
        "return os.open('data/cifar10/train_images.npy', os.O_RDONLY, dir_fd=there)"
    ),
    "directory descriptor, raw archive": (
        "there = os.open(ROOT.parent, os.O_RDONLY); "
        "return os.open('data/cifar10/download/cifar-10-batches-py/data_batch_1', os.O_RDONLY, dir_fd=there)"
    ),
    "scikit-learn": "from sklearn.datasets import load_digits; return load_digits().data",
    "scikit-learn's file": f"{DIGITS}; return open(folder + '/digits.csv.gz', 'rb').read()",
    "scikit-learn's file, directory descriptor": (
        f"{DIGITS}; there = os.open(folder, os.O_RDONLY); return os.open('digits.csv.gz', os.O_RDONLY, dir_fd=there)"
    ),
    "symlink from before": "return (ASIDE / 'symbolic').read_bytes()",
    "hard link from before": "return (ASIDE / 'hard').read_bytes()",
    "symlink made now": f"os.symlink({IMAGES}, ASIDE / 'now'); return open(ASIDE / 'now', 'rb').read()",
    "hard link made now": f"os.link({IMAGES}, ASIDE / 'now'); return open(ASIDE / 'now', 'rb').read()",
    "renamed": "os.rename(ROOT, ASIDE / 'now'); return open(ASIDE / 'now/cifar10/test_images.npy').read()",
    "subprocess": f"return subprocess.run(['cat', {IMAGES}], stdout=subprocess.PIPE).stdout",
    "os.system": f"return os.system('cat %s > /dev/null' % ({IMAGES}))",
    "os.posix_spawn": "return os.posix_spawn(sys.executable, [sys.executable, '-c', ''], {})",
    "torch.load": f"return torch.load({IMAGES}, weights_only=True)",
}


@pytest.fixture(autouse=True)
def stay_here():
    here = Path.cwd()
    yield
    os.chdir(here)


@pytest.fixture
def cheat(tiny, tmp_path):
    """cheat(*takes, ...): the cell of a method that takes data in these ways at these places."""
    root, aside = tmp_path / "data", tmp_path / "aside"
    images = np.arange(4 * 32 * 32 * 3, dtype=np.uint32).astype(np.uint8).reshape(4, 32, 32, 3)
    split = (images, np.arange(4))
    store.write(root, "cifar10", {"train": split, "test": split}, [str(i) for i in range(10)])
    raw = root / "cifar10" / "download" / "cifar-10-batches-py" / "data_batch_1"
    raw.parent.mkdir(parents=True)
    raw.write_bytes(b"raw")
    aside.mkdir()
    os.symlink(root / "cifar10" / "train_images.npy", aside / "symbolic")
    os.link(root / "cifar10" / "train_images.npy", aside / "hard")
    count = iter(range(99))

    def make(*takes: str, places=("synthesize",), declared: str = "pass", swallowed: str = "BaseException"):
        path = tmp_path / f"cheat_{next(count)}.py"  # a file of its own: a method's file is imported once
        names = [f"way_{i}" for i in range(len(takes))]
        ways = [f"def {name}(ctx):\n    {take}\n" for name, take in zip(names, takes, strict=True)]
        source = METHOD.format(
            root=str(root),
            aside=str(aside),
            ways="\n".join([*ways, f"WAYS = ({', '.join([*names, ''])})"]),
            places=places,
            declared=declared,
            swallowed=swallowed,
        )
        path.write_text(source)
        return tiny("cheat", extra=str(path))

    return make


def module_of(cell):
    modules = [m for m in sys.modules.values() if getattr(m, "__file__", None) == str(cell.entry.path)]
    assert modules, "the method was never imported"
    return modules[0]


def loot(cell) -> list:
    """What the method of this cell got hold of: (way, what)."""
    return module_of(cell).LOOT


def test_real_data_cannot_be_opened_in_any_of_these_ways(cheat, execute):
    """All in one run, which takes a second. Each is refused, and does not fail for a reason of its own."""
    cell = cheat(*WAYS.values())
    with pytest.raises(DataFreeViolation, match="a data-free run may not"):
        execute(cell)
    names = {f"way_{i}": name for i, name in enumerate(WAYS)}
    assert [names[way] for way, _ in loot(cell)] == []
    errors = vars(module_of(cell))["ERRORS"]
    assert [(names[way], error) for way, error in errors if error != "DataFreeViolation"] == []
    assert {names[way] for way, _ in errors} == set(WAYS)


@pytest.mark.parametrize("way", ["our task, embedded data", "np.load", "subprocess", "torch.load"])
def test_one_swallowed_refusal_is_enough(way, cheat, execute):
    with pytest.raises(DataFreeViolation, match="a data-free run may not"):
        execute(cheat(WAYS[way]))


@pytest.mark.parametrize("place", PLACES)
def test_nor_at_any_moment(place, cheat, execute):
    cell = cheat(WAYS["np.load"], places=(place,))
    with pytest.raises(DataFreeViolation, match=r"may not open real data: .*train_images\.npy"):
        execute(cell)
    assert loot(cell) == []


@pytest.mark.parametrize("place", ["import", "setup", "synthesize", "distill"])
def test_a_refusal_that_is_not_swallowed_fails_the_run_too(place, cheat, execute):
    with pytest.raises(DataFreeViolation, match="may not open real data"):
        execute(cheat(WAYS["scikit-learn"], places=(place,), swallowed="ZeroDivisionError"))


def test_an_import_that_was_refused_is_refused_again(cheat, execute):
    """Python must not keep the half of a module that it got."""
    cell = cheat(WAYS["np.load"], places=("import",), swallowed="ZeroDivisionError")
    for _ in range(2):
        with pytest.raises(DataFreeViolation, match="may not open real data"):
            execute(cell)


def test_without_the_cheat_the_same_method_passes(cheat, execute):
    cell = cheat("return open(__file__).read()", places=PLACES)  # other files may be read
    assert execute(cell)["status"] == "ok"
    assert len(loot(cell)) == 1 + 1 + 2 + 4 + 4 + 4 + 2


@pytest.mark.slow
def test_real_data_cannot_be_opened_by_torchvision(cheat, execute):
    pytest.importorskip("torchvision.datasets")  # beforehand, so that nothing but the opening can be refused
    cell = cheat("from torchvision.datasets import CIFAR10; return CIFAR10(ROOT / 'cifar10' / 'download')")
    with pytest.raises(DataFreeViolation):
        execute(cell)
    assert loot(cell) == []


@pytest.mark.parametrize(
    "take", [WAYS["np.load"], "return images[0].shape"], ids=["reads a file", "keeps the test images"]
)
def test_a_hook_on_the_student_gets_nothing_during_evaluation(take, cheat, execute):
    """The evaluator evaluates a network of its own, on which no hook of a method hangs."""
    hang = (
        "ctx.student.network.register_forward_hook(lambda module, images, _: "
        "None if module.training else LOOT.append(steal(images)))"
    )
    cell = cheat(hang, places=("setup",), declared=f"global steal\n    def steal(images): {take}")
    assert execute(cell)["status"] == "ok"
    assert [what for what in loot(cell) if what[0] != "way_0"] == []


@pytest.mark.parametrize("place", ["import", "setup", "distill"])
def test_a_failed_run_has_a_record_that_says_so(place, cheat, execute):
    kept = []
    with pytest.raises(DataFreeViolation):
        cell = cheat(WAYS["np.load"], places=(place,), swallowed="ZeroDivisionError")
        execute(cell, keep=kept.append)
    (record,) = kept
    records.validate(record)
    assert record["status"] == "failed" and "train_images.npy" in record["error"]
    assert record["metrics"]["last"] is None


# --- the teacher

TAMPERING = {
    "weight": "ctx.teacher.network.conv1.weight.data[0, 0, 0, 0] += 1e-3",
    "statistics": "dict(ctx.teacher.named_buffers())['network.bn1.running_mean'][0] += 1e-6",
    "counter": "dict(ctx.teacher.named_buffers())['network.bn1.num_batches_tracked'] += 1",
    "normalisation": "ctx.teacher.mean.view(-1)[0] += 1e-3",
    "train mode": "ctx.teacher.network.train()",
    "new buffer": "ctx.teacher.network.register_buffer('notes', torch.zeros(1), persistent=False)",
}


@pytest.mark.parametrize("kind", TAMPERING)
def test_the_teacher_is_bit_identical_afterwards(kind, cheat, execute):
    with pytest.raises(DataFreeViolation, match="changed the teacher's weights or buffers"):
        execute(cheat(TAMPERING[kind]))


KINDS = ("forward", "forward_pre", "full_backward", "full_backward_pre")
HANG = {kind: f"handle = ctx.teacher.network.fc.register_{kind}_hook(lambda *_: None)" for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_no_hook_stays_on_the_teacher(kind, cheat, execute):
    with pytest.raises(DataFreeViolation, match=r"left a hook on the teacher's module 'network\.fc'"):
        execute(cheat(HANG[kind]))


def test_a_hook_that_is_taken_off_is_no_offence(cheat, execute):
    cell = cheat(*(f"{hang}; handle.remove()" for hang in HANG.values()))
    assert execute(cell)["status"] == "ok"
    assert len(loot(cell)) == 2 * len(KINDS)


def test_a_teacher_that_is_put_back_is_no_offence(cheat, execute):
    mean = "dict(ctx.teacher.named_buffers())['network.bn1.running_mean']"
    take = f"kept = {mean}.clone(); {mean} += 1; {mean}.copy_(kept)"
    cell = cheat(take)
    assert execute(cell)["status"] == "ok"
    assert len(loot(cell)) == 2


def test_the_teacher_cannot_be_put_into_train_mode(cheat, execute):
    cell = cheat("return ctx.teacher.train().training")
    assert execute(cell)["status"] == "ok"
    assert {what for _, what in loot(cell)} == {False}


# --- who is exempt, and when


@pytest.fixture
def at_setup(monkeypatch):
    """(guard sealed, images in ctx.real) at the setup of each bound."""
    from baselines import reference

    seen = []
    plain = reference._RealData.setup

    def setup(self, ctx):
        seen.append((guard.sealed, 0 if ctx.real is None else len(ctx.real[0])))
        plain(self, ctx)

    monkeypatch.setattr(reference._RealData, "setup", setup)
    return seen


@pytest.mark.parametrize("bound", ["student-real", "kd-real"])
def test_bounds_that_declare_it_get_real_data(bound, tiny, execute, at_setup):
    record = execute(tiny(bound))
    assert record["reference"] and at_setup == [(True, 1297)]


def test_kd_on_noise_does_not(tiny, execute, at_setup):
    record = execute(tiny("kd-noise"))
    assert record["reference"] and at_setup == [(True, 0)]


def test_a_method_that_is_no_bound_cannot_declare_itself_exempt(cheat, execute):
    cell = cheat("return (ctx.real, np.load(" + IMAGES + "))", declared="needs_data = True")
    with pytest.raises(DataFreeViolation):
        execute(cell)
    assert loot(cell) == []


@pytest.mark.parametrize("take", [None, WAYS["np.load"]], ids=["after an honest run", "after a cheat"])
def test_outside_a_run_nothing_is_refused(take, cheat, execute, tmp_path):
    from sklearn.datasets import load_digits

    try:
        execute(cheat(take or "pass"))
    except DataFreeViolation:
        assert take
    assert len(load_digits().data) == 1797
    path = tmp_path / "data" / "cifar10" / "train_images.npy"
    assert len(np.load(path)) == 4
    assert subprocess.run([sys.executable, "-c", ""]).returncode == 0
    assert not guard.sealed


def test_one_run_s_offence_is_not_the_next_one_s(cheat, tiny, execute):
    with pytest.raises(DataFreeViolation):
        execute(cheat(WAYS["np.load"]))
    assert execute(tiny("template"))["status"] == "ok"


def test_a_module_named_with_dots_is_found_without_importing_its_package(tmp_path, monkeypatch):
    from dfkd import catalog

    package = tmp_path / "outside"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('imported before the guard was sealed')")
    (package / "mine.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert catalog.locate("outside.mine") == package / "mine.py"
    assert "outside" not in sys.modules
