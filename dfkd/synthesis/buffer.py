"""The replay buffer: synthetic images as bytes on the device, drawn uniformly or by priority.

No image passes through a file on its way to the student. The only file is an append-only log of everything
ever added, from which an interrupted run gets its images back; a saved state holds the log's length and digest,
not the images.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dfkd.errors import CannotWrite, UserError


@dataclass
class Samples:
    """What a synthesis step makes: images B×C×H×W in [0, 1], labels or none, any per-sample fields.

    `made` counts the images it made where it hands on fewer, because a filter dropped some; there may be none left.
    """

    images: Tensor
    labels: Tensor | None = None
    fields: dict[str, Tensor] = field(default_factory=dict)
    made: int | None = None


@dataclass
class Batch:
    """What a student step takes: images B×C×H×W in [0, 1], augmented, and where they came from.

    `indices` are the slots of the buffer and `weights` the importance-sampling weights of the draw.
    `fields` takes whatever `distill` wants to hand on to `after_step`.
    """

    images: Tensor
    labels: Tensor | None = None
    indices: Tensor | None = None
    weights: Tensor | None = None
    fields: dict[str, Tensor] = field(default_factory=dict)


def to_bytes(images: Tensor) -> Tensor:
    """floor(255·x) of images in [0, 1], as the field stores them."""
    return (images.detach() * 255).clamp_(0, 255).to(torch.uint8)


def class_counts(values: Tensor, classes: int) -> Tensor:
    """How many of N int64 values are each of 0..classes−1, float32; of N×C rows of shares, their sums."""
    if values.dim() == 2:
        return values.float().sum(0)
    ones = torch.ones(len(values), device=values.device)
    return torch.zeros(classes, device=values.device).scatter_add_(0, values, ones)


class ShuffledPasses:
    """Indices of 0..n−1 in shuffled passes: each once a pass, a new order each time.

    A batch that a pass cannot fill is completed from the next one, so that every batch has the same size. (Fast
    keeps the short last batch; with its bank sizes, multiples of the batch, there is none.)
    """

    def __init__(self) -> None:
        self.order = torch.empty(0, dtype=torch.int64)
        self.position = 0

    def restart(self) -> None:
        """Forget the present pass: the set has changed."""
        self.position = len(self.order)

    def draw(self, count: int, size: int, generator: torch.Generator) -> Tensor:
        """`count` indices below `size`, on the generator's device."""
        parts = []
        while count:
            if self.position >= len(self.order):
                self.order = torch.randperm(size, generator=generator, device=generator.device)
                self.position = 0
            part = self.order[self.position : self.position + count]
            self.position += len(part)
            count -= len(part)
            parts.append(part)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def state_dict(self) -> dict:
        return {"order": self.order, "position": self.position}

    def load_state_dict(self, state: dict) -> None:
        self.order, self.position = state["order"], state["position"]


class ImageLog:
    """An append-only memory map of every image a run made, with a running digest.

    What was appended after the last saved state is cut off when a run resumes; a log whose first `length` images
    do not have the saved digest is refused.
    """

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self.path, self.shape, self.length = Path(path), tuple(shape), 0
        self._hash = hashlib.sha256()

    def append(self, images: Tensor) -> None:
        data = images.contiguous().cpu().numpy().tobytes()
        # Begun anew by its first image and not before: until then it may be the log that `reopen` will ask for.
        try:
            with open(self.path, "ab" if self.length else "wb") as file:
                file.write(data)
        except OSError as error:
            raise CannotWrite(f"cannot write {self.path}: {error.strerror or error}") from error
        self._hash.update(data)
        self.length += len(images)

    def state_dict(self) -> dict:
        return {"length": self.length, "digest": self._hash.hexdigest()}

    @classmethod
    def reopen(cls, path: Path, shape: tuple[int, ...], state: dict) -> tuple[ImageLog, np.ndarray]:
        """The log and its images (length×C×H×W, read-only memory map) as they were when `state` was saved.

        Raises UserError, with the file untouched, where it does not begin with those images.
        """
        size = state["length"] * int(np.prod(shape))
        log = cls(path, shape)
        log.length = state["length"]
        if not size:
            return log, np.empty((0, *shape), np.uint8)
        try:
            images = np.memmap(path, dtype=np.uint8, mode="r", shape=(state["length"], *shape))
            log._hash = hashlib.sha256(images.data)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path} is not the log of the saved state ({error}); pass --again and not --resume"
            ) from None
        if log._hash.hexdigest() != state["digest"]:
            raise UserError(f"{path} does not hold the images of the saved state; pass --again and not --resume")
        os.truncate(path, size)
        return log, images


