"""Class activation maps, and mSARC: how far a student's maps are from the teacher's (diffdfkd.md 2.1).

Everything here is differentiable with respect to the maps; classifier weights and Grad-CAM's channel weights are held
constant.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class Inspection:
    """One forward pass, looked into.

    Attributes:
        logits: N×C.
        maps: N×D×h×w, the post-ReLU input of global pooling.
        weight: C×D, of the linear classifier.
        stages: the output of each stage, N×d_l×h_l×w_l, in order.
    """

    logits: Tensor
    maps: Tensor
    weight: Tensor
    stages: list[Tensor]


def cam(inspection: Inspection) -> Tensor:
    """M_c = Σ_d W_{c,d}·F_d for every class: N×C×h×w. The bias is ignored; W gets no gradient."""
    return torch.einsum("cd,ndhw->nchw", inspection.weight.detach(), inspection.maps)


def grad_cam(inspection: Inspection, classes: Tensor) -> list[Tensor]:
    """For each stage Σ_d a_d·A_d, N×h×w, with a_d the spatial mean of ∂y/∂A_d, y the logit of `classes` (int64, N).

    No ReLU and no normalisation. The forward pass must have been made with gradients.
    """
    score = inspection.logits.gather(1, classes[:, None]).sum()
    gradients = torch.autograd.grad(score, inspection.stages, retain_graph=True)
    return [
        (gradient.mean((2, 3), keepdim=True) * stage).sum(1)
        for gradient, stage in zip(gradients, inspection.stages, strict=True)
    ]


def msarc(teacher: Inspection, student: Inspection) -> Tensor:
    """L_cam + L_gc, a scalar; gradients reach the student alone.

    L_cam is the mean squared error of the class activation maps, L_gc the sum over stages of that of the Grad-CAM maps
    for the teacher's class. Maps of different size are averaged down to the smaller one; where the networks differ in
    their number of stages, stages are paired from the last backwards.
    """
    classes = teacher.logits.argmax(1)
    loss = _distance(cam(teacher), cam(student))
    pairs = zip(reversed(grad_cam(teacher, classes)), reversed(grad_cam(student, classes)), strict=False)
    return loss + sum(_distance(t[:, None], s[:, None]) for t, s in pairs)


def _distance(teacher: Tensor, student: Tensor) -> Tensor:
    size = (min(teacher.shape[2], student.shape[2]), min(teacher.shape[3], student.shape[3]))
    teacher, student = (F.adaptive_avg_pool2d(x.float(), size) for x in (teacher.detach(), student))
    return F.mse_loss(student, teacher)
