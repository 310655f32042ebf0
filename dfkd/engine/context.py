"""What a method is handed: a teacher, a student, a budget, random streams. No data set, no loader, no evaluator."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import InitVar, dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dfkd.engine.method import Budget
from dfkd.engine.seeds import Streams
from dfkd.networks.normalised import Normalised
from dfkd.synthesis.augment import Augment
from dfkd.synthesis.buffer import ReplayBuffer
from dfkd.tasks.base import InputSpec

if TYPE_CHECKING:
    from dfkd.priors import Prior


class Teacher(Normalised):
    """The frozen teacher, in eval mode for good. Takes images in [0, 1] and counts them."""

    def __init__(self, network: nn.Module, spec: InputSpec) -> None:
        super().__init__(network, spec)
        self.images_seen = 0
        self.eval().requires_grad_(False)

    def normalise(self, images: Tensor) -> Tensor:
        self.images_seen += len(images)
        return super().normalise(images)

    def train(self, mode: bool = True) -> Teacher:
        """Stays in eval mode whatever is asked: its statistics are part of what it knows."""
        return super().train(False)


class Student(Normalised):
    """The student. Counts the images that it learns from."""

    images_trained = 0

    def normalise(self, images: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            self.images_trained += len(images)
        return super().normalise(images)


@dataclass
class Progress:
    """What the loop counts."""

    synthesis_step: int = 0
    student_steps: int = 0
    images_synthesised: int = 0


@dataclass
class Context:
    """The method's world.

    Attributes:
        teacher: images in [0, 1] → logits; frozen. `teach` is the same without gradient.
        student: the present student, images in [0, 1] → logits. Another object after a student reset.
        new_student: makes another student with the run's initialisation.
        spec: image size, channels and classes of the teacher's input.
        budget, device: see `Budget`; everything lives on `device`.
        buffer: the replay buffer.
        per_pixel: whether logits are maps, B×C×H×W, one label a pixel.
        synthesis_step: the number of the present synthesis step, from 1.
        student_steps: student steps so far (those of discarded students not counted).
        prior: the diffusion model of the run, or None; a method that uses it declares so.
        class_names: of the task, for a method that declares them; else ().
        real: None; the training split, (uint8 N×C×H×W, int64 N or N×H×W), for reference methods that declare
            `needs_data`.
    """

    teacher: Teacher
    student: Student
    new_student: Callable[[], Student]
    spec: InputSpec
    budget: Budget
    device: torch.device
    rng: Streams
    buffer: ReplayBuffer
    augmentation: Augment
    autocast: Callable[[], AbstractContextManager]
    prior: Prior | None = None
    class_names: tuple[str, ...] = ()
    real: tuple[Tensor, Tensor] | None = None
    per_pixel: bool = False
    progress: InitVar[Progress | None] = None
    aside: InitVar[Callable[[], AbstractContextManager]] = nullcontext

    def __post_init__(self, progress: Progress | None, aside: Callable[[], AbstractContextManager]) -> None:
        self._progress, self._aside = progress or Progress(), aside

    @property
    def synthesis_step(self) -> int:
        return self._progress.synthesis_step

    @property
    def student_steps(self) -> int:
        return self._progress.student_steps

    def teach(self, images: Tensor) -> Tensor:
        """The teacher's logits, without gradient."""
        with torch.no_grad():
            return self.teacher(images)

    def augment(self, images: Tensor, stream: str = "augment") -> Tensor:
        """Images uint8 or in [0, 1], cropped and flipped as the task allows, in [0, 1]."""
        images = self.augmentation(images, self.rng(stream))
        return images.float().div_(255) if images.dtype == torch.uint8 else images

    def augment_pair(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Real images, uint8, and labels as the task augments them for training; images in [0, 1]."""
        images, labels = self.augmentation.pair(images, labels, self.rng("augment"))
        return images.float().div_(255), labels

    def random_labels(self, count: int) -> Tensor | None:
        """Uniform random classes, int64; None where labels are maps, which nobody can draw at random.

        `losses.cross_entropy` takes None for the teacher's own argmax.
        """
        if self.per_pixel:
            return None
        return torch.randint(self.spec.classes, (count,), generator=self.rng("labels"), device=self.device)

    def noise(self, *shape: int) -> Tensor:
        """N(0, 1)."""
        return torch.randn(*shape, generator=self.rng("noise"), device=self.device)

    def making_images(self, count: int) -> AbstractContextManager:
        """For methods that sample a generator in `draw`: charge the work inside, `count` images, to synthesis."""
        self._progress.images_synthesised += count
        return self._aside()
