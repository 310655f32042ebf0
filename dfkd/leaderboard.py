"""`results/LEADERBOARD.md`, `results/tables/<data>.md`: pure functions of records and published numbers."""

import csv
import io
import itertools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from dfkd import documents, markdown, plots
from dfkd.errors import UserError
from dfkd.files import replace_file
from dfkd.identity import Cell, Run
from dfkd.markdown import link, plain
from dfkd.metrics import METRICS
from dfkd.statistics import KD_BOUND, Cost, Result, Summary, gap_to_kd, gather
from dfkd.tables.definition import MEANINGS
from dfkd.units import duration, memory

Digests = Mapping[Cell, Mapping[str, str]]
Reasons = Mapping[Cell, str]
Published = list[dict[str, str]]

PAPER = "paper"  # the only protocol whose numbers may stand beside published ones

HEAD = """\
# Leaderboard

Generated from `results/records` by `python bench.py leaderboard`; do not edit.

- **`last` ranks**: the student after its last step. Without data there is nothing to choose a better one by.
- **`oracle`** is the best test score seen on the way, which is what papers print. It ranks nothing.
- **Compare within one table only** (one data set, one protocol), and times only within one class of hardware.
- *Italic rows marked `ref`* are bounds, not competitors: teacher, student and KD on real data, KD on noise.
"""

TABLE_HEAD = """\
# {data}

Generated from `results/records` by `python bench.py leaderboard`; do not edit.
How to read it: [columns](../LEADERBOARD.md#columns).

"""

LEGEND = """\
## Columns

| column | meaning |
|:--|:--|
| teacher | test score of the teacher |
| # | rank within the pair, by `last`; `ref`: a bound |
| prior | what the method knows besides the teacher |
| last | score after the last step: mean ± sample standard deviation (number of seeds) |
| oracle | best test score of each run, mean over seeds |
| gap | `last` less the `last` of `kd-real`, which is distillation on the real training data |
| paper | published score [source]; † not verified in the source itself; * see the note |
| oracle − paper | ours less published, both chosen on the test set |
| synthesis, distillation | time spent on making images, and on training the student |
| total | all time but evaluation and bookkeeping: set-up, prior and buffer included |
{once}| images, steps | images synthesised; training steps of the student |
| memory | peak: device memory on CUDA, process memory on a CPU |
| status | `stale`: method or configuration changed since; `n/a`: does not apply, see note; only `ok` ranks |
{diagnostics}"""

LEGEND_ONCE = """\
| once per teacher | of `total`: training of the prior, in full in every row, and stages that serve every student |
| per student | the rest of `total`, paid again for every further student |
"""

LEGEND_DIAGNOSTICS = """
## Synthetic images

Measured after the run by the evaluator, who has the real test images and charges nobody; nothing ranks by it. All is
in the teacher's eyes: its decisions, and its pooled penultimate features (a segmentation network's: its encoder's).
With several seeds: means.

| column | meaning |
|:--|:--|
| images | how many were looked at: what the run ended with, at most 4,096 |
| agreement | share that the teacher gives the class they were made for; –: made for no class |
| rarest class, commonest class | their shares of the teacher's decisions (one an image, or one a pixel) |
| diversity | mean distance of two images over that of two real ones: 1 is as diverse as real, 0 all the same |
| Fréchet | Fréchet distance to the real images, 0 is closest; higher for fewer images; each teacher has its own scale |
| samples | the newest images; in segmentation each is followed by the teacher's and the student's label map |
"""

ONCE = ("once per teacher", "per student")  # columns of tables in which something is paid once per teacher
REFERENCE_ORDER = ("teacher", "student-real", KD_BOUND)  # the rest by name


_CELL = {"type": "string", "minLength": 1}
_FLAG = {"enum": ["yes", "no"]}
ROW: dict = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Line of published.csv",
    "type": "object",
    "properties": {
        **dict.fromkeys(("data", "teacher", "method", "metric"), _CELL),
        "student": {"type": "string"},  # none where the number is a teacher's
        "value": {"type": "number"},
        "source": _CELL,
        "url": {"type": "string", "pattern": "^https?://"},
        **dict.fromkeys(("verified", "primary"), _FLAG),
        "note": {"type": "string"},
    },
    "allOf": [
        {
            "if": {"properties": {"metric": {"const": metric.name}}},
            "then": {"properties": {"value": {"minimum": metric.low, "maximum": metric.high}}},
        }
        for metric in METRICS.values()
    ],
}
SEPARATORS = ",;\t"


