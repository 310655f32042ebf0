"""DFQ: a generator held to the teacher's BatchNorm statistics while it looks for what the student gets wrong.

Choi et al., "Data-Free Network Quantization With Adversarial Knowledge Distillation", CVPR Workshops 2020, as the
programs of CMI and Fast run it for their tables (baselines.md 1.6): L_oh + L_bn + 20·L_bal − KL(T‖S). Exact: that
loss with the teacher's own argmax as the label, numbers of steps, optimizers, no bank, no augmentation, L_KD at the
scripts' τ. Ours: what `generative.py` names. Nothing is quantised.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from baselines.generative import Adversarial
from dfkd.engine.context import Context
from dfkd.engine.method import METHODS
from dfkd.synthesis import losses
from dfkd.synthesis.batchnorm import BatchNormLoss
from dfkd.tasks import Task


@METHODS.register_module("dfq")
@dataclass(eq=False)
class DFQ(Adversarial):
    """A generator with BatchNorm statistics, class balance and an opponent, without a bank."""

    cites = "choi2020dfq"

    kd: int = 10
    oh: float = 1.0  # weight of L_oh
    bn: float = 1.0  # weight of L_bn
    balance: float = 20.0  # weight of L_bal, the class balance
    adv: float = 1.0  # weight of −KL(T‖S)
    temperature: float = 20.0  # τ of the distillation loss; the programs pass 1 whatever their scripts say

    def supports(self, task: Task) -> str | None:
        return None if task.kind == "classification" else "it balances one class an image"

    def setup(self, ctx: Context) -> None:
        super().setup(ctx)
        self.statistics = BatchNormLoss(ctx.teacher)

    def generator_loss(self, ctx: Context, images: Tensor) -> Tensor:
        with self.statistics.capture():
            teacher = ctx.teacher(images)
        loss = self.bn * self.statistics.loss() + self.oh * losses.cross_entropy(teacher, None).mean()
        loss = loss + self.balance * losses.class_balance(teacher)
        return loss - self.adv * losses.kl(teacher, self.rival(ctx)(images)).mean()
