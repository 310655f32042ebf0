"""What of the tables is still to be run, and the commands that run it. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

from dfkd import catalog, paths
from dfkd.artifacts.cards import PRIOR, TEACHER
from dfkd.errors import UserError, shown, unknown
from dfkd.identity import Run
from dfkd.names import whole
from dfkd.priors.recipes import recipe_for
from dfkd.priors.recipes import recipes as own_priors
from dfkd.tables.definition import datasets, table_of, tables
from dfkd.tables.pipeline import span
from dfkd.tables.recipes import recipes
from dfkd.tables.resolve import resolve, takes_prior
from dfkd.units import duration


def missing(done: Collection[Run], data: str | None = None, protocol: str | None = None) -> list[Run]:
    """The runs that the tables span and that have no valid record. UserError for data or a protocol that is unknown."""
    known = {name for table in tables().values() for name in table.protocols}
    for kind, name, names in (("data", data, datasets()), ("protocol", protocol, known)):
        if name is not None and name not in names:
            raise unknown(kind, name, names)
    return [run for run in span() if run not in done and data in (None, run.data) and protocol in (None, run.protocol)]


def lacking(runs: Collection[Run]) -> list[str]:
    """The options of `bench.py` that make the teachers and priors of these runs, as far as they are not there."""
    found: dict[str, None] = {}  # each once, in order
    priors, methods = own_priors(), catalog.entries()
    books = {data: recipes(table_of(data)) for data in {run.data for run in runs}}
    for data, protocol, teacher, student, method in dict.fromkeys(run.cell for run in runs):
        if not TEACHER.there(paths.teacher(data, teacher)):
            found[f"teacher --data {data} --arch {teacher} --protocol {protocol} --resume"] = None
        if not takes_prior(methods[books[data].get(method, {}).get("method", method)]):
            continue
        prior = resolve(data, protocol, method, f"{teacher}-{student}").prior or ""
        recipe = priors.get(prior)  # another one comes from the hub when it is first used
        if recipe and not PRIOR.there(paths.prior(prior)):
            name = "" if recipe_for(recipe["data"], recipe["size"])[0] == prior else f" --name {prior}"
            found[f"prior --data {recipe['data']} --size {recipe['size']}{name} --resume"] = None
    return list(found)


def commands(runs: Sequence[Run], estimate: Callable[[Run], float]) -> Iterator[str]:
    """A line for each command: first those that make what the runs lack, then the runs, each with its time."""
    yield from (f"python bench.py {options}" for options in lacking(runs))
    yield from (f"python bench.py {run.command}  # about {duration(estimate(run))}" for run in runs)


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
