"""What this machine measures beside what the last commit has."""

from __future__ import annotations

from tabulate import tabulate

from dfkd import paths, records
from dfkd.checkout import git
from dfkd.documents import parse_json
from dfkd.errors import UserError
from dfkd.identity import Run
from dfkd.metrics import metric
from dfkd.tables.definition import table_of
from dfkd.units import duration


def compare_with_commit(data: str | None = None) -> list[UserError]:
    """Print the score of each quick record, or of those of one data set, beside the one in the last commit; returns
    which records are broken."""
    if data is not None:
        table_of(data)
    try:
        git("rev-parse", "HEAD")
    except UserError as error:
        print(f"committed values are left out, for they come from git ({error})")
    rows, found = [], records.read_all(paths.records())
    for record in found.records:
        run, metrics = Run.of(record), record["metrics"]
        if run.protocol != "quick" or data not in (None, run.data):
            continue
        both = (metric(metrics["name"]).text(value) for value in (metrics["last"], committed_score(run)))
        took = record["time"]["total"] - record["time"]["prior"]
        rows.append((run.data, run.method, run.seed, metrics["name"], *both, duration(took)))
    headers = ("data", "method", "seed", "metric", "measured", "committed", "took")
    print(tabulate(rows, headers=headers, tablefmt="simple", disable_numparse=True))
    return found.problems


def committed_score(run: Run) -> float | None:
    """The score in the last commit's record; None where there is none, or none that can be read."""
    try:
        return parse_json(git("show", f"HEAD:{run.path().relative_to(paths.ROOT).as_posix()}"))["metrics"]["last"]
    except (UserError, ValueError, KeyError, TypeError):
        return None
