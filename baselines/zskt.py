"""ZSKT (zero-shot knowledge transfer): a generator that maximises the divergence of student and teacher.

Micaelli and Storkey, "Zero-shot Knowledge Transfer via Adversarial Belief Matching", NeurIPS 2019, as the programs of
CMI and Fast run it for their tables (baselines.md 1.6). Exact: the generator's objective −KL(T‖S) at temperature 1,
numbers of steps, optimizers, no bank, no augmentation, L_KD at the scripts' τ. Ours: what `generative.py` names; on
segmentation, for which nothing is published, KL is averaged over pixels. The original's attention term and its ten
student steps on one latent code are in neither program.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from baselines.generative import Adversarial
from dfkd.engine.context import Context
from dfkd.engine.method import METHODS
from dfkd.synthesis import losses


@METHODS.register_module("zskt")
@dataclass(eq=False)
class ZSKT(Adversarial):
    """Adversarial belief matching by a generator, without a bank."""

    cites = "micaelli2019zskt"

    temperature: float = 20.0  # τ of the distillation loss; the programs pass 1 whatever their scripts say

    def generator_loss(self, ctx: Context, images: Tensor) -> Tensor:
        return -losses.kl(ctx.teacher(images), self.rival(ctx)(images)).mean()