def read_published(path: str | Path) -> Published:
    """The rows of `published.csv`, as a spreadsheet may have saved it: separated by commas, semicolons or tabs.

    UserError names the first line and column that is wrong.
    """
    try:
        text = documents.text_of(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    head = text.partition("\n")[0]
    separator = max(SEPARATORS, key=head.count)
    reader = csv.DictReader(io.StringIO(text), delimiter=separator, strict=True)
    rows = []
    try:
        lacking = [name for name in ROW["properties"] if name not in (reader.fieldnames or ())]
        if lacking:
            raise UserError(f"{path}: line 1: {lacking[0]}: there is no such column")
        for row in reader:
            where = f"{path}: line {reader.line_num}"
            if None in row:
                raise UserError(f"{where}: more cells than columns")
            row = {name: (cell or "").strip() for name, cell in row.items()}
            if separator != ",":  # then a comma can only be the decimal sign
                row["value"] = row["value"].replace(",", ".")
            documents.check({**row, "value": _number_in(row["value"])}, ROW, where)
            rows.append(row)
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num}: {error}") from None
    return rows


def _number_in(text: str) -> float | str:
    return float(text) if re.fullmatch(r"[+-]?\d+(\.\d*)?(e[+-]?\d{1,2})?", text, re.IGNORECASE) else text


def render(records: Iterable[dict], published: Published, current_digests: Digests | None = None) -> dict[str, str]:
    """Path below `results/` → text, for the leaderboard and the table of each data set.

    `current_digests` tells which records are stale (see `statistics.gather`). A record of status `unsupported` gives
    the reason for which its method declines, shown where the same pair has other records.
    """
    results, reasons = _gather(records, current_digests)
    return _render(results, published, reasons)


def write(
    results_folder: str | Path,
    records: Iterable[dict],
    published: Published,
    current_digests: Digests | None = None,
    only: str | None = None,
) -> list[Path]:
    """Bring tables and plots up to date with the records; returns the files that changed.

    `only` names a data set whose table and plots alone are written.
    """
    folder = Path(results_folder)
    results, reasons = _gather(records, current_digests)
    files = _render(results, published, reasons)
    if only is not None:
        results = [result for result in results if result.cell.data == only]
    names = [name for name in _differing(folder, files) if only is None or name == f"tables/{only}.md"]
    changed = [folder / name for name in names]
    for path in changed:
        name = path.relative_to(folder).as_posix()
        if name in files:
            replace_file(path, files[name])
        else:
            path.unlink()  # the table of a data set that has no record any more
    return changed + plots.draw(results, folder / "plots")


def check(
    results_folder: str | Path,
    records: Iterable[dict],
    published: Published,
    current_digests: Digests | None = None,
) -> list[str]:
    """Names, below `results/`, of the files that are not what the records give; empty if all is well."""
    folder = Path(results_folder)
    results, reasons = _gather(records, current_digests)
    outdated = plots.outdated(results, folder / "plots")
    files = _render(results, published, reasons)
    return _differing(folder, files) + [path.relative_to(folder).as_posix() for path in outdated]


def _gather(records: Iterable[dict], current_digests: Digests | None) -> tuple[list[Result], Reasons]:
    """What was run, and why methods decline."""
    records = list(records)
    declined = [record for record in records if record["status"] == "unsupported"]
    reasons = {Run.of(record).cell: record["error"] for record in declined if not record["custom"]}
    return gather((record for record in records if record not in declined), current_digests), reasons


def _render(results: list[Result], published: Published, reasons: Reasons) -> dict[str, str]:
    primary = {_published_key(row): row for row in published if row["primary"] == "yes"}
    files = {}
    sections = []
    for data, group in itertools.groupby(results, key=lambda result: result.cell.data):
        tables = [
            (protocol, list(rows))
            for protocol, rows in itertools.groupby(group, key=lambda result: result.cell.protocol)
        ]
        tables.sort(key=lambda table: _protocol_order(table[0]))
        body = "\n".join(_table(rows, primary, reasons, "plots") for _, rows in tables)
        sections.append(f"## {data}\n\n{body}")
        body = "\n".join(_table(rows, primary, reasons, "../plots") for _, rows in tables)
        files[f"tables/{data}.md"] = TABLE_HEAD.format(data=data) + body
    overview = _overview(results) if results else "No records yet: `make reproduce` makes the quick table.\n"
    files["LEADERBOARD.md"] = "\n".join([HEAD, overview, *sections, _legend(results)])
    return files


