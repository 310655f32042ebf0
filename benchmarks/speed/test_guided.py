"""Guided sampling of DiffDFKD against the same U-Net and teacher in a bare loop, in turns in one process."""

from __future__ import annotations

import statistics

import pytest
import torch
import torch.nn.functional as F
from conftest import SPEC, seconds
from torch import Tensor, nn

from dfkd.engine.context import Context
from dfkd.priors.pixel import SCHEDULE, PixelPrior
from methods.diffdfkd import DiffDFKD

BOUND = 0.9
# (trajectories of a batch, denoising steps, pairs): some two seconds a batch on two cores.
SIZES = {"cpu": (16, 10, 12), "cuda": (64, 50, 8)}
FLOOR, CAP, ALPHA, BETA = 0.005, 0.05, 0.1, 1.0


@pytest.fixture
def prior(device) -> PixelPrior:
    """The `cpu` tables' U-Net with random weights."""
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(
        32,
        block_out_channels=(32, 64, 128),
        down_block_types=("DownBlock2D",) * 3,
        up_block_types=("UpBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=8,
    )
    return PixelPrior(unet.to(device), {"name": "random"}, SCHEDULE)


@pytest.mark.benchmark(group="overhead")
def test_guided_sampling(world, prior, device, benchmark, tell_ratio):
    count, steps, pairs = SIZES[device.type] if benchmark.enabled else (2, 2, 2)
    world.prior, world._progress.synthesis_step = prior, 1
    world.budget = type(world.budget)(1, 128, 1, count)
    method = DiffDFKD(calls=1, steps=steps, adv=0.0, cutmix=0, mixed=True)
    method.setup(world)
    loop = BareLoop(world, steps)

    labels = torch.arange(count, device=device) % SPEC.classes

    def measure() -> list[tuple[float, float]]:
        both = (lambda: method.synthesize(world), lambda: loop.sample(labels))
        for work in both:
            work()
        return [tuple(seconds(work, device) for work in both) for _ in range(pairs)]

    took = benchmark.pedantic(measure, rounds=1)
    speed = count / statistics.median(ours for ours, _ in took)
    of = f"{pairs} pairs of {count} trajectories, {steps} steps"
    ratios = [bare / ours for ours, bare in took]
    tell_ratio("guided sampling: method / bare loop", ratios, BOUND, of, images_per_second=speed)
    assert len(took) == pairs


class BareLoop:
    """The same trajectories in plain torch: hooks that stay, no clock, no random streams, no bookkeeping."""

    def __init__(self, ctx: Context, steps: int) -> None:
        self.unet, self.teacher = ctx.prior.unet, ctx.teacher.network
        self.mean, self.std, self.device = ctx.teacher.mean, ctx.teacher.std, ctx.device
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        self.alphas = (1 - betas).cumprod(0).tolist()
        self.times = [1 + 1000 // steps * i for i in reversed(range(steps))]
        self.norms: list[tuple[nn.Module, Tensor]] = []
        for module in self.teacher.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_pre_hook(lambda m, inputs: self.norms.append((m, inputs[0])))

    def sample(self, labels: Tensor) -> Tensor:
        count = len(labels)
        z = torch.randn(count, 3, SPEC.size, SPEC.size, device=self.device)
        for i, t in enumerate(self.times):
            a = self.alphas[t]
            if a >= FLOOR:
                z = z.detach().requires_grad_(True)
                self.norms.clear()
                logits = self.teacher((self.image(z, t, self.unet(z, t).sample) - self.mean) / self.std)
                loss = BETA * F.cross_entropy(logits, labels)
                for module, x in self.norms:
                    variance, mean = x.var((0, 2, 3), unbiased=False), x.mean((0, 2, 3))
                    loss = loss + ALPHA * (module.running_var - variance).norm()
                    loss = loss + ALPHA * (module.running_mean - mean).norm()
                (step,) = torch.autograd.grad(count * loss, z)
                size, limit = step.flatten(1).norm(dim=1), CAP * z.flatten(1).norm(dim=1)
                z = (z - step * (limit / size).clamp(max=1)[:, None, None, None]).detach()
            with torch.no_grad():
                eps = self.unet(z, t).sample
                last = self.image(z, t, eps)
                if i + 1 < len(self.times):
                    b = self.alphas[self.times[i + 1]]
                    clean, beta = (z - (1 - a) ** 0.5 * eps) / a**0.5, 1 - a / b
                    z = b**0.5 * beta / (1 - a) * clean + (a / b) ** 0.5 * (1 - b) / (1 - a) * z
                    z = z + (beta * (1 - b) / (1 - a)) ** 0.5 * torch.randn_like(z)
        self.norms.clear()
        return last

    def image(self, z: Tensor, t: int, eps: Tensor) -> Tensor:
        a = self.alphas[t]
        return ((z - (1 - a) ** 0.5 * eps) / a**0.5 / 2 + 0.5).clamp(0, 1)