class ReplayBuffer:
    """A fixed number of slots on the device for images (uint8) and per-sample fields.

    A full buffer overwrites the oldest entries (`replace="oldest"`) or those of lowest priority (`"lowest"`).
    Nothing here waits for the device except `add`, which writes the log.
    """

    def __init__(
        self,
        capacity: int,
        shape: tuple[int, int, int],
        device: torch.device | str = "cpu",
        replace: str = "oldest",
        log: Path | None = None,
    ) -> None:
        if replace not in ("oldest", "lowest"):
            raise ValueError(f"replace must be 'oldest' or 'lowest', not {replace!r}")
        self.capacity, self.shape, self.device, self.replace = (
            capacity,
            tuple(shape),
            torch.device(device),
            replace,
        )
        self.images = torch.zeros(capacity, *shape, dtype=torch.uint8, device=self.device)
        self.fields: dict[str, Tensor] = {}
        self.size = 0
        self.added = 0
        self.passes = ShuffledPasses()
        self._next = 0
        self._log_path = log
        self._log = ImageLog(log, shape) if log is not None else None
        self._rows = torch.zeros(capacity, dtype=torch.int64, device=self.device)

    def __len__(self) -> int:
        return self.size

    def add(self, samples: Samples) -> Tensor:
        """Insert samples (at most `capacity`), over old entries where full; returns their slots, int64."""
        count = len(samples.images)
        if count > self.capacity:
            raise ValueError(f"{count} samples do not fit a buffer of {self.capacity}")
        images = to_bytes(samples.images.to(self.device))
        slots = self._slots(count)
        self.images[slots] = images
        fields = dict(samples.fields) if samples.labels is None else {"labels": samples.labels, **samples.fields}
        for name, values in fields.items():
            if name not in self.fields:
                self.fields[name] = torch.zeros(
                    self.capacity, *values.shape[1:], dtype=values.dtype, device=self.device
                )
            self.fields[name][slots] = values.detach().to(self.device)
        self._rows[slots] = torch.arange(self.added, self.added + count, device=self.device)
        self.added += count
        self.passes.restart()
        if self._log is not None:
            self._log.append(images)
        return slots

    def _slots(self, count: int) -> Tensor:
        free = min(count, self.capacity - self.size)
        fresh = torch.arange(self.size, self.size + free, device=self.device)
        self.size += free
        taken = count - free
        if not taken:
            return fresh
        if self.replace == "lowest":
            # Among the entries that were there before; what is being added now must not evict itself.
            old = self.fields["priority"][: self.size - free]
            return torch.cat([fresh, old.topk(taken, largest=False).indices])
        oldest = torch.arange(self._next, self._next + taken, device=self.device) % self.capacity
        self._next = (self._next + taken) % self.capacity
        return torch.cat([fresh, oldest])

    def histogram(self, name: str, classes: int) -> Tensor:
        """How many entries have each value 0..classes−1 in an int64 field: float32, length `classes`.

        An entry may hold one value or a row of shares (pixels of each class), which are summed.
        """
        if name not in self.fields:
            return torch.zeros(classes, device=self.device)
        return class_counts(self.fields[name][: self.size], classes)

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """`count` entries by shuffled passes over the buffer; images still uint8, not augmented."""
        self._require_entries()
        return self._batch(self.passes.draw(count, self.size, generator))

    def draw_by_priority(
        self, count: int, generator: torch.Generator, alpha: float = 1.0, beta: float = 0.4, eps: float = 1e-6
    ) -> Batch:
        """`count` entries with replacement, P ∝ (|priority| + eps)^alpha, and w = (N·P)^(−beta) (ssdkd.md E6, E7).

        Inverse-CDF sampling in float64: `torch.multinomial` has a category limit and may wait for the device.
        """
        self._require_entries()
        mass = (self.fields["priority"][: self.size].abs().double() + eps) ** alpha
        edges = mass.cumsum(0)
        total = edges[-1]
        uniform = torch.rand(count, generator=generator, device=self.device, dtype=torch.float64)
        indices = torch.searchsorted(edges, uniform * total, right=True).clamp_max(self.size - 1)
        batch = self._batch(indices)
        batch.weights = (self.size * mass[indices] / total).pow(-beta).float()
        return batch

    def _require_entries(self) -> None:
        if not self.size:
            raise RuntimeError("the buffer is empty: the schedule takes student steps before any synthesis")

    def set_priority(self, indices: Tensor, values: Tensor) -> None:
        """Write priorities back; an entry drawn more than once in a batch gets the mean of its values."""
        values = values.detach().to(self.fields["priority"].dtype)
        self.fields["priority"].scatter_reduce_(0, indices, values, "mean", include_self=False)

    def newest(self, count: int) -> Tensor:
        """The last `count` images added that are still here, uint8, newest first."""
        order = self._rows[: self.size].argsort(descending=True)
        return self.images[order[:count]]

    def _batch(self, indices: Tensor) -> Batch:
        fields = {name: values[indices] for name, values in self.fields.items()}
        return Batch(self.images[indices], fields.pop("labels", None), indices, fields=fields)

    def state_dict(self) -> dict:
        state = {
            "size": self.size,
            "added": self.added,
            "next": self._next,
            "rows": self._rows,
            "fields": dict(self.fields),
            "passes": self.passes.state_dict(),
        }
        if self._log is None:
            return {**state, "images": self.images}
        return {**state, "log": self._log.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.size, self.added, self._next = state["size"], state["added"], state["next"]
        self._rows.copy_(state["rows"])
        self.fields = {name: values.to(self.device) for name, values in state["fields"].items()}
        self.passes.load_state_dict(state["passes"])
        self.passes.order = self.passes.order.to(self.device)
        if "images" in state:
            self.images.copy_(state["images"])
            return
        assert self._log_path is not None  # the state has a log, so the run has one
        self._log, logged = ImageLog.reopen(self._log_path, self.shape, state["log"])
        for first in range(0, self.size, 4096):
            rows = self._rows[first : min(first + 4096, self.size)].cpu().numpy()
            self.images[first : first + len(rows)] = torch.from_numpy(logged[rows]).to(self.device)
