import csv
from collections import Counter
from pathlib import Path

import pytest

from dfkd.errors import UserError
from dfkd.report.published import read_published

FILE = Path(__file__).parents[2] / "results" / "published.csv"
COLUMNS = [
    *("data", "teacher", "student", "method", "metric", "value", "synthesis_hours", "total_hours", "gpu"),
    *("source", "url", "verified", "primary", "note"),
]


@pytest.fixture(scope="module")
def rows():
    return read_published(FILE)


def key(row):
    return tuple(row[column] for column in COLUMNS[:5])


def test_every_published_number_was_kept(rows):
    found = Counter((row["data"], row["method"]) for row in rows)
    added = found["domainnet-quickdraw", "teacher"] + found["domainnet-sketch", "teacher"]  # from scripts' file names
    added += found["tiny_imagenet", "teacher"] + found["tiny_imagenet", "student-real"]
    assert (len(rows), added) == (367, 5)  # 362 are in the specification's list of published results
    assert not any("memory" in row["source"].split() for row in rows)
    assert all(list(row) == COLUMNS for row in rows)


def test_one_row_of_each_key_is_primary(rows):
    counted = Counter(key(row) for row in rows if row["primary"] == "yes")
    assert set(counted) == {key(row) for row in rows}
    assert set(counted.values()) == {1}
    assert {row["primary"] for row in rows} | {row["verified"] for row in rows} == {"yes", "no"}


def test_fasts_own_table_is_primary_then_what_is_verified(rows):
    own = [row for row in rows if row["source"].startswith("Fast/FastDFKD")]
    assert len(own) == 126
    assert all(row["primary"] == "yes" for row in own)
    verified = {key(row) for row in rows if row["verified"] == "yes"}
    unverified = {key(row) for row in rows if row["primary"] == "yes" and row["verified"] == "no"}
    assert not unverified & verified


@pytest.mark.parametrize(
    ("data", "pair", "method", "value", "hours"),
    [
        ("cifar10", ("resnet34", "resnet18"), "teacher", 95.70, ""),
        ("cifar10", ("wrn40_2", "wrn16_1"), "student-real", 91.12, ""),
        ("cifar10", ("wrn40_2", "wrn16_1"), "fast-10", 89.29, "0.15"),
        ("cifar10", ("resnet34", "resnet18"), "deepinv", 93.26, "42.1"),
        ("cifar10", ("vgg11", "resnet18"), "cmi", 91.13, "11.6"),
        ("cifar10", ("wrn40_2", "wrn16_2"), "fast-2", 89.68, "0.03"),
        ("cifar100", ("resnet34", "resnet18"), "kd-real", 77.87, ""),
        ("cifar100", ("wrn40_2", "wrn16_1"), "dafl", 20.88, "1.67"),  # 22.50 in CMI's table
        ("cifar100", ("wrn40_2", "wrn40_1"), "zskt", 53.60, "0.87"),
        ("cifar100", ("vgg11", "resnet18"), "dfq", 66.21, "1.54"),
        ("cifar100", ("wrn40_2", "wrn16_2"), "nayer", 71.72, ""),
        ("nyuv2", ("deeplabv3_resnet50", "deeplabv3_mobilenetv2"), "ssdkd", 0.384, ""),
        ("nyuv2", ("deeplabv3_resnet50", "deeplabv3_mobilenetv2"), "dfad", 0.364, ""),
        ("tiny_imagenet", ("resnet34", "resnet18"), "spaceshipnet", 64.04, ""),
    ],
)
def test_values_are_those_of_the_papers(rows, data, pair, method, value, hours):
    metric = "miou" if data == "nyuv2" else "top1"
    (row,) = [row for row in rows if key(row) == (data, *pair, method, metric) and row["primary"] == "yes"]
    assert (float(row["value"]), row["synthesis_hours"]) == (value, hours)


def test_hours_of_whole_runs_are_not_called_synthesis(rows):
    for row in rows:
        assert not (row["synthesis_hours"] and row["total_hours"])
        if row["gpu"] == "RTX 3090 Ti" or "whole" in row["source"]:
            assert not row["synthesis_hours"]


def test_the_copying_error_keeps_its_note(rows):
    suspect = [row for row in rows if row["note"].startswith("suspect")]
    assert {key(row)[0::3] for row in suspect} == {("cifar10", "kd-real")}
    assert [row["value"] for row in suspect] == ["95.2"] * 5


GOOD = {
    "data": "cifar10", "teacher": "wrn40_2", "student": "wrn16_1", "method": "fast-10", "metric": "top1",
    "value": "89.29", "source": "Fast; Table 1", "url": "https://example.org", "verified": "yes", "primary": "yes",
    "note": "a\nb",
}  # fmt: skip


def saved(path, rows, separator=",", columns=tuple(GOOD), encoding="utf-8"):
    """The rows as a spreadsheet saves them."""
    with open(path, "w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, columns, delimiter=separator, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_what_a_spreadsheet_saved_is_read(tmp_path, separator, encoding):
    value = "89.29" if separator == "," else "89,29"
    path = saved(tmp_path / "published.csv", [GOOD | {"value": value}] * 2, separator, encoding=encoding)
    assert read_published(path) == [GOOD] * 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"value": "ninety"}, "value: 'ninety' is not of type 'number'"),
        ({"value": ""}, "value: '' is not of type 'number'"),
        ({"value": "89,29"}, "value: '89,29' is not of type 'number'"),
        ({"value": "nan"}, "value: 'nan' is not of type 'number'"),
        ({"value": "893"}, "value: 893.0 is greater than the maximum of 100"),
        ({"metric": "miou"}, "value: 89.29 is greater than the maximum of 1"),
        ({"method": " "}, "method: '' should be non-empty"),
        ({"primary": "TRUE"}, "primary: unknown value 'TRUE' (there are: no, yes)"),
        ({"url": "javascript:alert(1)"}, "url: 'javascript:alert(1)' does not match"),
    ],
)
def test_a_broken_line_is_named_with_its_column(tmp_path, change, reason):
    path = saved(tmp_path / "published.csv", [GOOD, GOOD | change])
    with pytest.raises(UserError) as caught:
        read_published(path)
    assert str(caught.value).startswith(f"{path}: line 5: {reason}")  # a note of two lines stands before it


def test_a_broken_file_is_one_line(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        read_published(tmp_path / "none.csv")
    path = saved(tmp_path / "published.csv", [GOOD], columns=[name for name in GOOD if name != "source"])
    with pytest.raises(UserError, match=r"published\.csv: line 1: source: there is no such column$"):
        read_published(path)
    whole = saved(path, [GOOD]).read_text()
    for text, reason in (
        ("", "line 1: data: there is no such column"),
        (whole + "too,short\n", r"line 4: \w+: unknown value "),
        (whole + "," * 20 + "\n", "line 4: more cells than columns"),
        (whole + '"open', "line 3: unexpected end of data"),
        (whole + "x" * 200_000, "line 3: field larger than field limit"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=reason) as caught:
            read_published(path)
        assert "\n" not in str(caught.value)
    saved(path, [GOOD | {"note": "é"}], encoding="cp1252")
    with pytest.raises(UserError, match="not UTF-8"):
        read_published(path)
