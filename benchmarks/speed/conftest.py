"""Networks of random weights and a method's world around them: nothing here needs data."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch

from dfkd.engine.compat import PrecisionOptimWrapper
from dfkd.engine.context import Context, Teacher
from dfkd.engine.method import Budget, Method
from dfkd.engine.seeds import Streams
from dfkd.networks import initialise
from dfkd.networks.normalised import Normalised
from dfkd.synthesis.augment import Augment
from dfkd.synthesis.buffer import ReplayBuffer, Samples
from dfkd.tasks import task

SPEC = task("cifar10").spec
BATCH, SYNTHESIS_BATCH, SLOTS = 128, 64, 5000


def network(arch: str, device: torch.device, kind: type = Normalised):
    """As `run` builds them: normalising, channels last."""
    return kind(initialise(arch, SPEC, 0), SPEC).to(device, memory_format=torch.channels_last)


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)


def make_world(device: torch.device, teacher: str, student: str, batch: int) -> Context:
    """A context whose buffer is full: images of 32x32."""
    ctx = Context(
        teacher=network(teacher, device, Teacher),
        student=network(student, device),
        new_student=lambda: network(student, device),
        spec=SPEC,
        budget=Budget(steps=1, batch=batch, rounds=1, synthesis_batch=SYNTHESIS_BATCH),
        device=device,
        rng=Streams(device, "speed"),
        buffer=ReplayBuffer(SLOTS, (SPEC.channels, SPEC.size, SPEC.size), device),
        augmentation=Augment(4, flip=True),
        autocast=nullcontext,
    )
    shape = (SLOTS, *ctx.buffer.shape)
    images = torch.rand(shape, generator=ctx.rng("images"), device=device)
    priority = torch.rand(SLOTS, generator=ctx.rng("priority"), device=device)
    ctx.buffer.add(Samples(images, ctx.random_labels(SLOTS), {"priority": priority}))
    return ctx


@pytest.fixture
def world(device):
    return make_world(device, "resnet20", "resnet8", BATCH)


def kd_step(world: Context, precision: str) -> Callable[[], None]:
    """A student step as the loop makes it."""
    student, method = world.student.train(), Method()
    sgd = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    wrapper = PrecisionOptimWrapper(optimizer=sgd, precision=precision)

    def step() -> None:
        batch = method.draw(world)
        with wrapper.optim_context(student):
            losses = method.distill(world, batch)
        wrapper.update_params(sum(losses.values()))

    return step


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """What it takes, the device waited for."""
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


@pytest.fixture
def tell_ratio(benchmark, device, capsys):
    """tell_ratio(what, ratios, bound, of, **more): keep the median ratio of pairs with its quartiles, and say it."""

    def tell(what: str, ratios: list[float], bound: float, of: str, **more: float) -> None:
        low, ratio, high = statistics.quantiles(ratios)
        info = {"ratio": ratio, "lower_quartile": low, "upper_quartile": high, **more}
        info = {key: round(value, 4) for key, value in info.items()}
        benchmark.extra_info.update(info, pairs=len(ratios), bound=bound, threads=torch.get_num_threads())
        if benchmark.enabled:
            verdict, quartiles = "PASS" if ratio >= bound else "BELOW", f"quartiles {low:.3f} to {high:.3f}"
            rest = ", ".join(f"{key} {value:.4g}" for key, value in more.items())
            with capsys.disabled():
                print(f"\n{what} on {device}: {verdict}: {ratio:.3f} (bound {bound}; {quartiles} of {of}); {rest}")

    return tell


@pytest.fixture
def measure(benchmark, device):
    """measure(work, rounds): time `work` after two calls of warm-up, the device waited for each time."""

    def measured(work, rounds: int) -> None:
        def timed() -> None:
            work()
            if device.type == "cuda":
                torch.cuda.synchronize()

        benchmark.extra_info["threads"] = torch.get_num_threads()
        benchmark.pedantic(timed, rounds=rounds, warmup_rounds=2)

    return measured