def _legend(results: list[Result]) -> str:
    """What the columns mean, as far as there are such."""
    return LEGEND.format(
        once=LEGEND_ONCE if _has_once(results) else "",
        diagnostics=LEGEND_DIAGNOSTICS if any(map(_described, results)) else "",
    )


def _differing(folder: Path, files: Mapping[str, str]) -> list[str]:
    """Files whose text on disk is another one, and tables that no record stands behind."""
    differing = [
        name
        for name, text in files.items()
        if not (folder / name).is_file() or (folder / name).read_bytes() != text.encode()
    ]
    tables = (path for path in folder.glob("tables/*.md") if path.is_file())
    present = (path.relative_to(folder).as_posix() for path in tables)
    return sorted([*differing, *(name for name in present if name not in files)])


def _protocol_order(protocol: str) -> tuple[int, str]:
    return (list(MEANINGS).index(protocol) if protocol in MEANINGS else len(MEANINGS), protocol)


def _pair(result: Result) -> tuple[str, ...]:
    return result.cell[:4]


def _overview(results: list[Result]) -> str:
    """One line for each pair of each table: where the best method stands between nothing and real data."""
    rows = []
    for (data, protocol, *_), group in itertools.groupby(results, key=_pair):
        pair = list(group)
        kd = next((result for result in pair if result.cell.method == KD_BOUND), None)
        best = next(iter(_ordered(result for result in pair if result.ranked)), None)
        rows.append(
            [
                f"[{data}](#{data})",
                protocol,
                _names(pair[0].cell),
                METRICS[pair[0].metric].column,
                _score(kd.last, kd.metric) if kd else "–",
                plain(best.cell.method) if best else "–",
                _score(best.last, best.metric) if best else "–",
                _signed(gap_to_kd(best, pair), best.metric) if best else "–",
            ]
        )
    rows.sort(key=lambda row: (row[0], _protocol_order(row[1])))
    headers = ["data", "protocol", "pair", "metric", "KD on real data", "best method", "last", "gap"]
    return markdown.table(headers, rows, right={"KD on real data", "last", "gap"})


def _table(results: list[Result], primary: Mapping[tuple, dict], reasons: Reasons, plots_folder: str) -> str:
    """Heading, table, plot and notes of one data set under one protocol."""
    protocol = results[0].cell.protocol
    joined = _Published(results, primary)
    rows = []
    for _, group in itertools.groupby(results, key=_pair):
        pair = list(group)
        ranks = itertools.count(1)
        for result in _ordered(pair):
            rows += _rows(result, pair, next(ranks) if result.ranked else None, joined)
        rows += [_declined(cell, pair[0]) for cell in _declining(pair, reasons)]
    hidden = (() if joined else _Published.HEADERS) + (() if _has_once(results) else ONCE)
    headers = [header for header in rows[0] if header not in hidden]
    words = METRICS[results[0].metric].sentence
    meaning = f" {MEANINGS[protocol]}." if protocol in MEANINGS else ""
    text = f"### {protocol}\n\n{words}.{meaning}\n\n"
    text += markdown.table(headers, [[row[header] for header in headers] for row in rows], right=_NUMBERS)
    if any(plots.drawable(result) for result in results):
        name = plots.name_of(results[0].cell)
        text += f"\n![accuracy against total time]({plots_folder}/{name}.png)\n"
    notes = _notes(results, joined) + [
        f"`{cell.method}`, {_names(cell)}, does not apply: {plain(reasons[cell])}"
        for cell in _declining(results, reasons)
    ]
    text += "\n" + "".join(f"- {note}\n" for note in notes) if notes else ""
    return text + _synthetic(results, plots_folder)


