"""Which records today's code and configuration stand for. Torch-free."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping

from dfkd import catalog, paths, records
from dfkd.errors import UserError
from dfkd.identity import Cell, Run
from dfkd.networks import fitting
from dfkd.tables.definition import datasets, table_of
from dfkd.tables.recipes import recipes
from dfkd.tables.resolve import resolve
from dfkd.tasks import task

Digests = Mapping[Cell, tuple[str | None, str | None]]  # of method and configuration


def finished() -> tuple[set[Run], list[UserError]]:
    """Every run that has a finished record of today's code and configuration; and which records are broken."""
    found = records.read_all(paths.records())
    return done(found.records, current_digests(found.records)), found.problems


def done(everything: Iterable[Mapping], digests: Digests) -> set[Run]:
    """The runs of these records that are finished, and of the code and configuration that `digests` names."""
    ended = [record for record in everything if record["status"] in records.FINISHED]
    return {Run.of(record) for record in ended if digests[Run.of(record).cell] == digests_of(record)}


def digests_of(record: Mapping) -> tuple[str, str]:
    """The digests of the method and the configuration that a record stands for."""
    return record["provenance"]["code"]["method"], record["provenance"]["config"]


def current_digests(everything: Iterable[Mapping]) -> Digests:
    """The digests of method and configuration as they are now, for each cell that has a record.

    Raises UserError where code or configuration is broken: of that nothing can be said, least of all that it is stale.
    """
    digests: dict[Cell, tuple] = {}
    for record in everything:
        cell = Run.of(record).cell
        if record["provenance"]["code"].get("external"):
            digests[cell] = digests_of(record)  # what came in by --import cannot be looked at; it is taken as it is
        elif cell not in digests:
            digests[cell] = _now(cell)
    return digests


def _now(cell: Cell) -> tuple[str | None, str | None]:
    """(None, None) where the table, its protocol, the method or a network is no more."""
    if cell.data not in datasets() or cell.protocol not in table_of(cell.data).protocols:
        return None, None
    method = recipes(table_of(cell.data)).get(cell.method, {}).get("method", cell.method)
    if method not in catalog.entries() or {cell.teacher, cell.student} - {*fitting(task(cell.data).kind)}:
        return None, None
    now = resolve(cell.data, cell.protocol, cell.method, cell.pair)
    return now.entry.digest, now.digest


def ablations(everything: Iterable[Mapping]) -> dict[Cell, str]:
    """The recipe that the recipe of a recorded cell is an ablation or a control of, where its file says so."""
    found = {cell: ablated(cell.data, cell.method) for cell in {Run.of(record).cell for record in everything}}
    return {cell: name for cell, name in found.items() if name is not None}


def ablated(data: str, method: str) -> str | None:
    """The recipe that this one is an ablation or a control of; None for a method of its own or an unknown one."""
    book = recipes(table_of(data)) if data in datasets() else {}
    return book.get(method, {}).get("ablates")


def estimate(run: Run) -> float:
    """Seconds a run will take: what its method took in that table, on whatever machine, else the protocol's guess."""
    return _estimate(run.data, run.protocol, run.method)


@functools.cache
def _estimate(data: str, protocol: str, method: str) -> float:
    found = records.read_all(paths.records(), f"{data}/*/{method}/{protocol}-seed*.json")
    finished = [record["time"] for record in found.records if record["status"] == "ok"]
    took = [time["total"] - time["prior"] for time in finished]  # a prior is trained beforehand
    return sum(took) / len(took) if took else 60 * table_of(data).protocol(protocol).minutes
