"""One run as one plain mapping, from which mmengine's Runner is built; it is written into the work folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dfkd.files import replace_file
from dfkd.tables.resolve import Resolved

INSIDE = "worker"  # the one folder, in that of the run, which the worker may write
STATE, LOG = Path(INSIDE, "state.pt"), Path(INSIDE, "bank.bin")
CONFIGURATION = "runner.json"


def configuration(
    resolved: Resolved,
    teacher: tuple[Path, dict],
    prior: tuple[Path | str, dict] | None,
    folder: Path,
    *,
    resume: bool,
    save_every: float,
    time_limit: float | None,
    live: bool,
) -> dict[str, Any]:
    """What `PlainRunner` takes; `teacher` and `prior` are a place and its card each."""
    config, training = resolved.config, resolved.config["training"]
    budget = {"steps": training["steps"], "batch": training["batch"], "rounds": config["rounds"]}
    budget["synthesis_batch"] = config["synthesis_batch"]
    return dict(
        model=dict(
            type="Distillation",
            run=resolved.run._asdict(),
            method=method(resolved),
            teacher=dict(arch=resolved.run.teacher, weights=str(teacher[0]), spec=teacher[1]["spec"]),
            budget=budget,
            precision=resolved.precision,
            prior=dict(place=str(Path(prior[0]).resolve()), card=prior[1]) if prior else None,
            log=str(folder / LOG),
            compile=resolved.compiled,
        ),
        train_cfg=dict(
            type="StageLoop",
            evaluations=config["evaluations"],
            per=training["schedule"]["per"],
            time_limit=time_limit,
        ),
        optim_wrapper=dict(
            type="PrecisionOptimWrapper", precision=resolved.precision, optimizer=dict(training["optimizer"])
        ),
        param_scheduler=schedule(training["schedule"], budget["steps"], budget["rounds"]),
        custom_hooks=[
            dict(type="StateHook", path=str(folder / STATE), interval=save_every, resume=resume),
            dict(type="ProgressHook", title=resolved.run.name, live=live),
        ],
    )


def method(resolved: Resolved) -> dict[str, Any]:
    """What `build_method` takes: the method's name, its file, its arguments, and what it declares there."""
    entry = resolved.entry
    declared = {"prior": entry.prior, "reference": entry.reference}
    return {"name": entry.name, "path": str(entry.path), "arguments": dict(resolved.config["args"]), **declared}


def schedule(chosen: dict[str, Any], steps: int, rounds: int) -> dict[str, Any]:
    """mmengine's scheduler; a cosine always ends with the run, whatever its length."""
    settings = dict(chosen)
    by_round = settings.pop("per") == "round"
    settings |= {"by_epoch": by_round, "end": rounds if by_round else steps}
    if settings["type"] == "CosineAnnealingLR":
        settings["T_max"] = settings["end"]
    return settings


def write(config: dict[str, Any], folder: Path) -> None:
    """Leave the configuration in the work folder, for people."""
    replace_file(folder / CONFIGURATION, json.dumps(config, indent=1) + "\n")
