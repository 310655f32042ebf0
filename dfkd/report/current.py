"""Which records today's code and configuration stand for. Torch-free."""

from __future__ import annotations

import functools

from dfkd import catalog, paths, records
from dfkd.errors import UserError
from dfkd.identity import Cell, Run
from dfkd.networks import fitting
from dfkd.tables.definition import datasets, table_of
from dfkd.tables.recipes import recipes
from dfkd.tables.resolve import resolve
from dfkd.tasks import task


def finished() -> tuple[set[Run], list[UserError]]:
    """Every run that has a finished record of today's code and configuration; and which records are broken."""
    found = records.read_all(paths.records())
    digests = current_digests(found.records)
    current = {
        Run.of(record)
        for record in found.records
        if record["status"] in records.FINISHED and digests[Run.of(record).cell] == made_with(record)
    }
    return current, found.problems


def made_with(record: dict) -> dict:
    """The digests of the method and the configuration that a record stands for."""
    provenance = record["provenance"]
    return {"method": provenance["code"]["method"], "config": provenance["config"]}


def current_digests(everything: list[dict]) -> dict[Cell, dict]:
    """The digests of method and configuration as they are now, for each cell that has a record.

    Raises UserError where code or configuration is broken: of that nothing can be said, least of all that it is stale.
    """
    digests = {}
    for cell, runs in records.cells(everything).items():
        external = [run for run in runs if run["provenance"]["code"].get("external")]
        if external:  # what came in by --import cannot be looked at from here; it is taken as it is
            digests[cell] = made_with(external[-1])
        elif is_gone(cell):
            digests[cell] = {"method": None, "config": None}
        else:
            now = resolve(cell.data, cell.protocol, cell.method, cell.pair)
            digests[cell] = {"method": now.entry.digest, "config": now.digest}
    return digests


def is_gone(cell: Cell) -> bool:
    """Whether the table, its protocol, the method or a network of a record is no more."""
    if cell.data not in datasets() or cell.protocol not in table_of(cell.data).protocols:
        return True
    method = recipes(table_of(cell.data)).get(cell.method, {}).get("method", cell.method)
    networks = {cell.teacher, cell.student} - {*fitting(task(cell.data).kind)}
    return bool(networks) or method not in catalog.entries()


def estimate(run: Run) -> float:
    """Seconds a run will take: what its method took in that table, on whatever machine, else the protocol's guess."""
    return _estimate(run.data, run.protocol, run.method)


@functools.cache
def _estimate(data: str, protocol: str, method: str) -> float:
    found = records.read_all(paths.records(), f"{data}/*/{method}/{protocol}-seed*.json")
    finished = [record["time"] for record in found.records if record["status"] == "ok"]
    took = [time["total"] - time["prior"] for time in finished]  # a prior is trained beforehand
    return sum(took) / len(took) if took else 60 * table_of(data).protocol(protocol).minutes
