"""A whole method: images from a generator that pleases the teacher. Copy it, rename it, change `loss`."""

import torch

from dfkd.engine.context import Context
from dfkd.engine.method import METHODS, Method
from dfkd.synthesis import losses
from dfkd.synthesis.batchnorm import BatchNormLoss
from dfkd.synthesis.buffer import Samples
from dfkd.synthesis.generators import build_generator


@METHODS.register_module("template")
class Template(Method):
    """A plain generator, trained on L_bn and L_oh; each call keeps its last batch."""

    def __init__(self, steps: int = 10, lr: float = 1e-3, bn: float = 1.0, temperature: float = 20.0) -> None:
        self.steps, self.lr, self.bn, self.temperature = steps, lr, bn, temperature

    def setup(self, ctx: Context) -> None:
        self.generator = build_generator(256, 64, ctx.spec.size, ctx.spec.channels).to(ctx.device)
        self.optimiser = torch.optim.Adam(self.generator.parameters(), lr=self.lr)

    def synthesize(self, ctx: Context) -> Samples:
        labels = ctx.random_labels(ctx.budget.synthesis_batch)
        with BatchNormLoss(ctx.teacher).capture() as statistics:
            for _ in range(self.steps):
                images = self.generator(ctx.noise(ctx.budget.synthesis_batch, 256))
                loss = losses.cross_entropy(ctx.teacher(images), labels).mean() + self.bn * statistics.loss()
                self.optimiser.zero_grad()
                loss.backward()
                self.optimiser.step()
        return Samples(images, labels)

    def state_dict(self) -> dict:
        return {"generator": self.generator.state_dict(), "optimiser": self.optimiser.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.generator.load_state_dict(state["generator"])
        self.optimiser.load_state_dict(state["optimiser"])
