"""DAFL: a generator whose images the teacher takes for confident, balanced and active examples.

Chen et al., "Data-Free Learning of Student Networks", ICCV 2019, as the programs of CMI and Fast run it for their
tables (baselines.md 1.6). Exact: L_oh + 20·L_bal + .001·L_act with the teacher's own argmax as the label, numbers of
steps, optimizers, latent code of 512, no bank, no augmentation, L_KD at the scripts' τ. Ours: what `generative.py`
names. DAFL's own program (other generator, joint step, batch 1024, 2,000 epochs) is not included.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from baselines.generative import Generative
from dfkd.engine.context import Context
from dfkd.engine.method import METHODS
from dfkd.synthesis import losses
from dfkd.tasks import Task


@METHODS.register_module("dafl")
@dataclass(eq=False)
class DAFL(Generative):
    """A generator that pleases the teacher, without a bank and without regard to the student."""

    cites = "chen2019dafl"

    nz: int = 512
    oh: float = 1.0  # weight of L_oh
    balance: float = 20.0  # weight of L_bal, the class balance
    act: float = 0.001  # weight of L_act, the activation
    temperature: float = 20.0  # τ of the distillation loss; the programs pass 1 whatever their scripts say

    def supports(self, task: Task) -> str | None:
        return None if task.kind == "classification" else "it balances one class an image, and one pooled feature"

    def generator_loss(self, ctx: Context, images: Tensor) -> Tensor:
        teacher = ctx.teacher.inspect(images)
        loss = self.oh * losses.cross_entropy(teacher.logits, None).mean()
        loss = loss + self.balance * losses.class_balance(teacher.logits)
        return loss + self.act * losses.activation(teacher.maps.mean((2, 3)))
