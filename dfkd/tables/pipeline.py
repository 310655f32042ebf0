"""What DVC runs: flat maps of data, priors, teachers, runs and tables, and what each of them depends on. Torch-free.

`benchmarks/pipeline/quick.yaml` and `real.yaml` are written from the tables (`bench.py plan --pipeline`); the two
`dvc.yaml` are templates over them and never change.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from dfkd import catalog, paths
from dfkd.files import replace_file
from dfkd.identity import Run
from dfkd.priors import recipes as priors
from dfkd.tables.definition import tables
from dfkd.tables.resolve import Resolved, resolve

# The quick tables are what `dvc repro` makes; those of real data have a pipeline of their own.
PIPELINES = {"quick": lambda protocol: protocol == "quick", "real": lambda protocol: protocol != "quick"}
HEAD = "# Written from benchmarks/*/table.yaml by `python bench.py plan --pipeline`; do not edit.\n"


def span(pipeline: str | None = None) -> Iterator[Run]:
    """Every run that the tables span, or those of one pipeline."""
    wanted = PIPELINES.get(pipeline, lambda protocol: True)
    for table in tables().values():
        for data in table.data:
            for protocol in filter(lambda p: wanted(p.name), table.protocols.values()):
                for pair in protocol.pairs:
                    for recipe in protocol.recipes:
                        for seed in protocol.seeds:
                            yield Run(data, *pair.split("-"), recipe, protocol.name, seed)


def file_of(pipeline: str) -> Path:
    return paths.BENCHMARKS / "pipeline" / f"{pipeline}.yaml"


def text(pipeline: str) -> str:
    """The content of a pipeline's file: a line for each stage."""
    return HEAD + yaml.safe_dump(stages(pipeline), sort_keys=False, default_flow_style=None, width=10_000)


def stages(pipeline: str) -> dict[str, dict[str, Any]]:
    """`data`, `priors`, `teachers`, `runs` and `tables`, each a map from stage to what its template needs."""
    found: dict[str, dict[str, Any]] = {key: {} for key in ("data", "priors", "teachers", "runs", "tables")}
    for run in span(pipeline):
        resolved = resolve(run.data, run.protocol, run.method, run.pair)
        found["data"][run.data] = {"manifest": _relative(paths.manifest(run.data))}
        found["tables"].setdefault(run.data, {"family": run.data})
        weights = _teacher(found, run)
        found["runs"][_key(run)] = {
            **run._asdict(),
            "pair": run.pair,
            "manifest": _relative(paths.manifest(run.data)),
            "weights": weights,
            # A stage has as many dependencies as its template: without a prior one stands there twice.
            "prior": _prior(found, resolved) or weights,
            "record": _relative(run.path()),
        }
    return found


def inputs(pipeline: str) -> dict[str, dict[str, Any]]:
    """File name → what a stage depends on beside files: code, recipes and configurations as they are now."""
    made = stages(pipeline)
    code = catalog.code_digest(*(paths.ROOT / "dfkd" / "tasks").glob("*.py"))
    found: dict[str, dict[str, Any]] = {f"data-{key}": {"code": code} for key in made["data"]}
    found |= {f"prior-{key}": dict(priors.recipes()[key]) for key in made["priors"]}
    for key, item in made["teachers"].items():
        found[f"teacher-{key}"] = dict(_recipe(item["data"], item["protocol"]))
    for run in span(pipeline):
        resolved = resolve(run.data, run.protocol, run.method, run.pair)
        found[f"run-{_key(run)}"] = {"method": resolved.entry.digest, "config": resolved.digest}
    return found


def write_inputs(pipeline: str) -> Path:
    """Write `inputs` as one small file each; a file whose content is the same makes DVC run nothing."""
    folder = paths.WORK / "inputs" / pipeline
    for name, content in inputs(pipeline).items():
        replace_file(folder / f"{name}.json", json.dumps(content, indent=1, sort_keys=True) + "\n")
    return folder


def _teacher(found: dict, run: Run) -> str:
    """The weights file of the run's teacher, whose stage is that of the protocol that trains it longest."""
    key = f"{run.data}-{run.teacher}"
    weights = _relative(paths.teachers() / f"{run.data}_{run.teacher}.safetensors")
    known = found["teachers"].get(key)
    if known is None or _epochs(run.data, known["protocol"]) < _epochs(run.data, run.protocol):
        found["teachers"][key] = {
            "data": run.data,
            "arch": run.teacher,
            "protocol": run.protocol,
            "manifest": _relative(paths.manifest(run.data)),
            "weights": weights,
            "card": weights.replace(".safetensors", ".json"),
        }
    return weights


def _prior(found: dict, resolved: Resolved) -> str | None:
    """The folder of the run's prior, where it is one that the suite makes."""
    recipe = priors.recipes().get(resolved.prior or "")
    if recipe is None:
        return None
    folder, manifest = _relative(paths.priors() / resolved.prior), _relative(paths.manifest(recipe["data"]))
    found["data"][recipe["data"]] = {"manifest": manifest}
    found["priors"][resolved.prior] = {
        "pool": recipe["data"],
        "size": recipe["size"],
        "manifest": manifest,
        "folder": folder,
    }
    return folder


def _recipe(data: str, protocol: str) -> dict[str, Any]:
    from dfkd.tables.definition import table_of

    return dict(table_of(data).protocol(protocol).teacher)


def _epochs(data: str, protocol: str) -> int:
    return _recipe(data, protocol).get("epochs", 0)


def _key(run: Run) -> str:
    return f"{run.data}-{run.protocol}-{run.pair}-{run.method}-{run.seed}"


def _relative(path: Path) -> str:
    return path.relative_to(paths.ROOT).as_posix()
