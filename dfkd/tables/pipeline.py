"""What DVC runs: flat maps of data, priors, teachers, runs and tables, and what each of them depends on. Torch-free.

A run of real data has a stage of its own. A quick one takes less time than two processes and a stage, so those of a
pair share one, which runs several at a time.

`benchmarks/pipeline/quick.yaml` and `real.yaml` are written from the tables (`bench.py plan --pipeline`); the two
`dvc.yaml` are templates over them and never change.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from dfkd import catalog, paths
from dfkd.errors import UserError
from dfkd.files import replace_file
from dfkd.identity import Cell, Run
from dfkd.priors.recipes import recipes as own_priors
from dfkd.tables.definition import table_of, tables
from dfkd.tables.resolve import Resolved, resolve

# The quick tables are what `dvc repro` makes; those of real data have a pipeline of their own.
PIPELINES = {"quick": lambda protocol: protocol == "quick", "real": lambda protocol: protocol != "quick"}
HEAD = "# Written from benchmarks/*/table.yaml by `python bench.py plan --pipeline`; do not edit.\n"


def span(pipeline: str | None = None) -> Iterator[Run]:
    """Every run that the tables span, or those of one pipeline."""
    wanted = PIPELINES[pipeline] if pipeline else lambda protocol: True
    for table in tables().values():
        for data in table.data:
            for protocol in filter(lambda p: wanted(p.name), table.protocols.values()):
                for pair in protocol.pairs:
                    teacher, student = pair.split("-")
                    for recipe in protocol.recipes:
                        for seed in protocol.seeds:
                            yield Run(data, teacher, student, recipe, protocol.name, seed)


def text(pipeline: str) -> str:
    """The content of a pipeline's file: a line for each stage."""
    return HEAD + yaml.safe_dump(stages(pipeline), sort_keys=False, default_flow_style=None, width=10_000)


def stages(pipeline: str) -> dict[str, Any]:
    """`data` and `tables` as lists, `priors`, `teachers` and `runs` as maps from stage to what its template needs."""
    return _stages(pipeline, _resolved(pipeline))


def _resolved(pipeline: str) -> dict[Run, Resolved]:
    """Each run of a pipeline with what its names stand for, which all seeds of a cell share."""
    cells: dict[Cell, Resolved] = {}
    for run in span(pipeline):
        if run.cell not in cells:
            cells[run.cell] = resolve(run.data, run.protocol, run.method, run.pair)
    return {run: cells[run.cell] for run in span(pipeline)}


def _stages(pipeline: str, resolved_runs: Mapping[Run, Resolved]) -> dict[str, Any]:
    data: dict[str, None] = {}
    priors, teachers, runs = {}, dict[str, dict](), {}
    for run, resolved in resolved_runs.items():
        data[run.data] = None
        _add_teacher(teachers, run)
        if own := own_priors().get(resolved.prior or ""):
            data[own["data"]] = None
            priors[resolved.prior] = {"pool": own["data"], "size": own["size"]}
    for key, together in _grouped(pipeline, resolved_runs).items():
        run = together[0]
        own_ones = sorted({resolved_runs[each].prior or "" for each in together} & priors.keys())
        if len(own_ones) > 1:
            raise UserError(f"{run.data} {run.pair} has two priors, {' and '.join(own_ones)}: one is expected")
        runs[key] = {
            "data": run.data,
            "protocol": run.protocol,
            "pair": run.pair,
            "teacher": run.teacher,
            "method": _listed(each.method for each in together),
            "seed": _listed(each.seed for each in together),
            # A template has a fixed number of dependencies: without a prior of ours the teacher stands there twice.
            "prior": _relative(paths.prior(own_ones[0]) if own_ones else paths.teacher(run.data, run.teacher)),
        }
    spanned = sorted({run.data for run in resolved_runs})
    return {"data": sorted(data), "priors": priors, "teachers": teachers, "runs": runs, "tables": spanned}


def _listed(values: Iterable[Any]) -> Any:
    """As the command line has them; one alone as it is."""
    first, *others = dict.fromkeys(values)
    return ",".join(map(str, (first, *others))) if others else first


def _grouped(pipeline: str, runs: Iterable[Run]) -> dict[str, list[Run]]:
    """The runs of each stage, by its name."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(f"{run.data}-{run.pair}" if pipeline == "quick" else _key(run), []).append(run)
    return found


def inputs(pipeline: str) -> dict[str, dict[str, Any]]:
    """File name → what a stage depends on beside files: code, recipes and configurations as they are now."""
    resolved_runs = _resolved(pipeline)
    made = _stages(pipeline, resolved_runs)
    code = catalog.code_digest(*(paths.CODE / "tasks").glob("*.py"))
    found: dict[str, dict[str, Any]] = {f"data-{key}": {"code": code} for key in made["data"]}
    found |= {f"prior-{key}": dict(own_priors()[key]) for key in made["priors"]}
    for key, item in made["teachers"].items():
        found[f"teacher-{key}"] = dict(table_of(item["data"]).protocol(item["protocol"]).teacher)
    for key, together in _grouped(pipeline, resolved_runs).items():
        those = {_key(run): resolved_runs[run] for run in together}
        found[f"run-{key}"] = {name: {"method": r.entry.digest, "config": r.digest} for name, r in those.items()}
    return found


def write_inputs(pipeline: str) -> Path:
    """Write `inputs` as one small file each; a file whose content is the same makes DVC run nothing."""
    folder = paths.inputs(pipeline)
    for name, content in inputs(pipeline).items():
        replace_file(folder / f"{name}.json", json.dumps(content, indent=1, sort_keys=True) + "\n")
    return folder


def write_maps() -> list[Path]:
    """Write the file of each pipeline; returns them."""
    for pipeline in PIPELINES:
        replace_file(paths.pipeline(pipeline), text(pipeline))
    return [paths.pipeline(name) for name in PIPELINES]


def _add_teacher(teachers: dict[str, dict], run: Run) -> None:
    """The teacher's stage is that of the protocol that trains it longest."""
    key = f"{run.data}-{run.teacher}"
    known = teachers.get(key)
    if known is None or _epochs(run.data, known["protocol"]) < _epochs(run.data, run.protocol):
        teachers[key] = {"data": run.data, "arch": run.teacher, "protocol": run.protocol}


def _epochs(data: str, protocol: str) -> int:
    return table_of(data).protocol(protocol).teacher.get("epochs", 0)


def _key(run: Run) -> str:
    return f"{run.data}-{run.protocol}-{run.pair}-{run.method}-{run.seed}"


def _relative(path: Path) -> str:
    return path.relative_to(paths.ROOT).as_posix()
