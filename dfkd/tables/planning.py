"""What of the tables is still to be run, and the commands that run it. Torch-free."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

from dfkd import catalog, paths
from dfkd.artifacts.cards import PRIOR, TEACHER
from dfkd.errors import UserError, shown, unknown
from dfkd.files import unchanged
from dfkd.identity import Run
from dfkd.names import whole
from dfkd.priors.recipes import recipe_for
from dfkd.priors.recipes import recipes as own_priors
from dfkd.tables import costs
from dfkd.tables.definition import datasets, tables
from dfkd.tables.pipeline import span
from dfkd.tables.recipes import recipes
from dfkd.tables.resolve import Resolved, resolve
from dfkd.units import duration


def missing(done: Collection[Run], data: str | None = None, protocol: str | None = None) -> list[Run]:
    """The runs that the tables span and that have no valid record. UserError for data or a protocol that is unknown."""
    known = {name for table in tables().values() for name in table.protocols}
    for kind, name, names in (("data", data, datasets()), ("protocol", protocol, known)):
        if name is not None and name not in names:
            raise unknown(kind, name, names)
    return [run for run in span() if run not in done and data in (None, run.data) and protocol in (None, run.protocol)]


class Planned(NamedTuple):
    """A command: the options of `bench.py`, and its predicted seconds where its cost is known."""

    options: str
    seconds: float | None

    def __str__(self) -> str:
        about = "of unknown cost" if self.seconds is None else f"about {duration(self.seconds)}"
        return f"python bench.py {self.options}  # {about}"


@unchanged()
def planned(runs: Collection[Run], speeds: costs.Speeds) -> list[Planned]:
    """First the commands that make the teachers and priors that these runs lack, then the runs, on such a device."""
    first = {run.cell: run for run in runs}.values()  # of each cell one: its seeds share what it stands for
    cells = {run.cell: resolve(run.data, run.protocol, run.method, run.pair) for run in first}
    seconds = {cell: costs.predicted(resolved, speeds) for cell, resolved in cells.items()}
    made = _lacking(cells.values(), speeds)
    return [*made, *(Planned(f"{run.command} --resume", seconds[run.cell]) for run in runs)]


def _lacking(cells: Collection[Resolved], speeds: costs.Speeds) -> list[Planned]:
    """The commands that make the teachers and priors of these cells, as far as they are not there."""
    found: dict[str, float | None] = {}  # each once, in order
    priors = own_priors()
    for resolved in cells:
        data, arch, protocol = resolved.run.data, resolved.run.teacher, resolved.protocol
        if not TEACHER.there(paths.teacher(data, arch)):
            options = f"teacher --data {data} --arch {arch} --protocol {protocol.name} --resume"
            found[options] = costs.teacher(data, arch, protocol.teacher, speeds) if protocol.teacher else None
        prior = resolved.prior or ""
        recipe = priors.get(prior)  # another one comes from the hub when it is first used
        if recipe and not PRIOR.there(paths.prior(prior)):
            name = "" if recipe_for(recipe["data"], recipe["size"])[0] == prior else f" --name {prior}"
            options = f"prior --data {recipe['data']} --size {recipe['size']}{name} --resume"
            found[options] = costs.prior(prior, recipe, speeds)
    return [Planned(*item) for item in found.items()]


def summary(plan: Collection[Planned], runs: int, device: str) -> str:
    """What the commands come to, in a line."""
    known = [each.seconds for each in plan if each.seconds is not None]
    unknown = f", and {len(plan) - len(known)} commands of unknown cost" if len(known) < len(plan) else ""
    return f"# {runs} runs, about {duration(sum(known))} in all on {device}{unknown}"


def listing(done: Collection[Run], extra: str | None = None) -> Iterator[tuple[tuple[str, ...], list[tuple]]]:
    """What there is, as tables of text (headers and rows): methods, protocols, recipes. `extra` as for `resolve`."""
    methods = catalog.entries(extra).values()
    knows = [(m.name, "reference" if m.reference else m.prior, m.summary) for m in methods]
    yield ("method", "knows", "what it is"), knows
    spanned, rows = list(span()), list[tuple]()
    for data, protocol in dict.fromkeys((run.data, run.protocol) for run in spanned):
        runs = [run for run in spanned if (run.data, run.protocol) == (data, protocol)]
        pairs = "\n".join(dict.fromkeys(run.pair for run in runs))
        rows.append((data, protocol, pairs, f"{sum(run in done for run in runs)} of {len(runs)} runs"))
    yield ("data", "protocol", "pairs", "status"), rows
    rows = []
    for family, table in tables().items():
        for name, recipe in recipes(table).items():
            shown = ", ".join(p.name for p in table.protocols.values() if name in p.recipes)
            rows.append((family, name, recipe["method"], shown or "none", recipe.get("note", "")))
    yield ("table", "recipe", "method", "in", "note"), rows


def shard(text: str | None) -> slice:
    """`I/N` as every N-th from the I-th. Raises UserError."""
    try:
        index, count = map(whole, ("1/1" if text is None else text).split("/"))
    except (UserError, ValueError):
        index, count = 0, 0
    if not 1 <= index <= count:
        raise UserError(f"--shard takes I/N with 1 <= I <= N, not {shown(text)}")
    return slice(index - 1, None, count)
