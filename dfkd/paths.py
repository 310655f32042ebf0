"""Where everything lies: the one module that joins folders of the project. Torch-free.

Tests move `BENCHMARKS`, `RESULTS` and `WORK`; the code itself stays where it is.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CODE, METHODS = ROOT / "dfkd", (ROOT / "methods", ROOT / "baselines")
SCHEMAS = ROOT / "docs" / "schemas"
BENCHMARKS = ROOT / "benchmarks"
RESULTS = ROOT / "results"
WORK = ROOT / "work"


def table(family: str) -> Path:
    """The file that says what a table spans; its recipes lie in the folder `recipes` beside it."""
    return BENCHMARKS / family / "table.yaml"


def pipeline(name: str) -> Path:
    """The maps over which the stages of a pipeline run."""
    return BENCHMARKS / "pipeline" / f"{name}.yaml"


def costs() -> Path:
    """What the runs of the tables cost, counted."""
    return BENCHMARKS / "costs.json"


def devices() -> tuple[Path, Path]:
    """How fast devices are: this machine as measured here, and named ones."""
    return WORK / "devices.json", BENCHMARKS / "devices.json"


def harness() -> Path:
    """The digest of the harness's code beside that of its bytes."""
    return WORK / "harness.txt"


def manifest(data: str) -> Path:
    """A copy of what the stored arrays of a data set say of themselves."""
    return BENCHMARKS / "manifests" / f"{data}.json"


def references() -> Path:
    """The bibliography of the methods."""
    return ROOT / "docs" / "references.bib"


def claims() -> Path:
    """What papers claim, as comparisons between rows of the tables."""
    return BENCHMARKS / "claims.yaml"


def prior_recipes() -> Path:
    return BENCHMARKS / "priors.yaml"


def records() -> Path:
    return RESULTS / "records"


def published() -> Path:
    return RESULTS / "published.csv"


def teachers() -> Path:
    return RESULTS / "teachers"


def teacher(data: str, arch: str) -> Path:
    """The weights of a teacher; its card lies beside them."""
    return teachers() / f"{data}_{arch}.safetensors"


def priors() -> Path:
    return RESULTS / "priors"


def prior(name: str) -> Path:
    """The folder of a diffusion prior; its card and the hashes of its training images lie beside it."""
    return priors() / name


def plots() -> Path:
    return RESULTS / "plots"


def site() -> Path:
    """The records as one page."""
    return RESULTS / "site" / "index.html"


def custom(digest: str) -> Path:
    """The record folder of runs that have no place in the tables."""
    return WORK / "custom" / digest[:12]


def inputs(pipeline: str) -> Path:
    """What each stage of a pipeline depends on beside files, a small file each."""
    return WORK / "inputs" / pipeline
