"""What the harness makes of a worker's messages: it evaluates, counts and times.

Whatever a worker says is checked here against what the harness itself fixed or measured; what it says of seconds can
only cost it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from dfkd import artifacts, priors, records
from dfkd.catalog import PUBLIC
from dfkd.engine import diagnostics, samples
from dfkd.engine.clock import sums
from dfkd.engine.context import Teacher
from dfkd.engine.evaluation import Batches, confusion_of
from dfkd.engine.guard import DataFreeViolation
from dfkd.engine.hooks import fingerprint
from dfkd.engine.journal import Journal
from dfkd.engine.loop import moments
from dfkd.engine.machine import out_of_memory
from dfkd.engine.record import Measured
from dfkd.errors import CannotWrite, UserError, one_line
from dfkd.files import file_digest
from dfkd.networks import initialise
from dfkd.networks.normalised import Normalised
from dfkd.tasks.base import InputSpec

if TYPE_CHECKING:
    from dfkd.tables.resolve import Resolved

TOLERANCE = 0.02  # of a run's seconds, between the worker's clock and the harness's
SPENT = ("setup", "synthesis", "buffer", "distillation")  # what a worker's seconds that count are spent on
DELAY = 5.0  # seconds that a message may take on a machine with much else to do
GRID = "samples.png"
REPEATED = {"student", "saving", "saved"}  # of a worker's messages; each of the others is sent once


class Failed(Exception):
    """A run failed for a reason that one line tells; no traceback would say more."""


class Evaluator:
    """Answers the messages of one run, and fills in what that comes to.

    Args:
        teacher: its weights file and its card.
        prior: where the diffusion prior lies that the worker gets, and its card; or None.
        root: the folder of the data.
        folder: the run's.

    Attributes:
        measured: for the record.
        student: the network that was evaluated last; None where that was the teacher.
        curves: TensorBoard's writer, or None.
    """

    def __init__(
        self,
        resolved: Resolved,
        teacher: tuple[Path, dict],
        prior: tuple[Path | str, dict] | None,
        root: Path,
        folder: Path,
        device: torch.device,
    ) -> None:
        self.resolved, self.teacher, self.prior = resolved, teacher, prior
        self.root, self.folder, self.device = root, folder, device
        self.journal = Journal(folder)
        self.measured = Measured(curve=self.journal.curve)
        self.student: Normalised | None = None
        self.curves: Any = None
        self._billed = 0.0
        self._once: set[str] = set()
        self._moments: set[int] = set()
        self._steps, self._total = 0, 0.0
        self._real: dict[str, Tensor] = {}

    def load(self) -> None:
        """What evaluations need, while the worker starts. Raises UserError for a prior that has seen test images."""
        resolved, (weights, card) = self.resolved, self.teacher
        if self.prior:
            digests = priors.digests_path(Path(self.prior[0]))
            priors.check_disjoint(self.prior[1], digests, resolved.task, self.root)
        self._test = Batches(*resolved.task.load("test", self.root), self.device)
        if resolved.entry.needs_data:
            arrays = zip(("images", "labels"), self._training_split(), strict=True)
            self._real = {name: torch.from_numpy(np.array(array)) for name, array in arrays}
        self.spec = InputSpec.from_dict(card["spec"])
        self._digest = file_digest(weights)
        self._teacher = self._placed(Teacher(artifacts.load(weights, resolved.run.teacher, self.spec), self.spec))
        self._student = self._placed(Normalised(initialise(resolved.run.student, self.spec, 0), self.spec))

    def _placed(self, network: Normalised) -> Normalised:
        return network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _training_split(self) -> tuple[np.ndarray, np.ndarray]:
        """What a reference row trains on: the task's training split, or what the table's prior has learnt from."""
        task = self.resolved.task
        if self.resolved.entry.prior != PUBLIC:
            return task.load("train", self.root)
        images = priors.public_images(self.prior and self.prior[1], task.spec.size, self.root)
        return images, np.zeros(len(images), np.int64)  # nobody labelled them with the task's classes

    def answer(self, kind: str, values: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Do what a message asks for; returns what it is answered. Raises Failed where it is not what may be sent."""
        answers = {"started": self._on_started, "ready": self._on_ready, "resumed": self._on_saved}
        answers |= {"student": self._on_student, "saving": self._on_saving, "saved": self._on_saved}
        answers |= {"result": self._on_result, "done": self._on_done}
        if self.measured.end or kind in self._once or kind not in answers:
            raise Failed(f"the worker sent {kind!r}, which is no message of a run at that point")
        self._once |= {kind} - REPEATED
        try:
            return answers[kind](values, tensors) or {}
        except DataFreeViolation:
            raise
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RuntimeError) as error:
            if out_of_memory(error):
                raise
            raise Failed(f"the worker's message {kind!r} makes no sense: {one_line(error, 200)}") from None

    def _on_started(self, values: dict, tensors: dict) -> dict[str, Tensor]:
        """All before was start-up. The answer is the training split, for reference rows that declare `needs_data`."""
        real, self._real = self._real, {}
        self.journal.started()
        return real

    def _on_ready(self, values: dict, tensors: dict) -> None:
        """The schedule; scored steps must be those granted, and no unscored one may serve them."""
        granted, stages = self.resolved.config["training"]["steps"], values["stages"]
        self._billed = self.prior[1]["seconds"] if self.prior and "diffusion" in values["prior"] else 0.0
        self._steps = sum(steps for scored, _, steps in stages if scored)
        if self._steps != granted and not (self.resolved.entry.reference and self._steps == 0):
            method = self.resolved.run.method
            raise UserError(f"{method} schedules {self._steps} scored student steps, the protocol grants {granted}")
        taught = False
        for scored, reset, steps in stages:
            taught = (taught and not reset) or (steps > 0 and not scored)
            if taught and scored and steps:
                raise Failed("scored student steps follow unscored ones without a student reset")
        self._moments = moments(self._steps, self.resolved.config["evaluations"])
        self.journal.mark()  # a state is loaded now, if any

    def _on_saving(self, values: dict, tensors: dict) -> None:
        self.journal.saving(str(values["state"]))
        self.journal.mark()

    def _on_saved(self, values: dict, tensors: dict) -> None:
        self.journal.grant()

    def _on_student(self, values: dict, tensors: dict[str, Tensor]) -> None:
        step, journal = int(values["step"]), self.journal
        due = min((m for m in self._moments if not journal.curve or m > journal.curve[-1]["step"]), default=None)
        if step != due:
            raise Failed(f"a student was sent for evaluation at step {step}, due is {due}")
        seconds = journal.scored + self._billed
        with journal.evaluating():
            value = self.resolved.metric.of(confusion_of(self._network(tensors), self._test, self.spec.classes).cpu())
            journal.curve.append({"step": step, "seconds": round(seconds, 4), "value": round(value, 6)})
            if self.device.type == "cuda":
                torch.cuda.empty_cache()  # the worker shares the device
            self._tell(step, value)

    def _network(self, weights: dict[str, Tensor]) -> nn.Module:
        """The network with these weights, which this process built; the teacher for a reference row without any."""
        if self.resolved.entry.reference and not weights:
            return self._teacher
        self.student = self._student
        self.student.load_state_dict(weights)
        self.journal.evaluated = fingerprint(self.student)
        return self.student

    def _tell(self, step: int, value: float) -> None:
        if not sys.stderr.isatty():  # there a live line is drawn
            print(f"{self.resolved.run.name} · step {step} · {self.resolved.metric.text(value)}", file=sys.stderr)
        if self.curves:
            self.curves.add_scalar("value", value, step)

    def _on_result(self, values: dict, tensors: dict[str, Tensor]) -> None:
        """The weights that were evaluated last, which a resumed worker alone has, and the images at hand."""
        with self.journal.evaluating():
            named = tensors.items()
            weights = {name.removeprefix("student."): t for name, t in named if name.startswith("student.")}
            before = self.journal.evaluated
            if weights and (self._network(weights), self.journal.evaluated)[1] != before:
                raise Failed("the student was changed after its last evaluation")
            if "images" in tensors:
                self._describe(**{name: t.to(self.device) for name, t in named if name in samples.SENT})

    def _describe(self, images: Tensor, newest: Tensor, labels: Tensor | None = None) -> None:
        test, teacher = self._test, self._teacher
        real = diagnostics.features_of(teacher, test.images, test.size)
        self.measured.diagnostics = diagnostics.describe(teacher, images, labels, real, test.size)
        if self.student and self.resolved.task.kind == "segmentation":
            newest = samples.with_predictions(newest, self.spec.classes, teacher, self.student)
        samples.save_grid(newest, self.folder / GRID)

    def _on_done(self, values: dict, tensors: dict) -> None:
        measured, self._total = self.measured, self.journal.total
        if values["status"] not in records.STATUSES:
            raise ValueError(f"{values['status']!r} is no status")
        measured.error = values["error"] and one_line(values["error"])
        measured.end, measured.status = values | {"error": measured.error}, values["status"]
        if "time" in values:  # it came to something
            measured.time = self._time(values["time"])
        if measured.status == "ok":
            if "result" not in self._once:
                raise Failed("the worker's last message came without its result")
            self._check(values["progress"]["student_steps"], values["time"]["total"])

    def _check(self, steps: int, seconds: float) -> None:
        """Refuse an end whose counts or seconds are not those that the harness has. Raises Failed."""
        curve = self.journal.curve
        if steps != self._steps or (curve[-1]["step"] if curve else None) != max(self._moments, default=None):
            raise Failed(f"{steps} student steps were taken and {len(curve)} evaluations made of {self._steps} steps")
        if file_digest(self.teacher[0]) != self._digest:
            raise DataFreeViolation("the teacher's file has changed")
        # The worker's clock misses a part of each start and state, of which a run that was often stopped has many.
        free = self.journal.free["start"] + self.journal.free["states"]
        if not abs(seconds - self._total) <= TOLERANCE * self._total + DELAY + free:
            raise Failed(f"the worker's seconds add up to {seconds:.1f}, the harness counted {self._total:.1f}")

    def _time(self, said: dict[str, Any]) -> dict[str, float | int]:
        """The record's `time`. How many seconds count the harness knows; the worker says what they were spent on.

        What it leaves unsaid beyond TOLERANCE, because its clock was slowed or because it calls work evaluation or
        bookkeeping, is set-up.
        """
        free = self.journal.free
        counted = self._total - sum(free.values())
        spent = {category: float(said[category]) for category in SPENT}
        spent["setup"] += max(0.0, (1 - TOLERANCE) * counted - sum(spent.values()))
        spent["prior"] = self._billed
        left = self._total + self._billed - sum(spent.values()) - free["evaluation"]
        spent |= {"evaluation": free["evaluation"], "bookkeeping": max(0.0, left)}
        return sums(spent) | {"resumes": said["resumes"]}


def raise_failure(end: Mapping[str, Any]) -> None:
    """Raise the error that a last message tells of, if any."""
    if end.get("status") == "failed":
        kinds = {"refused": UserError, "unwritable": CannotWrite, "violation": DataFreeViolation}
        raise kinds.get(str(end.get("kind")), Failed)(str(end.get("error")))