def _synthetic(results: list[Result], plots_folder: str) -> str:
    """What the synthetic images of these methods are like, for those of which it is known."""
    rows = []
    for _, group in itertools.groupby(results, key=_pair):
        for result in _ordered(filter(_described, group)):
            found, cell = result.diagnostics, result.cell
            rows.append(
                {
                    "pair": _names(cell),
                    "method": plain(cell.method) + (" (stale)" if result.state == "stale" else ""),
                    "images": f"{found.images:,.0f}",
                    "agreement": _percent(found.agreement),
                    "rarest class": _percent(found.smallest),
                    "commonest class": _percent(found.largest),
                    "diversity": "–" if found.diversity is None else f"{found.diversity:.2f}",
                    "Fréchet": _figure(found.frechet),
                    "samples": f"[grid]({plots_folder}/{plots.grid_of(cell)})",
                }
            )
    if not rows:
        return ""
    table = markdown.table(list(rows[0]), [list(row.values()) for row in rows], right=_NUMBERS)
    return f"\n#### What the synthetic images are like\n\n{table}"


def _ordered(pair: Iterable[Result]) -> list[Result]:
    """Bounds first, then methods by their last accuracy, then those that have none."""

    def place(result: Result) -> tuple:
        name = result.cell.method
        if result.reference:
            known = name in REFERENCE_ORDER
            return (0, REFERENCE_ORDER.index(name) if known else len(REFERENCE_ORDER), name)
        return (1, -result.last.mean, name) if result.last else (2, 0, name)

    return sorted(pair, key=place)


_NUMBERS = {
    *("teacher", "#", "last", "oracle", "gap", "paper", "oracle − paper"),
    *("synthesis", "distillation", "total", *ONCE, "images", "steps", "memory"),
    *("agreement", "rarest class", "commonest class", "diversity", "Fréchet"),
}


def _rows(result: Result, pair: list[Result], rank: int | None, joined: "_Published") -> list[dict[str, str]]:
    """The row of a result, and one more for each further class of hardware that its seeds ran on."""
    cell, metric = result.cell, result.metric
    last = _score(result.last, metric)
    row = {
        "pair": _names(cell),
        "teacher": _number(result.teacher, metric),
        "#": "ref" if result.reference else str(rank or "–"),
        "method": f"*{plain(cell.method)}*" if result.reference else plain(cell.method),
        "prior": "–" if result.reference else plain(result.prior),  # a bound is no competitor
        "last": f"**{last}**" if rank == 1 else last,
        "oracle": _number(result.oracle and result.oracle.mean, metric),
        "gap": _signed(gap_to_kd(result, pair), metric),
        "paper": joined.value(result),
        "oracle − paper": joined.difference(result),
        **_cost(result.costs[0], alone=len(result.costs) == 1),
        "status": result.status,
    }
    further = dict.fromkeys(row, "") | {"pair": row["pair"], "method": f"↳ {plain(cell.method)}"}
    return [row, *(further | _cost(cost, alone=False) for cost in result.costs[1:])]


def _cost(cost: Cost, alone: bool) -> dict[str, str]:
    return {
        "synthesis": duration(cost.synthesis),
        "distillation": duration(cost.distillation),
        "total": duration(cost.scored),
        **dict(zip(ONCE, map(duration, (cost.once, cost.per_student)), strict=True)),
        "images": f"{cost.images:,.0f}",
        "steps": f"{cost.steps:,.0f}",
        "memory": "–" if cost.memory is None else memory(cost.memory),
        "hardware": plain(cost.hardware) + ("" if alone else f" ({cost.n} seed{'s' * (cost.n > 1)})"),
    }


def _declining(results: list[Result], reasons: Reasons) -> list[Cell]:
    """Cells of these pairs whose method declines, and that have no record."""
    present = {result.cell for result in results}
    pairs = {cell[:4] for cell in present}
    return sorted(cell for cell in reasons if cell[:4] in pairs and cell not in present)


def _declined(cell: Cell, neighbour: Result) -> dict[str, str]:
    row = dict.fromkeys(_rows(neighbour, [neighbour], None, _Published([], {}))[0], "")
    return row | {"pair": _names(cell), "#": "–", "method": plain(cell.method), "status": "n/a"}


def _names(cell: Cell) -> str:
    return plain(f"{cell.teacher} → {cell.student}")


