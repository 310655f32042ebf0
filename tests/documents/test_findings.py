"""The numbers of docs/findings.md are those of the tables."""

import csv
import re
from pathlib import Path

from dfkd.metrics import METRICS

ROOT = Path(__file__).parents[2]
TABLE = re.compile(r"\[([\w-]+)\]\(\.\./results/tables/[\w-]+\.md\),\s+`(\w+)`")
# `recipe` mean ± standard deviation (seeds)
NUMBER = re.compile(r"`([\w-]+)`\s+(\d*\.\d+)(?:\s+±\s+(\d*\.\d+))?\s+\((\d+)\)")


def claimed(text: str) -> list[tuple[str, ...]]:
    """Data, protocol, recipe, mean, deviation and seeds of each number; a number belongs to the table named last."""
    found = []
    for part in re.split(r"(?=\[[\w-]+\]\(\.\./results/tables/)", text)[1:]:
        table = TABLE.match(part)
        numbers = NUMBER.findall(part)
        assert table or not numbers, f"these numbers name no protocol: {part[:200]}"
        found += [(*table.groups(), *number) for number in numbers] if table else []
    return found


def measured() -> dict[tuple[str, str, str], tuple[str, str, str]]:
    """Mean, deviation and seeds of each row that is not stale, rounded as the document does."""
    cells = csv.DictReader((ROOT / "results" / "cells.csv").open(encoding="utf-8"))
    rows = {}
    for cell in cells:
        if cell["state"] == "ok" and cell["last"]:
            decimals = METRICS[cell["metric"]].decimals
            mean, std = (f"{float(cell[key]):.{decimals}f}" if cell[key] else "" for key in ("last", "last_std"))
            rows[cell["data"], cell["protocol"], cell["method"]] = (mean, std, cell["n"])
    return rows


def test_every_number_is_that_of_the_table():
    numbers, rows = claimed((ROOT / "docs" / "findings.md").read_text(encoding="utf-8")), measured()
    assert len(numbers) > 20, "the pattern finds what there is"
    wrong = [number for number in numbers if rows.get(number[:3]) != number[3:]]
    assert not wrong


def test_a_wrong_number_is_found():
    text = "[digits](../results/tables/digits.md), `quick`: `fast-5` 1.23 ± 0.45 (3) and `cmi` 9.87 (1)"
    assert claimed(text) == [
        ("digits", "quick", "fast-5", "1.23", "0.45", "3"),
        ("digits", "quick", "cmi", "9.87", "", "1"),
    ]
    assert measured()["digits", "quick", "fast-5"] != ("1.23", "0.45", "3")
