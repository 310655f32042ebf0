"""What a method is: its public surface, and the registry it joins."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

from mmengine.registry import Registry
from torch import Tensor, nn

from dfkd import paths
from dfkd.errors import UserError
from dfkd.synthesis import losses
from dfkd.synthesis.buffer import Batch, Samples

if TYPE_CHECKING:
    from dfkd.engine.context import Context
    from dfkd.tasks import Task

METHODS = Registry("method")


@dataclass(frozen=True)
class Budget:
    """What a protocol (in `paper`: the recipe) grants. A method spends it in its `schedule`.

    `steps` student steps of `batch` images; `rounds` alternations of synthesis and distillation;
    `synthesis_batch` images a synthesis step makes.
    """

    steps: int
    batch: int
    rounds: int
    synthesis_batch: int

    @property
    def steps_per_round(self) -> int:
        return self.steps // self.rounds


@dataclass(frozen=True)
class Stage:
    """`rounds` times: `synthesis_steps`, each of which makes images, then `student_steps`.

    Steps of a stage with `scored=False` train a student that is thrown away: they are charged to synthesis and appear
    in no curve. `reset_student` starts the stage with a new student, optimizer and learning-rate schedule. A `shared`
    stage depends on the teacher (and prior) alone, so what it makes would serve every student of that teacher; its time
    is shown as spent once per teacher.
    """

    name: str
    rounds: int
    synthesis_steps: int = 0
    student_steps: int = 0
    scored: bool = True
    reset_student: bool = False
    shared: bool = False


class Method:
    """Base of every method. A subclass is a dataclass whose fields are its hyper-parameters, each with a default.

    What has no annotation below is a constant of the class. All members but `synthesize` have a default that most
    methods keep.
    """

    prior = "none"
    """What it knows besides the teacher: "none", "class names", "diffusion" (the table's prior, `ctx.prior`) or, of a
    reference row, "public images" (what that prior was trained on, in `ctx.real`). A class states the most it may use;
    a constructor whose arguments ask for less, or more, says so on the instance."""

    cites = ""
    """The keys of its papers in `docs/references.bib`, parted by spaces."""

    reference = False
    """True for reference methods, whose rows records and tables mark."""

    needs_data = False
    """True for reference methods that train on the real training split, the only ones that get it (`ctx.real`); ignored
    where `reference` is False."""

    replace = "oldest"
    """Which entries a full buffer overwrites: "oldest" or "lowest" (priority)."""

    saved: ClassVar[tuple[str, ...]] = ()
    """Attributes that `setup` makes and that change from step to step: modules, optimizers, tensors, numbers. They are
    part of the run's state, from which a stopped run goes on."""

    temperature = 20.0
    """τ of the distillation loss (Fast's and CMI's for CIFAR)."""

    def __post_init__(self) -> None:
        """Check the arguments. A subclass that has conditions of its own calls this too, and raises ValueError."""
        self.at_least(temperature=1e-3)

    def at_least(self, **bounds: float) -> None:
        """Raise ValueError for the first argument that is below its bound: `self.at_least(steps=1, warmup=0)`."""
        for name, bound in bounds.items():
            if (value := getattr(self, name)) < bound:
                raise ValueError(f"{name} must be at least {bound}, not {value}")

    def supports(self, task: Task) -> str | None:
        """None, or the reason why the method does not apply to this task; the table prints the reason.

        Default: it applies, unless it uses a diffusion model and the task has a label a pixel.
        """
        if self.prior.startswith("diffusion") and task.kind == "segmentation":
            return "a diffusion model is steered to one class per image"
        return None

    def schedule(self, budget: Budget) -> list[Stage]:
        """The stages in order. Default: a synthesis step and its share of the student steps in each round."""
        return [Stage("distil", budget.rounds, synthesis_steps=1, student_steps=budget.steps_per_round)]

    def buffer_capacity(self, budget: Budget) -> int:
        """Entries of the replay buffer. Default: every image the schedule makes."""
        steps = sum(stage.rounds * stage.synthesis_steps for stage in self.schedule(budget))
        return max(1, steps * budget.synthesis_batch)

    def setup(self, ctx: Context) -> None:
        """Build generators, banks and heads. Charged to setup."""

    def synthesize(self, ctx: Context) -> Samples:
        """Make new samples; the harness puts them into the buffer. Charged to synthesis."""
        raise NotImplementedError(f"{type(self).__name__} has synthesis steps in its schedule but no synthesize()")

    def draw(self, ctx: Context) -> Batch:
        """The next student batch. Default: uniform from the buffer, with the protocol's augmentation.

        A method that makes its images here does so inside `with ctx.making_images():`, which charges them.
        """
        batch = ctx.buffer.draw(ctx.budget.batch, ctx.rng("draw"))
        batch.images = ctx.augment(batch.images)
        return batch

    def modules(self) -> list[nn.Module]:
        """Further modules that the student's optimizer trains."""
        return []

    def distill(self, ctx: Context, batch: Batch) -> dict[str, Tensor]:
        """Named losses of one student step; their sum is minimised. Default: L_KD at `temperature`."""
        return {"kd": losses.kl(ctx.teach(batch.images), ctx.student(batch.images), self.temperature).mean()}

    def after_step(self, ctx: Context, batch: Batch, outputs: dict[str, Tensor]) -> None:
        """Feed back priorities, or step an auxiliary head. `outputs` are the losses that `distill` returned."""

    def report(self) -> dict[str, float]:
        """Numbers about the run that its record shall keep, such as the share of images a filter let through."""
        return {}

    def evaluated(self, ctx: Context) -> nn.Module:
        """The network that is evaluated; heeded for reference methods only."""
        return ctx.student

    def state_dict(self) -> dict:
        """Everything the next step depends on, tensors and plain containers only: what `saved` names."""
        values = {name: getattr(self, name) for name in self.saved}
        return {k: v.state_dict() if hasattr(v, "state_dict") else v for k, v in values.items()}

    def load_state_dict(self, state: dict) -> None:
        """Take back what `state_dict` gave, after `setup`."""
        for name, value in state.items():
            if hasattr(getattr(self, name), "load_state_dict"):
                getattr(self, name).load_state_dict(value)
            else:
                setattr(self, name, value)


def build_method(name: str, path: str, arguments: Mapping[str, Any], prior: str, reference: bool) -> Method:
    """Import the method's file and build it; `prior` and `reference` are what was read of it without importing.

    Raises UserError for an argument value that it refuses.
    """
    import_file(Path(path))
    with refused_values(name):
        method = METHODS.get(name)(**arguments)
    found = (type(method).prior, type(method).reference)
    if (prior, reference) != found:
        raise UserError(f"{path} must state `prior` and `reference` as plain constants, not {found}")
    return method


@contextmanager
def refused_values(name: str) -> Iterator[None]:
    """A ValueError of a constructor or of `setup` is about a value somebody gave: one line, not a crash."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error


def import_file(path: Path) -> None:
    """Import a method's file once: as `methods.x` or `baselines.x` inside the project, by path elsewhere."""
    if path.parent in paths.METHODS:
        importlib.import_module(f"{path.parent.name}.{path.stem}")
        return
    # What lies beside it can be imported, `from .helper` as if the folder were a package; behind all else on the
    # path, for a file there must not take the place of a library's.
    package = ModuleType(f"imported_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}")
    package.__path__ = [str(path.parent)]
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    name = f"{package.__name__}.{path.stem}"
    if name not in sys.modules:
        sys.modules[package.__name__] = package
        spec: Any = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(sys.modules[name])
        except BaseException:
            del sys.modules[name]
            raise