def _notes(results: list[Result], joined: "_Published") -> list[str]:
    changed = sorted({text for result in results for text in result.changed})
    notes = [f"Data: {plain(text)}" for text in changed]
    notes += [note for note in sorted({note for result in results for note in result.prior_notes})]
    said = {(result.cell.method, result.note) for result in results if result.note}
    notes += [f"`{method}`: {plain(note)}" for method, note in sorted(said)]
    for cell, report in ((result.cell, result.report) for result in results if result.report):
        numbers = ", ".join(f"{plain(name)} {_figure(value)}" for name, value in report.items())
        notes.append(f"`{cell.method}`, {_names(cell)}, reports {numbers}")
    if results[0].cell.protocol == PAPER and not all(result.comparable for result in results):
        notes.append(
            "No published numbers beside runs on a subset, or on data changed in a way that may touch the "
            "test images: the scores would not be comparable."
        )
    if len({cost.hardware for result in results for cost in result.costs}) > 1:
        notes.append("Several classes of hardware: compare times and memory only between rows of one class.")
    if any("stale" in result.status for result in results):
        notes.append("Stale: the method or its configuration has changed since the run; run it again.")
    return notes + joined.notes()


class _Published:
    """Published numbers joined to the results of one table, and the notes that must stand with them."""

    HEADERS = ("paper", "oracle − paper")

    def __init__(self, results: list[Result], primary: Mapping[tuple, dict]) -> None:
        self._rows = {
            result.cell: primary[key]
            for result in results
            if result.cell.protocol == PAPER and result.comparable and (key := _result_key(result)) in primary
        }
        self._tags: dict[str, str] = {}  # source → tag
        for row in self._rows.values():
            if row["source"] not in self._tags:
                name = re.search(r"[\w-]+|$", row["source"]).group().strip("_") or "source"
                taken = sum(tag.split()[0] == name for tag in self._tags.values())
                self._tags[row["source"]] = f"{name} {taken + 1}" if taken else name

    def __bool__(self) -> bool:
        return bool(self._rows)

    def value(self, result: Result) -> str:
        row = self._rows.get(result.cell)
        if row is None:
            return "–"
        marks = ("" if row["verified"] == "yes" else "†") + ("\\*" if row["note"] else "")
        return f"{_number(float(row['value']), result.metric)} [{self._tags[row['source']]}]{marks}"

    def difference(self, result: Result) -> str:
        row = self._rows.get(result.cell)
        # A number that its own source makes doubtful is shown, and nothing is measured by it.
        if row is None or result.oracle is None or row["note"].startswith("suspect"):
            return "–"
        return _signed(result.oracle.mean - float(row["value"]), result.metric)

    def notes(self) -> list[str]:
        urls = {row["source"]: row["url"] for row in self._rows.values()}
        remarks = dict.fromkeys(
            f"\\* `{cell.method}`: {plain(row['note'])}" for cell, row in self._rows.items() if row["note"]
        )
        sources = [f"[{tag}] {plain(source)}. {link(urls[source])}" for source, tag in self._tags.items()]
        return [*sources, *remarks]


def _published_key(row: Mapping[str, str]) -> tuple:
    return tuple(row[field] for field in ("data", "teacher", "student", "method", "metric"))


def _result_key(result: Result) -> tuple:
    cell = result.cell
    return (cell.data, cell.teacher, cell.student, cell.method, result.metric)


def _has_once(results: Iterable[Result]) -> bool:
    return any(cost.once for result in results for cost in result.costs)


def _described(result: Result) -> bool:
    return result.diagnostics is not None and not result.reference


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _figure(number: float) -> str:
    """A number of which nothing is known: three significant digits, or all before the point."""
    whole = abs(number) < 1e15 and (abs(number) >= 1000 or number == round(number))
    return f"{number:,.0f}" if whole else f"{number:.3g}"


def _number(value: float | None, metric: str) -> str:
    return "–" if value is None else f"{value:.{METRICS[metric].decimals}f}"


def _signed(value: float | None, metric: str) -> str:
    """With a sign that is as wide as a plus."""
    return "–" if value is None else f"{value:+.{METRICS[metric].decimals}f}".replace("-", "−")


def _score(summary: Summary | None, metric: str) -> str:
    if summary is None:
        return "–"
    spread = "" if summary.std is None else f" ± {_number(summary.std, metric)}"
    return f"{_number(summary.mean, metric)}{spread} ({summary.n})"
