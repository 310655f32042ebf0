"""What this machine measures beside what the last commit has."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tabulate import tabulate

from dfkd import paths, records
from dfkd.checkout import git
from dfkd.documents import parse_json
from dfkd.errors import UserError
from dfkd.identity import Cell, Run
from dfkd.metrics import metric
from dfkd.tables.definition import table_of
from dfkd.units import duration

HEADERS = ("data", "method", "seed", "metric", "measured", "committed", "", "took")
LIMIT = 2  # standard deviations within which another kind of processor should come out


def compare_with_commit(data: str | None = None) -> list[UserError]:
    """Print the score of each quick record, or of those of one data set, beside the one in the last commit, and how the
    two compare; returns which records are broken."""
    if data is not None:
        table_of(data)
    try:
        git("rev-parse", "HEAD")
    except UserError as error:
        print(f"committed values are left out, for they come from git ({error})")
    rows, found = [], records.read_all(paths.records())
    kept: dict[Cell, dict[int, dict]] = {}  # git is asked once for the seeds of a cell
    for record in found.records:
        run = Run.of(record)
        if run.protocol != "quick" or data not in (None, run.data):
            continue
        if run.cell not in kept:
            kept[run.cell] = _committed(run)
        cell = kept[run.cell]
        score = metric(record["metrics"]["name"])
        both = (score.text(each["metrics"]["last"]) if each else None for each in (record, cell.get(run.seed)))
        took = duration(record["time"]["total"] - record["time"]["prior"])
        rows.append((run.data, run.method, run.seed, score.name, *both, compared(record, cell), took))
    print(tabulate(rows, headers=HEADERS, tablefmt="simple", disable_numparse=True))
    return found.problems


def compared(record: Mapping[str, Any], kept: Mapping[int, Mapping[str, Any]]) -> str:
    """How a record compares with those committed of its cell, by seed: to the digit on the same kind of processor, else
    within two standard deviations of their seeds. A record that is the commit's own has not been measured again."""
    other, score = kept.get(record["identity"]["seed"]), record["metrics"]["last"]
    if other is None or None in (score, other["metrics"]["last"]):
        return ""
    if record == other:
        return "not run since"
    if score == other["metrics"]["last"]:
        return "equal"
    if _hardware(record) == _hardware(other):
        return "DIFFERS on the same hardware"
    scores = [each["metrics"]["last"] for each in kept.values() if each["metrics"]["last"] is not None]
    if len(scores) < 2:
        return "other hardware"
    inside = abs(score - statistics.mean(scores)) <= LIMIT * statistics.stdev(scores)
    return f"other hardware, {'within' if inside else 'BEYOND'} {LIMIT} sd"


def _hardware(record: Mapping[str, Any]) -> str:
    return record["provenance"]["hardware"]["class"]


def _committed(run: Run) -> dict[int, dict]:
    """The last commit's records of the run's cell, by seed, as far as there are any that can be read."""
    try:
        names = git("ls-tree", "--name-only", "HEAD", f"{_place(run.path().parent)}/").splitlines()
    except UserError:
        return {}
    own = f"{run.protocol}-seed"
    seeds = [Path(name).stem.removeprefix(own) for name in names if Path(name).name.startswith(own)]
    found = {int(seed): committed(run._replace(seed=int(seed))) for seed in seeds if seed.isdecimal()}
    return {seed: record for seed, record in found.items() if record}


def committed(run: Run) -> dict | None:
    """The last commit's record of a run; None where there is none, or none that can be read."""
    try:
        record = parse_json(git("show", f"HEAD:{_place(run.path())}"))
        records.validate(record)
    except (UserError, ValueError):
        return None
    return record


def _place(path: Path) -> str:
    return path.relative_to(paths.ROOT).as_posix()
