"""What names a result: a cell of a table, and one run of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dfkd import paths


class Cell(NamedTuple):
    """A place in a table: everything that names a run but its seed."""

    data: str
    protocol: str
    teacher: str
    student: str
    method: str

    @property
    def pair(self) -> str:
        """As on the command line: `wrn40_2-wrn16_1`."""
        return f"{self.teacher}-{self.student}"

    @property
    def name(self) -> str:
        """What the names of its runs begin with: `digits/wrn16_2-wrn16_1/ssdkd/quick`."""
        return f"{self.data}/{self.pair}/{self.method}/{self.protocol}"


class Run(NamedTuple):
    """One run: a cell and a seed, the fields in the order in which a record has them."""

    data: str
    teacher: str
    student: str
    method: str
    protocol: str
    seed: int

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Run:
        """The run that a record is of."""
        return cls(**{field: record["identity"][field] for field in cls._fields})

    @property
    def cell(self) -> Cell:
        return Cell(self.data, self.protocol, self.teacher, self.student, self.method)

    @property
    def pair(self) -> str:
        return self.cell.pair

    @property
    def name(self) -> str:
        """`digits/wrn16_2-wrn16_1/ssdkd/quick-seed0`, the same in records, work folders and progress lines."""
        return f"{self.cell.name}-seed{self.seed}"

    @property
    def axes(self) -> tuple[str | int, ...]:
        """What the random streams of a run depend on; written out, so that no further field can change any."""
        return self.data, self.teacher, self.student, self.method, self.protocol, self.seed

    @property
    def command(self) -> str:
        """The options of `bench.py run` that name it."""
        return (
            f"--data {self.data} --protocol {self.protocol} --pair {self.pair} --method {self.method} "
            f"--seed {self.seed}"
        )

    def path(self, root: Path | None = None) -> Path:
        """Where its record lies under `root`, by default `results/records`."""
        return (paths.records() if root is None else Path(root)) / f"{self.name}.json"
