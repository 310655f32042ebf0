"""`results/published.csv`: what papers print, read strictly and joined to the results that it may stand beside."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dfkd import documents
from dfkd.errors import UserError
from dfkd.identity import Cell
from dfkd.metrics import METRICS
from dfkd.report.markdown import link, plain

PAPER = "paper"  # the only protocol whose numbers may stand beside published ones
SEPARATORS = ",;\t"
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


@dataclass(frozen=True)
class Quoted:
    """A published number beside a result; `tag` stands for its source."""

    value: float
    tag: str
    source: str
    url: str
    verified: bool
    note: str

    @property
    def suspect(self) -> bool:
        """Whether its own source makes it doubtful: such a number is shown, and nothing is measured by it."""
        return self.note.startswith("suspect")


def read_published(path: str | Path) -> list[dict[str, str]]:
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


def quote(cells: Iterable[Cell], metric: str, rows: Iterable[Mapping[str, str]]) -> dict[Cell, Quoted]:
    """The primary published number for each of these cells of the `paper` protocol for which there is one."""
    primary = {_key(row): row for row in rows if row["primary"] == "yes"}
    quoted: dict[Cell, Quoted] = {}
    tags: dict[str, str] = {}  # by source
    for cell in cells:
        row = primary.get((cell.data, cell.teacher, cell.student, cell.method, metric))
        if row is None or cell.protocol != PAPER:
            continue
        source = row["source"]
        if source not in tags:
            name = next(iter(re.findall(r"[\w-]+", source)), "").strip("_") or "source"
            taken = sum(tag.split()[0] == name for tag in tags.values())
            tags[source] = f"{name} {taken + 1}" if taken else name
        value, verified = float(row["value"]), row["verified"] == "yes"
        quoted[cell] = Quoted(value, tags[source], source, row["url"], verified, row["note"])
    return quoted


def methods_of(data: str, pair: str, rows: Iterable[Mapping[str, str]]) -> list[str]:
    """The methods for which papers print a number of this pair."""
    networks = tuple(pair.split("-"))
    return sorted({row["method"] for row in rows if (row["data"], row["teacher"], row["student"]) == (data, *networks)})


def _key(row: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(row[field] for field in ("data", "teacher", "student", "method", "metric"))


def notes(quoted: Mapping[Cell, Quoted]) -> list[str]:
    """What must stand below a table with such numbers: their sources, and what there is to say of single ones."""
    sources = {each.source: f"[{each.tag}] {plain(each.source)}. {link(each.url)}" for each in quoted.values()}
    remarks = [f"\\* `{cell.method}`: {plain(each.note)}" for cell, each in quoted.items() if each.note]
    return [*sources.values(), *dict.fromkeys(remarks)]
