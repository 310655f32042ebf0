"""What the inputs of a network's BatchNorm layers tell: `L_bn` of a batch, and a feature of each image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class _VarMean(torch.autograd.Function):
    """Biased variance and mean over (N, H, W). `torch.var_mean` is ten times slower on channels-last CPU tensors."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = x.mean((0, 2, 3), keepdim=True)
        ctx.save_for_backward(x, mean)
        return (x - mean).square_().mean((0, 2, 3)), mean.flatten()

    @staticmethod
    def backward(ctx: Any, grad_variance: Tensor, grad_mean: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        count = x.numel() // x.shape[1]
        slope = (2 / count * grad_variance)[None, :, None, None]
        # d variance = 2 (x − m)/n, d mean = 1/n
        return torch.addcmul((grad_mean / count)[None, :, None, None] - slope * mean, x, slope)


@contextmanager
def channel_means(modules: Iterable[nn.Module]) -> Iterator[list[Tensor]]:
    """The spatial means, N×C in float32, of these modules' inputs in the one forward pass made inside, in its order.

    CMI's feature of an image is all of them side by side (dda.md 1.2). They carry the gradient; nothing stays on the
    network.
    """
    found: list[Tensor] = []

    def record(module: nn.Module, inputs: tuple[Tensor]) -> None:
        found.append(inputs[0].float().mean((2, 3)))

    with ExitStack() as hooks:
        for module in modules:
            hooks.enter_context(module.register_forward_pre_hook(record))
        yield found


class NoStatistics(ValueError):
    """A network without 2-d BatchNorm layers was to give their statistics; a method that needs them declines."""


class BatchNormLoss:
    """Σ_l ‖σ²_l − v_l‖₂ + ‖μ_l − m_l‖₂ over all 2-d BatchNorm layers (baselines.md 1.0; ssdkd.md E2).

    μ_l, σ²_l are the running statistics, m_l, v_l the mean and biased variance of the layer's *input* over
    (N, H, W), in float32. The norms are plain and the layers unweighted.

    With `momentum` β (Fast, NAYER, SSD-KD) m_l becomes (1−β)·m_l + β·M_l, likewise v_l; (M, V) is empty in the
    first call, is copied from the last step of that call, and afterwards moves by M ← β·M + (1−β)·m once a
    call, in `update()`. It carries no gradient.

    The hooks exist only inside `capture()`: a forward pass outside it pays nothing. Raises NoStatistics for a network
    without such layers.
    """

    def __init__(self, network: nn.Module, momentum: float | None = None) -> None:
        self.layers: list[Any] = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
        if not self.layers:
            raise NoStatistics("the network has no BatchNorm2d layer, and the method matches the statistics of these")
        self.momentum = momentum
        self.memory: list[tuple[Tensor, Tensor]] = []
        self._batch: list[tuple[Tensor, Tensor]] = []

    @contextmanager
    def capture(self) -> Iterator[BatchNormLoss]:
        """Record the statistics of every forward pass made inside; the last one counts."""
        index: dict[nn.Module, int] = {layer: i for i, layer in enumerate(self.layers)}

        def record(layer: nn.Module, inputs: tuple[Tensor]) -> None:
            variance, mean = _VarMean.apply(inputs[0].float())
            self._batch[index[layer]] = (mean, variance)

        self._batch = [None] * len(self.layers)  # type: ignore[list-item]  # set in the pass
        with ExitStack() as hooks:
            for layer in self.layers:
                hooks.enter_context(layer.register_forward_pre_hook(record))
            yield self

    def loss(self) -> Tensor:
        """The loss of the last captured forward pass, a scalar."""
        total: Any = 0
        for i, (layer, (mean, variance)) in enumerate(zip(self.layers, self._batch, strict=True)):
            if self.memory and self.momentum is not None:
                beta = self.momentum
                mean = (1 - beta) * mean + beta * self.memory[i][0]
                variance = (1 - beta) * variance + beta * self.memory[i][1]
            total = total + torch.linalg.vector_norm(layer.running_var - variance)
            total = total + torch.linalg.vector_norm(layer.running_mean - mean)
        return total

    def update(self) -> None:
        """Move the memory by the last captured statistics, once at the end of a synthesis step."""
        last = [(mean.detach(), variance.detach()) for mean, variance in self._batch]
        if self.momentum is not None:
            beta = self.momentum
            self.memory = (
                [
                    (beta * old_mean + (1 - beta) * mean, beta * old_variance + (1 - beta) * variance)
                    for (old_mean, old_variance), (mean, variance) in zip(self.memory, last, strict=True)
                ]
                if self.memory
                else last
            )
        self._batch = []

    def state_dict(self) -> dict:
        return {"memory": [list(pair) for pair in self.memory]}

    def load_state_dict(self, state: dict) -> None:
        self.memory = [(mean, variance) for mean, variance in state["memory"]]
