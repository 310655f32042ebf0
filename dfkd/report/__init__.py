"""What is published of the records: leaderboard, tables, plots, `all.csv`. Torch-free."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from filelock import FileLock, Timeout

from dfkd import paths, records
from dfkd.errors import UserError
from dfkd.files import copy_file, replace_file
from dfkd.identity import Run
from dfkd.report import leaderboard, plots
from dfkd.report.current import current_digests
from dfkd.report.published import read_published
from dfkd.report.statistics import Result, gather, tidy

if TYPE_CHECKING:
    import pandas

PATIENCE = 600  # seconds that a process waits for others to write the tables
RENDER = "python bench.py leaderboard"


class Rendered(NamedTuple):
    """What the records give: path below `results` → text, results, one row for each record, and which are broken."""

    files: dict[str, str]
    results: list[Result]
    runs: pandas.DataFrame
    found: records.Found


def write(data: str | None = None) -> tuple[list[Path], list[UserError]]:
    """Bring tables, plots and `all.csv` up to date, or the table of `data` alone: what was written, broken records.

    One process after the other, each with the records that there are when its turn comes.
    """
    with _alone():
        files, results, _, found = render()
        if data is not None:
            files, results = {name: text for name, text in files.items() if name == f"tables/{data}.md"}, []
        changed = [name for name in _differing(files) if data is None or name in files]
        for name in changed:
            if name in files:
                replace_file(paths.RESULTS / name, files[name])
            else:
                (paths.RESULTS / name).unlink()  # the table of a data set that has no record any more
        return [paths.RESULTS / name for name in changed] + plots.draw(results, paths.plots()), found.problems


def check() -> tuple[list[str], list[UserError]]:
    """The files below `results` that are not what the records give, and which records are broken."""
    files, results, _, found = render()
    outdated = plots.outdated(results, paths.plots())
    return _differing(files) + [path.relative_to(paths.RESULTS).as_posix() for path in outdated], found.problems


def after_run(record: Mapping, tables: bool = True) -> None:
    """Put the grid of samples beside the plots and renew the tables. What is wrong with others' records is told only:
    this run has its own."""
    grid = paths.WORK / record["work"] / "samples.png"
    if grid.is_file() and not record["reference"]:
        copy_file(grid, paths.plots() / plots.grid_of(Run.of(record).cell))
    try:
        problems = write()[1] if tables else []
    except UserError as error:
        problems = [error]
    for problem in problems:
        print(f"this run's record is written, but for the tables mend: {problem}; then: {RENDER}", file=sys.stderr)


def render() -> Rendered:
    """Everything but the plots, of the records that there are now."""
    found, quotable = records.read_all(paths.records()), read_published(paths.published())
    runs = tidy(found.records, current_digests(found.records))
    results = gather(runs)
    files = leaderboard.render(results, quotable)
    files |= {"all.csv": runs.to_csv(index=False, lineterminator="\n")}
    return Rendered(files, results, runs, found)


def _differing(files: Mapping[str, str]) -> list[str]:
    """Files whose text on disk is another one, and tables that no record stands behind."""

    def differs(name: str) -> bool:
        path = paths.RESULTS / name
        return not path.is_file() or path.read_bytes() != files[name].encode()

    tables = (path for path in paths.RESULTS.glob("tables/*.md") if path.is_file())
    present = (path.relative_to(paths.RESULTS).as_posix() for path in tables)
    return sorted([*filter(differs, files), *(name for name in present if name not in files)])


@contextmanager
def _alone() -> Iterator[None]:
    lock = FileLock(paths.RESULTS / ".lock", timeout=PATIENCE)
    try:
        paths.RESULTS.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise UserError(f"{paths.RESULTS}: another process has been writing the tables for {PATIENCE} s") from None
    except (OSError, NotImplementedError) as error:
        raise UserError(f"cannot write to {paths.RESULTS}: {getattr(error, 'strerror', None) or error}") from None
    with lock:
        yield
