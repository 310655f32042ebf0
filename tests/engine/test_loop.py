"""The data-free loop: what a step may not do, when it measures, and what a stage is charged to."""

from __future__ import annotations

import functools
import json
import multiprocessing
import sys
from collections import Counter
from contextlib import contextmanager

import pytest
import torch
from mmengine.logging import MessageHub
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from dfkd import records
from dfkd.engine.compat import QuietRunner
from dfkd.engine.distillation import Distillation
from dfkd.engine.evaluator import Failed
from dfkd.engine.hooks import fingerprint
from dfkd.engine.loop import StageLoop
from dfkd.errors import UserError
from tests.conftest import outcome, student_digest


def seen(cell) -> list:
    module = next(m for m in sys.modules.values() if getattr(m, "__file__", None) == str(cell.entry.path))
    return module.Probe.SEEN


# --- no step waits for the host, opens a file or starts a process

# Each reads a value of a tensor into Python, or makes a tensor whose size depends on values.
READS = {
    *("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "unique_dim"),
    *("unique_consecutive", "repeat_interleave.Tensor", "bincount", "multinomial", "allclose"),
}
METHODS_OF_TENSOR = {
    *("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__"),
    *("__array__", "__contains__", "equal", "allclose"),
}
EVENTS = ("open", "subprocess.Popen", "os.fork", "os.exec", "os.posix_spawn", "os.system")
counted: Counter | None = None


def audit(event: str, arguments: tuple) -> None:
    if counted is not None and event in EVENTS:
        counted[event] += 1


@functools.cache
def install_audit():
    sys.addaudithook(audit)  # it cannot be taken off again


class CountReads(TorchDispatchMode):
    """Sees the kernels that are called, by whatever Python or C++ path, the backward pass included."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func).removeprefix("aten.")
        read = name in READS or name.partition(".")[0] in READS
        by_mask = name.startswith("index") and any(
            torch.is_tensor(i) and i.dtype == torch.bool for a in args if isinstance(a, list | tuple) for i in a
        )
        if counted is not None and (read or by_mask):
            counted[name] += 1
        return func(*args, **(kwargs or {}))


class CountCalls(TorchFunctionMode):
    """Sees what on a CPU needs no kernel: `.tolist()`, `.numpy()`, `.cpu()`, `.to("cpu")`."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        to_host = name == "to" and any(str(a) == "cpu" for a in (*args[1:], *(kwargs or {}).values()))
        if counted is not None and (name in METHODS_OF_TENSOR or to_host):
            counted[f"Tensor.{name}"] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def counting(counter: Counter | None):
    global counted
    outer, counted = counted, counter
    try:
        yield
    finally:
        counted = outer


@pytest.fixture
def inside(monkeypatch):
    """What the distillation loop did, hooks and schedules included, but for evaluations and the phase's end."""
    install_audit()
    counter, distil = Counter(), StageLoop._distill

    def counted_distil(self, stage):
        with CountReads(), CountCalls(), counting(counter):
            distil(self, stage)
        counter["steps"] += stage.student_steps

    monkeypatch.setattr(StageLoop, "_distill", counted_distil)

    def aside(plain):
        def uncounted(self):
            with counting(None):
                plain(self)

        return uncounted

    for name in ("_measure", "check_finite"):
        monkeypatch.setattr(StageLoop, name, aside(getattr(StageLoop, name)))
    return counter


METHODS = ["fast", "ssdkd", "deepinv", "template", "kd-real", "kd-noise", "student-real"]


@pytest.mark.parametrize("method", METHODS)
def test_no_step_waits_opens_or_forks(method, tiny, execute, inside):
    execute(tiny(method))
    assert inside == Counter(steps=4)
    assert multiprocessing.active_children() == []


OFFENCES = {
    "item": ("batch.images.sum().item()", "_local_scalar_dense.default"),
    "float": ("float(batch.images.sum())", "_local_scalar_dense.default"),
    "if": ("bool(batch.images.sum() > 0)", "Tensor.__bool__"),
    "tolist": ("batch.images.sum().tolist()", "Tensor.tolist"),
    "numpy": ("batch.images.numpy()", "Tensor.numpy"),
    "to the host": ("batch.images.to('cpu')", "Tensor.to"),
    "mask": ("batch.images[batch.images > 0.5]", "index.Tensor"),
    "nonzero": ("batch.images.nonzero()", "nonzero.default"),
    "equal": ("torch.equal(batch.images, batch.images)", "equal.default"),
    "file": ("open(__file__).close()", "open"),
    "PNG file": ("from PIL import Image; Image.new('L', (1, 1)).save('/dev/null', 'PNG')", "open"),
}


@pytest.mark.parametrize("offence", OFFENCES)
def test_and_the_counter_sees_a_step_that_does(offence, probe, execute, inside):
    code, name = OFFENCES[offence]
    body = f"    def distill(self, ctx, batch):\n        {code}\n        return super().distill(ctx, batch)"
    execute(probe(body))
    assert inside[name] >= 4, inside


def test_no_loader_is_built(tiny, execute, monkeypatch):
    built = []
    monkeypatch.setattr(torch.utils.data.DataLoader, "__init__", lambda *a, **k: built.append(a))
    execute(tiny("kd-real"))
    assert built == []


# --- mmengine gets no tensors


def test_hooks_are_handed_no_log_values(tiny, execute, monkeypatch):
    calls, plain, step = [], QuietRunner.call_hook, Distillation.train_step
    monkeypatch.setattr(
        QuietRunner, "call_hook", lambda self, name, **kw: (calls.append((name, kw)), plain(self, name, **kw))
    )
    returned = []
    monkeypatch.setattr(
        Distillation, "train_step", lambda self, *a, **k: returned.append(step(self, *a, **k)) or returned[-1]
    )
    execute(tiny("ssdkd"))
    steps = [kw for name, kw in calls if name == "after_train_iter"]
    assert [kw["outputs"] for kw in steps] == [None] * 4 == returned
    values = [value for _, kw in calls for value in kw.values()]
    assert values and not any(torch.is_tensor(value) for value in values)


def test_nothing_of_ours_stays_in_the_message_hub(tiny, execute):
    before = dict(MessageHub._instance_dict)
    execute(tiny("ssdkd"))
    for name, hub in MessageHub._instance_dict.items():
        if name not in before:
            assert not hub.log_scalars, name
            assert not hub.runtime_info.keys() & {"iter", "epoch", "buffer", "clock", "state"}, name
            assert not any(torch.is_tensor(value) for value in hub.runtime_info.values()), name


# --- a loss that is not finite


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_loss_that_is_not_finite_ends_in_a_valid_record(value, probe, execute):
    cell = probe(
        f"""
    def distill(self, ctx, batch):
        factor = float("{value}") if ctx.student_steps == 2 else 1.0
        return {{name: loss * factor for name, loss in super().distill(ctx, batch).items()}}"""
    )
    record = execute(cell)
    records.validate(json.loads(json.dumps(record)))
    assert record["status"] == "diverged" and "not finite" in record["error"]
    assert record["metrics"]["last"] is None
    assert [point["step"] for point in record["metrics"]["curve"]] == [2]


def test_it_is_seen_at_the_end_of_a_phase_that_has_no_evaluation(probe, execute):
    body = """
    def distill(self, ctx, batch):
        self.SEEN.append(ctx.student_steps)
        return {"kd": ctx.student(batch.images).sum() * float("nan")}"""
    cell = probe(body, "evaluations=1")
    assert execute(cell)["status"] == "diverged"
    assert seen(cell) == [0, 1]  # the second round, with the evaluation, is not begun


def test_a_diverged_run_stays_diverged_through_a_resume(probe, execute):
    """The flag is part of the state: a resume between the bad step and its detection does not wash it off."""
    body = """
    def distill(self, ctx, batch):
        factor = float("nan") if ctx.student_steps == 2 else 1.0
        # The student itself stays sound, so that the flag alone can tell.
        with torch.no_grad():
            loss = ctx.student(batch.images).sum() * factor
        return {"kd": sum(p.sum() for p in ctx.student.parameters()) * 0.0, "watched": loss}"""
    cell = probe(body)
    record, stops = execute(cell, time_limit=1e-9), 0
    while record["status"] == "partial" and stops < 20:
        record, stops = execute(cell, time_limit=1e-9, resume=True), stops + 1
    assert record["status"] == "diverged" and stops >= 4


# --- when it measures, and in which mode


@pytest.mark.parametrize(
    ("steps", "rounds", "evaluations", "moments"),
    [
        (4, 2, 1, [4]),
        (4, 2, 4, [1, 2, 3, 4]),
        (6, 2, 4, [2, 3, 4, 6]),
        (7, 1, 3, [2, 5, 7]),
        (2, 1, 9, [1, 2]),  # more than there are steps
    ],
)
def test_evaluations_are_spread_evenly_and_end_with_the_run(steps, rounds, evaluations, moments, probe, execute):
    changes = [f"training.steps={steps}", f"rounds={rounds}", f"evaluations={evaluations}"]
    record = execute(probe("", *changes))
    curve = record["metrics"]["curve"]
    assert [point["step"] for point in curve] == moments
    assert record["metrics"]["last"] == curve[-1]["value"]
    assert record["metrics"]["oracle_best"] == max(point["value"] for point in curve)


def test_the_student_trains_in_distillation_only_and_the_teacher_never(probe, execute):
    cell = probe(
        """
    def note(self, ctx, place):
        modes = {m.training for m in ctx.student.modules()}
        grads = {p.requires_grad for p in ctx.student.parameters()}
        assert not any(m.training for m in ctx.teacher.modules())
        assert not any(p.requires_grad for p in ctx.teacher.parameters())
        self.SEEN.append((place, modes, grads))

    def synthesize(self, ctx):
        self.note(ctx, "synthesize")
        ctx.teacher.train()  # heedless; nothing comes of it
        return super().synthesize(ctx)

    def distill(self, ctx, batch):
        self.note(ctx, "distill")  # also right after an evaluation
        return super().distill(ctx, batch)""",
        "evaluations=4",
    )
    execute(cell)
    distil, synthesise = ("distill", {True}, {True}), ("synthesize", {False}, {False})
    assert seen(cell) == [synthesise, distil, distil, synthesise, distil, distil]


# --- stages, and what they are charged to

SCRAP = """
    scrap: int = 3
    nap: float = 0.0

    def schedule(self, budget):
        first = Stage("scrap", 1, student_steps=self.scrap, scored=False)
        last = Stage("final", budget.rounds, 1, budget.steps_per_round, reset_student=True)
        return [first, last] if self.scrap else [last]

    def draw(self, ctx):
        if ctx.synthesis_step:  # the final stage; the student to be thrown away has a stream of its own
            return super().draw(ctx)
        with ctx.making_images(ctx.budget.batch):
            time.sleep(self.nap)
            return Batch(rand(ctx, ctx.budget.batch, "scrap"))

    def distill(self, ctx, batch):
        self.SEEN.append((ctx.student_steps, ctx._aside.func.__self__._stack[-1]))
        return super().distill(ctx, batch)
"""


def test_steps_of_a_discarded_student_are_synthesis(probe, execute):
    cell = probe(SCRAP, "nap=0.2", "scrap=3")
    record = execute(cell)
    assert record["cost"]["student_steps"] == 4
    assert [point["step"] for point in record["metrics"]["curve"]] == [2, 4]
    assert record["time"]["synthesis"] > 0.6 > record["time"]["distillation"]
    charged = [account for _, account in seen(cell)]
    assert charged == ["synthesis"] * 3 + ["distillation"] * 4
    assert [steps for steps, _ in seen(cell)] == [0, 0, 0, 0, 1, 2, 3]


def test_the_next_student_starts_afresh(probe, execute, tmp_path):
    """Weights, momentum and learning rate: what was thrown away leaves no trace in the final student."""
    without, with_scrap = execute(probe(SCRAP, "scrap=0")), execute(probe(SCRAP, "scrap=3"))
    assert student_digest(with_scrap, tmp_path) == student_digest(without, tmp_path)
    assert outcome(with_scrap)["metrics"]["curve"] == outcome(without)["metrics"]["curve"]


def test_a_discarded_student_is_trained_at_all(probe, execute, monkeypatch):
    """The control of the test above."""
    before, reset = [], Distillation.reset_student
    monkeypatch.setattr(
        Distillation, "reset_student", lambda self: (before.append(fingerprint(self.student)), reset(self))
    )
    execute(probe(SCRAP, "scrap=0"))
    execute(probe(SCRAP, "scrap=3"))
    assert len(set(before)) == len(before) == 2


def test_steps_of_no_discarded_student_cannot_go_unscored(probe, execute):
    with pytest.raises(Failed, match="scored student steps follow unscored ones without a student reset"):
        execute(probe(SCRAP.replace(", reset_student=True", "")))


def test_resumed_at_every_point_of_every_stage_it_is_the_same(probe, execute, tmp_path):
    cell = probe(SCRAP)
    straight = execute(cell)
    expected = student_digest(straight, tmp_path)
    record, stops = execute(cell, time_limit=1e-9), 0
    while record["status"] == "partial" and stops < 30:
        record, stops = execute(cell, time_limit=1e-9, resume=True), stops + 1
    # Three scrap steps, two calls, four steps, and the ends of three rounds.
    assert stops == record["time"]["resumes"] == 12
    assert outcome(record) == outcome(straight)
    assert student_digest(record, tmp_path) == expected


def test_a_method_that_draws_from_its_generator_pays_for_synthesis(probe, execute):
    cell = probe(
        """
    def schedule(self, budget):
        return [Stage("distil", budget.rounds, student_steps=budget.steps_per_round)]

    def draw(self, ctx):
        with ctx.making_images(ctx.budget.batch):
            time.sleep(0.2)
            return Batch(rand(ctx, ctx.budget.batch))"""
    )
    record = execute(cell)
    assert record["cost"]["images_synthesised"] == 4 * 8
    assert record["time"]["synthesis"] >= 0.8 > record["time"]["distillation"] > 0


# --- seeds by axis


def test_all_methods_start_from_one_student_at_equal_seed(tiny, execute, monkeypatch):
    students, make = {}, Distillation.__init__

    def built(self, run, *rest, **given):
        make(self, run, *rest, **given)
        students[run["method"], run["seed"]] = fingerprint(self.student)

    monkeypatch.setattr(Distillation, "__init__", built)
    for method in ("deepinv", "template", "kd-noise"):
        for seed in (0, 1):
            execute(tiny(method, seed=seed))
    zero, one = ({v for (_, s), v in students.items() if s == seed} for seed in (0, 1))
    assert len(zero) == len(one) == 1 and zero != one


# --- the learning rate


@pytest.mark.parametrize(("per", "rates"), [("step", [0.4, 0.341, 0.2, 0.059]), ("round", [0.4, 0.4, 0.2, 0.2])])
def test_a_schedule_goes_by_steps_or_by_rounds_and_ends_with_the_run(per, rates, probe, execute, monkeypatch):
    seen, step = [], Distillation.train_step

    def noted(self, data, optim_wrapper):
        seen.append(round(optim_wrapper.get_lr()["lr"][0], 3))
        return step(self, data, optim_wrapper)

    monkeypatch.setattr(Distillation, "train_step", noted)
    changes = [f"training.schedule.per={per}", "training.optimizer.lr=0.4"]
    assert execute(probe("", *changes))["status"] == "ok"
    assert seen == rates


@pytest.mark.parametrize(("steps", "fits"), [("budget.steps", True), ("budget.steps + 1", False)])
def test_no_method_takes_more_student_steps_than_granted(steps, fits, probe, execute):
    cell = probe(f"""
    def schedule(self, budget):
        return [Stage("all", 1, synthesis_steps=1, student_steps={steps})]""")
    if fits:
        assert execute(cell)["cost"]["student_steps"] == cell.config["training"]["steps"]
    else:
        with pytest.raises(UserError, match="5 scored student steps, the protocol grants 4"):
            execute(cell)


def test_no_student_batch_is_larger_than_granted(probe, execute):
    cell = probe("""
    def draw(self, ctx):
        return Batch(rand(ctx, ctx.budget.batch + 1))""")
    with pytest.raises(Failed, match="a student batch of 9 images, 8 are granted"):
        execute(cell)


def test_images_that_are_not_finite_end_the_run_as_diverged(probe, execute):
    """As bytes in the buffer they would look like any image."""
    cell = probe("""
    def synthesize(self, ctx):
        return Samples(rand(ctx, ctx.budget.synthesis_batch) * float("nan"))""")
    assert execute(cell)["status"] == "diverged"
