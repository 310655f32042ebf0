"""What is published of the records: leaderboard, tables, plots. Torch-free."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout
from tabulate import tabulate

from dfkd import leaderboard, paths, plots, records
from dfkd.checkout import git
from dfkd.documents import parse_json
from dfkd.errors import UserError
from dfkd.files import copy_file
from dfkd.identity import Run
from dfkd.metrics import metric
from dfkd.report.current import current_digests
from dfkd.units import duration

PATIENCE = 600  # seconds that a process waits for others to write the tables
RENDER = "python bench.py leaderboard"


def write(data: str | None = None) -> tuple[list[Path], list[UserError]]:
    """Bring tables and plots up to date, or the table of `data` alone: what was written, which records are broken.

    One process after the other, each with the records that there are when its turn comes.
    """
    lock = FileLock(paths.RESULTS / ".lock", timeout=PATIENCE)
    try:
        paths.RESULTS.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise UserError(f"{paths.RESULTS}: another process has been writing the tables for {PATIENCE} s") from None
    except (OSError, NotImplementedError) as error:
        raise UserError(f"cannot write to {paths.RESULTS}: {getattr(error, 'strerror', None) or error}") from None
    with lock:
        inputs, problems = _inputs()
        return leaderboard.write(paths.RESULTS, *inputs, only=data), problems


def check() -> tuple[list[str], list[UserError]]:
    """The files below `results` that are not what the records give, and which records are broken."""
    inputs, problems = _inputs()
    return leaderboard.check(paths.RESULTS, *inputs), problems


def after_run(record: dict, tables: bool = True) -> list[UserError]:
    """Put the grid of samples beside the plots and renew the tables; returns what is wrong with other records."""
    grid = paths.WORK / record["work"] / "samples.png"
    if grid.is_file() and not record["reference"]:
        copy_file(grid, paths.plots() / plots.grid_of(Run.of(record).cell))
    try:
        problems = write()[1] if tables else []
    except UserError as error:
        problems = [error]
    return [
        UserError(f"this run's record is written, but for the tables mend: {problem}; then: {RENDER}")
        for problem in problems
    ]


def compare_with_commit() -> list[UserError]:
    """Print the score of each quick record beside the one in the last commit; returns which records are broken."""
    try:
        git("rev-parse", "HEAD")
    except UserError as error:
        print(f"committed values are left out, for they come from git ({error})")
    rows, found = [], records.read_all(paths.records())
    for record in found.records:
        run, metrics = Run.of(record), record["metrics"]
        if run.protocol != "quick":
            continue
        both = (metric(metrics["name"]).text(value) for value in (metrics["last"], _committed(run)))
        took = record["time"]["total"] - record["time"]["prior"]
        rows.append((run.data, run.method, run.seed, metrics["name"], *both, duration(took)))
    headers = ("data", "method", "seed", "metric", "measured", "committed", "took")
    print(tabulate(rows, headers=headers, tablefmt="simple", disable_numparse=True))
    return found.problems


def _committed(run: Run) -> float | None:
    """The score in the last commit's record; None where there is none, or none that can be read."""
    try:
        return parse_json(git("show", f"HEAD:{run.path().relative_to(paths.ROOT).as_posix()}"))["metrics"]["last"]
    except (UserError, ValueError, KeyError, TypeError):
        return None


def _inputs() -> tuple[tuple, list[UserError]]:
    """What the tables are made from, and which records are broken."""
    found = records.read_all(paths.records())
    published = leaderboard.read_published(paths.published())
    return (found.records, published, current_digests(found.records)), found.problems
