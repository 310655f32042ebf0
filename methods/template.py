from dataclasses import dataclass

import torch

from dfkd.engine.context import Context
from dfkd.engine.method import METHODS, Method
from dfkd.synthesis import losses
from dfkd.synthesis.batchnorm import BatchNormLoss
from dfkd.synthesis.buffer import Samples
from dfkd.synthesis.generators import build_generator


@METHODS.register_module("template")
@dataclass(eq=False)
class Template(Method):
    """A whole method, to copy: a generator trained on L_bn and L_oh, whose last batch a synthesis step keeps."""

    saved = ("generator", "optimizer")
    steps: int = 10  # of the generator in a synthesis step
    lr: float = 1e-3  # of its Adam
    bn: float = 1.0  # weight of L_bn

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(steps=1)

    def setup(self, ctx: Context) -> None:
        self.generator = build_generator(256, 64, ctx.spec.size, ctx.spec.channels).to(ctx.device)
        self.optimizer = torch.optim.Adam(self.generator.parameters(), lr=self.lr)

    def synthesize(self, ctx: Context) -> Samples:
        labels = ctx.random_labels(ctx.budget.synthesis_batch)
        with BatchNormLoss(ctx.teacher).capture() as statistics:
            for _ in range(self.steps):
                images = self.generator(ctx.noise(ctx.budget.synthesis_batch, 256))
                loss = losses.cross_entropy(ctx.teacher(images), labels).mean() + self.bn * statistics.loss()
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
        return Samples(images, labels)
