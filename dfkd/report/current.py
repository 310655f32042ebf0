"""Which records today's code and configuration stand for. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dfkd import catalog, paths, records
from dfkd.errors import UserError
from dfkd.files import unchanged
from dfkd.identity import Cell, Run
from dfkd.tables.definition import check_fits, datasets, owners, table_of
from dfkd.tables.recipes import recipes
from dfkd.tables.resolve import resolve

Digests = Mapping[Cell, tuple[str | None, str | None]]  # of method and configuration


@unchanged()
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
    table = owners().get(cell.data)
    if table is None or cell.protocol not in table.protocols:
        return None, None
    method = recipes(table).get(cell.method, {}).get("method", cell.method)
    if method not in catalog.entries() or not (_fits(cell.teacher, cell.data) and _fits(cell.student, cell.data)):
        return None, None
    now = resolve(cell.data, cell.protocol, cell.method, cell.pair)
    return now.entry.digest, now.digest


def _fits(arch: str, data: str) -> bool:
    try:
        check_fits(data, arch)
    except UserError:
        return False
    return True


def ablations(everything: Iterable[Mapping]) -> dict[Cell, str]:
    """The recipe that the recipe of a recorded cell is an ablation or a control of, where its file says so."""
    cells = {Run.of(record).cell for record in everything}
    books = {data: recipes(table_of(data)) for data in {cell.data for cell in cells} & {*datasets()}}
    found = {cell: books.get(cell.data, {}).get(cell.method, {}).get("ablates") for cell in cells}
    return {cell: name for cell, name in found.items() if name is not None}
