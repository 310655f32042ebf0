import re
import subprocess
import sys
from pathlib import Path

import pandas
import pytest

from dfkd import paths, records, report, units
from dfkd.identity import Run
from dfkd.report import leaderboard, papers
from dfkd.tables.definition import tables
from tests.records.conftest import diagnostics, gathered, place, prior, two_thousand

FOLDER = Path(__file__).parent
CHANGED = "20 test images come from a JPEG copy"


def published(method, value, *, primary="yes", source="Fast (AAAI 2022), Table 1", verified="yes", note=""):
    return {
        "data": "cifar10",
        "teacher": "wrn40_2",
        "student": "wrn16_1",
        "method": method,
        "metric": "top1",
        "value": str(value),
        "source": source,
        "url": "https://example.org/paper",
        "verified": verified,
        "primary": primary,
        "note": note,
    }


def seeds(record, method, last, **table):
    """Three records whose scores lie .1 apart, the middle one as said."""
    return [record(method, last + 0.1 * (seed - 1), seed=seed, **table) for seed in range(3)]


def render(records, rows=(), current=None, ablations=None):
    results = gathered(records, current, ablations)
    return leaderboard.render(leaderboard.sheets_of(results), papers.places(results, list(rows)) if rows else {})


def page(records, rows=(), current=None, ablations=None):
    return render(records, rows, current, ablations)["LEADERBOARD.md"]


def parts_of(text, protocol="paper"):
    """By pair below a protocol's heading: what is said once, and its tables, each as rows of header → cell."""
    sheet = text.split(f"### {protocol}\n")[1].split("\n### ")[0].split("\n## ")[0]
    found = {}
    for part in sheet.split("#### ")[1:]:
        pair, _, rest = part.partition("\n")
        tables = [parsed(block) for block in re.findall(r"(?:^\|.*\n)+", rest, re.MULTILINE)]
        found[pair] = dict(said.split(": ") for said in rest.strip().splitlines()[0].split(" · ")), tables
    return found


def rows_of(text, protocol="paper"):
    """The rows of a protocol with what is said of all of them, results and costs in one; further costs follow."""
    rows = []
    for pair, (said, (results, costs, *_)) in parts_of(text, protocol).items():
        left = [{"pair": pair, **said, **cost} for cost in costs]
        for result in results:
            first = next((cost for cost in left if cost["method"] == result["method"]), None)
            left = [cost for cost in left if cost is not first]
            rows.append({"pair": pair, **said, **(first or {}), **result})
        rows += left
    return rows


def described(text, protocol="paper"):
    """The rows of the tables that say what the synthetic images are like."""
    return [row for _, tables in parts_of(text, protocol).values() for table in tables[2:] for row in table]


def parsed(text):
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    return [dict(zip(table[0], row, strict=True)) for row in table[2:]]


def row_of(text, method, protocol="paper"):
    (row,) = [row for row in rows_of(text, protocol) if row["method"].strip("*") == method]
    return row


@pytest.fixture
def own_tables(monkeypatch):
    """What the project's tables ask for, and the device that they predict for, may change without these pages."""
    monkeypatch.setattr(leaderboard, "asked", lambda data, protocol: ["teacher", "cmi", "fast-10", "deepinv"])
    monkeypatch.setattr(leaderboard, "reference", lambda: ("CPU 2 cores", {}))


def test_golden(record, own_tables):
    """The whole page for a handful of records; after a wanted change, look at it and store it anew."""
    runs = [record("ssdkd", last, seed=seed, synthesis=125.0) for seed, last in enumerate([89.9, 90.1])]
    runs += [record("fast-10", 89.0, 89.4), record("kd-real", 92.5, reference=True, synthesis=0.0)]
    runs += [record("deepinv", protocol="cpu", status="diverged", hardware="CPU 2 cores", changed=CHANGED)]
    text = page(runs, [published("fast-10", 89.29)])
    assert text == (FOLDER / "golden_leaderboard.md").read_text(encoding="utf-8")


def test_data_of_which_nothing_was_run_are_named(record):
    sheets = leaderboard.sheets_of(gathered([record("ssdkd"), record("ssdkd", data="digits", protocol="quick")]))
    lacking = leaderboard.without_records(sheets)
    assert {"cifar100", "pacs-cartoon"} <= set(lacking) and not {"cifar10", "digits"} & set(lacking)
    text = leaderboard.render(sheets, {}, ["cifar100", "pacs-cartoon"])["LEADERBOARD.md"]
    assert "Without a record so far: `cifar100`, `pacs-cartoon`; " in text


def test_what_a_table_asks_for_and_lacks_is_named(record):
    runs = [record("fast-10", data="digits", protocol="quick"), record("mine", data="digits", protocol="quick")]
    names = [name for name in tables()["digits"].protocols["quick"].recipes if name != "fast-10"]
    listed = ", ".join(f"`{name}`" for name in names)
    assert f"- No record yet of {len(names)} rows that the table asks for: {listed}\n" in page(runs)
    assert "No record yet of" not in page([record("mine", protocol="of-nobody")])


def test_golden_with_priors_and_diagnostics(record, own_tables):
    """The page where methods use diffusion models; after a wanted change, look at it and store it anew."""
    table = {"protocol": "cpu", "hardware": "CPU 2 cores"}
    runs = [record("kd-real", 92.5, reference=True, synthesis=0.0, **table)]
    runs += [record("fast-10", 81.0, diagnostics=diagnostics(0.991, [0.08, 0.92], 0.69, 4.125), **table)]
    runs += [record("ssdkd", 82.0, diagnostics=diagnostics(None, [0.4, 0.6], 0.74, 12.3, images=768), **table)]
    runs += [
        record(
            "diffdfkd", last, seed=seed, prior=prior(), shared=870.0, synthesis=900.0, report={"guided": guided},
            diagnostics=diagnostics(guided, [0.3, 0.7], 0.91, 1.5), **table,
        )
        for seed, (last, guided) in enumerate([(86.0, 0.94), (87.0, 0.98)])
    ]  # fmt: skip
    foreign = prior("stable-diffusion-v1-5", "LAION-5B", origin="foreign", seconds=0, digest="p2")
    kept = {"filter_kept": 0.7123, "bank": 12800.0}
    runs += [record("dda", 85.0, prior=foreign, shared=400.0, synthesis=450.0, report=kept, **table)]
    text = page(runs)
    assert text == (FOLDER / "golden_priors.md").read_text(encoding="utf-8")


def test_the_last_iterate_ranks_and_not_the_oracle(record):
    text = page([record("peaky", 85.0, 99.0), record("steady", 86.0, 86.5)])
    assert [(row["method"], row["oracle"]) for row in rows_of(text)] == [("steady", "86.50"), ("peaky", "99.00")]


def test_reference_rows_come_first_marked_and_without_a_rank(record):
    references = {"kd-noise": 10.0, "kd-real": 92.0, "student-real": 93.0, "teacher": 95.0}
    runs = [record(method, last, reference=True) for method, last in references.items()]
    rows = rows_of(page([*seeds(record, "ssdkd", 94.0), *runs]))
    names = [(row["#"], row["method"]) for row in rows]
    order = ["*teacher*", "*student-real*", "*kd-real*", "*kd-noise*"]
    assert names == [*(("ref", name) for name in order), ("1", "ssdkd")]


def test_the_gap_is_last_less_last_of_the_same_table_and_pair(record):
    runs = [record("ssdkd", 90.0, 91.0), record("kd-real", 92.5, 93.0, reference=True)]
    runs += [record("ssdkd", 70.0, protocol="cpu"), record("ssdkd", 80.0, student="wrn16_2")]
    text = page(runs)
    gaps = {(row["pair"], row["method"]): row["gap"] for row in rows_of(text)}
    assert gaps["wrn40_2 → wrn16_1", "ssdkd"] == "−2.50"
    assert gaps["wrn40_2 → wrn16_1", "*kd-real*"] == "–"
    assert gaps["wrn40_2 → wrn16_2", "ssdkd"] == "–"
    assert row_of(text, "ssdkd", "cpu")["gap"] == "–"


def test_seeds_make_mean_and_deviation(record):
    runs = [record("ssdkd", last, seed=seed) for seed, last in enumerate([88.0, 90.0, 92.0])]
    assert row_of(page(runs), "ssdkd")["last"] == "**90.00 ± 2.00 (3)**"
    assert row_of(page(runs[:2]), "ssdkd")["last"] == "89.00 ± 1.41 (2)"  # in bold only what has a rank
    assert row_of(page(runs[:1]), "ssdkd")["last"] == "88.00 (1)"


@pytest.mark.parametrize("digests", [("new", "c1"), ("m1", "new")])
def test_a_record_of_other_code_or_configuration_is_stale(record, digests):
    runs = [record("ssdkd", 95.0), *seeds(record, "fast-10", 90.0)]
    current = {Run.of(runs[0]).cell: digests, Run.of(runs[1]).cell: ("m1", "c1")}
    text = page(runs, current=current)
    row = row_of(text, "ssdkd")
    assert (row["status"], row["#"]) == ("stale", "–")
    assert "Stale: " in text
    assert (row_of(text, "fast-10")["status"], row_of(text, "fast-10")["#"]) == ("ok", "1")


@pytest.mark.parametrize("status", ["diverged", "failed", "partial"])
def test_what_did_not_finish_stands_last_without_a_rank(record, status):
    rows = rows_of(page([record("broken", 99.0, status=status), *seeds(record, "ssdkd", 50.0)]))
    assert [(row["#"], row["method"], row["last"], row["status"]) for row in rows] == [
        ("1", "ssdkd", "**50.00 ± 0.10 (3)**", "ok"),
        ("–", "broken", "–", status),
    ]


def test_a_row_whose_method_was_not_confined_is_marked(record):
    loose, tight = record("ssdkd", 91.0, seed=1), record("fast-5", 90.0)
    loose["provenance"]["isolation"], tight["provenance"]["isolation"] = "audit-hook", "landlock"
    text = page([record("ssdkd", 91.0), loose, tight])
    assert row_of(text, "ssdkd")["isolation"] == "audit-hook" and row_of(text, "fast-5")["isolation"] == "–"
    assert "| isolation" not in page([tight, record("ssdkd", 91.0)])


def test_custom_records_have_no_place(record):
    assert "tinkered" not in page([record("tinkered", custom=True), record("ssdkd")])


def printed(text, method):
    """The row of a method in the table of what papers print."""
    (table,) = re.findall(r"#### wrn40_2 → wrn16_1, papers\n\n((?:^\|.*\n)+)", text, re.MULTILINE)
    (row,) = [row for row in parsed(table) if row["method"].strip("*") == method]
    return row


def test_the_primary_row_is_joined_and_compared_with_the_oracle(record):
    rows = [published("ssdkd", 91.0, primary="no", source="Other (2025)"), published("ssdkd", 90.5)]
    text = page([record("ssdkd", 89.0, 90.0)], rows)
    row = printed(text, "ssdkd")
    assert (row["paper"], row["ours"], row["ours − paper"]) == ("90.50 [Fast]", "90.00 (1)", "−0.50")
    assert row["verdict"] == "matches"  # within half a point
    assert "- [Fast] Fast (AAAI 2022), Table 1. <https://example.org/paper>" in text
    assert "Other (2025)" not in text


@pytest.mark.parametrize(
    ("scores", "verdict"),
    [
        ([90.4], "matches"),
        ([89.4], "below"),
        ([91.1], "above"),
        ([89.0, 91.0], "matches"),  # within two standard deviations, 2.83
        ([88.9, 89.1], "below"),
    ],
)
def test_a_number_matches_within_half_a_point_or_two_deviations(record, scores, verdict):
    runs = [record("ssdkd", score, seed=seed) for seed, score in enumerate(scores)]
    assert printed(page(runs, [published("ssdkd", 90.0)]), "ssdkd")["verdict"] == verdict


def test_every_pair_and_method_of_a_papers_table_stands_there_run_or_open(record):
    runs = [record("fast-10", 89.0)]
    places = papers.places(gathered(runs), [published("dafl", 65.71)], {Run.of(runs[0])}, lambda run: 7200.0)
    spanned = {name: table for name, table in tables().items() if "paper" in table.protocols}
    assert set(places) == {data for table in spanned.values() for data in table.data}
    for table in spanned.values():
        protocol = table.protocols["paper"]
        for data in table.data:
            assert list(places[data]) == list(protocol.pairs)
            for pair in places[data].values():
                assert [place.cell.method for place in pair][: len(protocol.recipes)] == list(protocol.recipes)
    found = {place.cell.method: place for place in places["cifar10"]["wrn40_2-wrn16_1"]}
    assert (found["fast-10"].open, found["ssdkd"].open, found["ssdkd"].seconds) == (2, 3, 7200.0)
    recipes = tables()["cifar10"].protocols["paper"].recipes
    assert found["dafl"].quoted.value == 65.71 and found["dafl"].spanned is ("dafl" in recipes)
    text = render(runs, [published("ssdkd", 90.0)])["tables/cifar10.md"]
    assert (printed(text, "ssdkd")["ours"], printed(text, "ssdkd")["paper"]) == ("open", "90.00 [Fast]")
    assert printed(text, "cmi")["verdict"] == "no reference"


def test_two_sources_of_one_name_have_two_tags(record):
    """Numbered as the table lists its recipes."""
    rows = [published("cmi", 80.0), published("ssdkd", 90.0, source="Fast (AAAI 2022), Table 7", verified="no")]
    text = page([record("ssdkd"), record("cmi")], rows)
    assert printed(text, "cmi")["paper"] == "80.00 [Fast]"
    assert printed(text, "ssdkd")["paper"] == "90.00 [Fast 2]†"
    assert "- [Fast 2] Fast (AAAI 2022), Table 7." in text


def test_a_suspect_number_is_shown_with_its_note_and_nothing_is_measured_by_it(record):
    rows = [published("kd-real", 95.2, note="suspect: a copying error")]
    text = page([record("kd-real", reference=True)], rows)
    row = printed(text, "kd-real")
    assert (row["paper"], row["verdict"], "ours − paper" in row) == ("95.20 [Fast]\\*", "no reference", False)
    assert "\\* `kd-real`: suspect: a copying error" in text


@pytest.mark.parametrize("data", [{"changed": CHANGED}, {"changed": None, "subset": True}])
def test_nothing_is_measured_by_published_numbers_on_changed_data(record, data):
    text = page([record("ssdkd", **data)], [published("ssdkd", 90.5)])
    row = printed(text, "ssdkd")
    assert (row["verdict"], "ours − paper" in row) == ("other data", False)
    assert "`other data`: a subset" in text
    if data["changed"]:
        assert f"- Data: {CHANGED}" in text


def test_published_numbers_compare_where_only_training_images_changed(record):
    text = page([record("ssdkd", changed=CHANGED, test_changed=False)], [published("ssdkd", 90.5)])
    assert printed(text, "ssdkd")["verdict"] == "matches"


def test_published_numbers_belong_to_the_paper_protocol(record):
    files = render([record("ssdkd", protocol="cpu")], [published("ssdkd", 90.5)])
    assert "90.50" not in files["LEADERBOARD.md"]
    assert printed(files["tables/cifar10.md"], "ssdkd")["ours"] == "open"


def test_ranks_are_groups_and_three_seeds_make_one(record):
    runs = seeds(record, "best", 90.0) + seeds(record, "worse", 80.0)
    runs += [record("as-good", last, seed=seed) for seed, last in enumerate([90.2, 89.6, 89.9])]
    runs += [record("lone", 85.0)]
    text = page(runs)
    ranks = [(row["#"], row["method"]) for row in rows_of(text)]
    assert ranks == [("1", "best"), ("1", "as-good"), ("–", "lone"), ("3", "worse")]
    assert "- No rank, for want of 3 seeds: `lone` (1)\n" in text
    assert "best, as-good" in text.split("## ")[0]
    assert re.search(r"\| as-good +\| +1\.00 \| +1 \| +1 \|", text)  # mean rank over tables


def test_an_ablation_stands_below_its_method_without_a_rank(record):
    runs = seeds(record, "ssdkd", 90.0) + seeds(record, "fast-10", 85.0) + seeds(record, "ssdkd-no-phi", 95.0)
    ablation = Run.of(runs[-1]).cell
    text = page(runs, ablations={ablation: "ssdkd"})
    ranks = [(row["#"], row["method"]) for row in rows_of(text)]
    assert ranks == [("1", "ssdkd"), ("abl", "↳ ssdkd-no-phi"), ("2", "fast-10")]


def test_time_to_nine_tenths_of_real_data_retention_and_the_frontier(record):
    runs = [record("kd-real", 100.0, reference=True), record("slow", 92.0, 93.0, synthesis=500.0)]
    runs += [record("poor", 80.0, synthesis=10.0), record("bad", 70.0, synthesis=600.0)]
    rows = {row["method"]: row for row in rows_of(page(runs))}
    assert [rows[name]["to 90%"] for name in ("slow", "poor")] == ["5 m 30 s", "–"]
    assert [rows[name]["Pareto"] for name in ("slow", "poor", "bad")] == ["●", "●", "–"]
    assert rows["slow"]["retention"] == "97.0 %"  # of the teacher's 94.87


def test_each_class_of_hardware_has_its_own_times(record):
    runs = [
        record("ssdkd", 90.0, synthesis=10.0, hardware="CPU 2 cores"),
        record("ssdkd", 92.0, synthesis=2.0, seed=1, hardware="NVIDIA H200"),
    ]
    text = page(runs)
    first, second = rows_of(text)
    assert [row["method"] for row in parts_of(text)["wrn40_2 → wrn16_1"][1][0]] == ["ssdkd"]
    assert (first["synthesis"], first["hardware"]) == ("10.0 s", "CPU 2 cores (1 seed)")
    assert (second["synthesis"], second["hardware"]) == ("2.0 s", "NVIDIA H200 (1 seed)")
    assert first["last"] == "91.00 ± 1.41 (2)" and "last" not in second
    assert "compare times and memory only between rows of one class" in text


def test_one_class_of_hardware_needs_no_warning(record):
    assert "Several classes" not in page([record("ssdkd")])


def test_a_method_that_declines_gives_its_reason(record):
    declined = record("diffdfkd", status="unsupported") | {"error": "needs 64 pixels"}
    elsewhere = record("dda", data="nyuv2", status="unsupported") | {"error": "no such table"}
    text = page([record("ssdkd"), declined, elsewhere])
    assert row_of(text, "diffdfkd")["status"] == "n/a"
    assert "- `diffdfkd` does not apply: needs 64 pixels\n" in text
    assert "no such table" not in text


def test_miou_is_a_fraction_with_three_decimals(record):
    text = page([record("ssdkd", 0.3841, data="nyuv2", metric="miou")])
    assert row_of(text, "ssdkd")["last"] == "0.384 (1)"


def test_a_bar_in_a_text_does_not_break_the_table(record):
    text = page([record(prior={"kind": "a|b", "trained_on": None, "digest": None})])
    assert "a\\|b" in text


def test_what_is_paid_once_per_teacher_stands_apart_in_every_row_of_such_a_table(record):
    runs = [record("diffdfkd", 90.0, prior=prior(), shared=60.0), record("ssdkd", 80.0)]
    runs += [record("kd-real", 92.0, reference=True, synthesis=0.0), record("ssdkd", protocol="cpu")]
    text = page(runs)
    columns = ("total", "once per teacher", "per student")
    assert {row["method"]: tuple(row[column] for column in columns) for row in rows_of(text)} == {
        "*kd-real*": ("10 m 02 s", "0 s", "10 m 02 s"),
        "diffdfkd": ("2 h 11 m", "2 h 01 m", "10 m 02 s"),
        "ssdkd": ("11 m 02 s", "0 s", "11 m 02 s"),
    }
    assert "per student" not in row_of(text, "ssdkd", "cpu")
    assert re.search(r"\| per student +\| the rest of", text)


def test_a_shared_stage_alone_makes_the_columns_too(record):
    row = row_of(page([record("dda", shared=40.0)]), "dda")
    assert (row["once per teacher"], row["per student"]) == ("40.0 s", "10 m 22 s")
    assert "once per teacher" not in page([record("dda", shared=0.0)])


def test_each_class_of_hardware_has_its_own_time_per_student(record):
    runs = [record("dda", shared=40.0, hardware="CPU"), record("dda", seed=1, shared=10.0, hardware="GPU")]
    assert [row["once per teacher"] for row in rows_of(page(runs))] == ["40.0 s", "10.0 s"]


def test_a_row_that_was_disturbed_says_by_how_much(record):
    disturbed, quiet, older = record("dda"), record("fast-10"), record("ssdkd")
    disturbed["provenance"]["others"], quiet["provenance"]["others"] = 0.84, 0.15
    text = page([disturbed, quiet, older])
    assert [row_of(text, name)["others"] for name in ("dda", "fast-10", "ssdkd")] == ["0.8", "–", "–"]
    assert "others" not in page([quiet, older])


def test_the_prior_is_named_in_its_row_and_described_once_below(record):
    runs = [record("diffdfkd", 90.0, prior=prior()), record("dda", 80.0, prior=prior())]
    runs += [record("fast-10", 70.0), record("fast-10", protocol="cpu")]
    text = page(runs)
    assert [row["prior"] for row in rows_of(text)] == ["public32", "public32", "none"]
    note = "- Prior `public32` (imported), trained on: 7,500 images; its training took 2 h 00 m\n"
    assert text.count(note) == 1
    assert "7,500 images" not in text.split("### cpu")[1]


def test_difficulty_and_histograms_stand_where_a_record_has_them(record):
    found = diagnostics() | {"confidence": [0.2, 0.8], "difficulty": 0.1234}
    text = page([record("ssdkd", diagnostics=found), record("older", 80.0, diagnostics=diagnostics())])
    assert [row["difficulty"] for row in described(text)] == ["0.123", "–"]
    assert "(plots/cifar10-paper-images.png)" in text
    text = page([record("older", 80.0, diagnostics=diagnostics())])
    assert "difficulty" not in described(text)[0] and "-images.png" not in text


def test_what_the_images_are_like_is_told_of_methods_in_the_order_of_their_ranks(record):
    runs = [record("worse", 80.0, diagnostics=diagnostics(), config_digest="old")]
    runs += [record("better", 90.0, diagnostics=diagnostics(None, [0.1, 0.2, 0.7], None, 1234.5))]
    runs += [record("silent", 95.0), record("kd-noise", reference=True, diagnostics=diagnostics())]
    text = page(runs, current={Run.of(runs[0]).cell: ("m1", "c1")})
    better, worse = described(text)
    assert better == {
        "method": "better",
        "images": "2,880",
        "agreement": "–",
        "rarest class": "10.0 %",
        "commonest class": "70.0 %",
        "diversity": "–",
        "Fréchet": "1,234",
        "samples": "[grid](plots/samples/cifar10/paper/wrn40_2-wrn16_1-better.png)",
    }
    assert (worse["method"], worse["agreement"], worse["Fréchet"]) == ("worse (stale)", "90.0 %", "2.5")
    table = render(runs)["tables/cifar10.md"]
    assert "[grid](../plots/samples/cifar10/paper/wrn40_2-wrn16_1-better.png)" in table
    assert "## Synthetic images" in text


def test_without_diagnostics_of_a_method_there_is_no_such_table_and_no_legend(record):
    text = page([record("ssdkd"), record("kd-noise", reference=True, diagnostics=diagnostics())])
    assert "synthetic images" not in text.lower()


def test_the_numbers_that_a_method_reports_are_a_note(record):
    runs = [
        record("dda", report={"kept": 0.7123, "bank": 12800.0, "refreshes": 3.0}),
        record("cmi", report={}),
    ]
    text = page(runs)
    said = "- `dda` reports of itself, as its page in docs/methods says: bank 12,800, kept 0.712, refreshes 3\n"
    assert said in text
    assert "`cmi`," not in text


def test_no_records_is_a_page_too():
    files = render([])
    assert list(files) == ["LEADERBOARD.md"]
    assert "No records yet" in files["LEADERBOARD.md"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *[(0, "0 s"), (8.44, "8.4 s"), (59.94, "59.9 s"), (59.96, "1 m 00 s"), (252, "4 m 12 s")],
        *[(3599.6, "1 h 00 m"), (3900, "1 h 05 m"), (86399, "1 d 00 h"), (183600, "2 d 03 h")],
        *[(863_000, "10 d"), (104_025_600, "1,204 d")],
    ],
)
def test_durations(seconds, text):
    assert units.duration(seconds) == text


def test_what_is_to_run_sorts_by_its_time():
    assert units.magnitude("3 × 2 d 03 h") == 3 * 183_600 < units.magnitude("1 × 1,204 d")
    assert units.magnitude("3 × –") == 0.0


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A folder of results without a record, the table of digits apart."""
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    head = "data,teacher,student,method,metric,value,source,url,verified,primary,note\n"
    paths.published().write_text(head)
    return tmp_path


def test_write_is_idempotent_and_check_notices_an_edit(record, results):
    for made in (record("ssdkd"), record("fast-10", protocol="cpu")):
        records.write(made, paths.records())
    written = {path.relative_to(results).as_posix() for path in report.write()[0]}
    plots = {f"plots/cifar10-{name}.png" for name in ("cpu", "cpu-curves", "paper", "paper-curves")}
    assert written >= {"LEADERBOARD.md", "CLAIMS.md", "all.csv", "cells.csv", "tables/cifar10.md"} | plots
    assert report.write() == ([], [])
    assert report.check() == ([], [])

    for name in ("tables/cifar10.md", "all.csv"):
        (results / name).write_text((results / name).read_text() + "by hand\n")
    (results / "tables" / "orphan.md").write_text("of a data set without records\n")
    (results / "plots" / "cifar10-cpu.png").unlink()
    differing = ["all.csv", "tables/cifar10.md", "tables/orphan.md", "plots/cifar10-cpu.png"]
    assert report.check() == (differing, [])
    report.write()
    assert report.check() == ([], [])
    assert not (results / "tables" / "orphan.md").exists()


def test_the_table_of_one_data_set_is_one_file(record, results):
    for data in ("cifar10", "cifar100"):
        records.write(record(data=data), paths.records())
    assert report.write("cifar100") == ([results / "tables" / "cifar100.md"], [])
    assert report.write("cifar100") == ([], [])
    assert report.check("cifar100") == ([], [])
    assert report.check("cifar10") == (["tables/cifar10.md"], [])


def test_all_records_stand_in_one_tidy_file(record, results):
    made = [
        record("ssdkd", seed=1, report={"kept": 0.25}),
        record("ssdkd", diagnostics=diagnostics(classes=[0.1, 0.9])),
    ]
    made += [record("cmi", status="unsupported", changed='line one\nline, "two"'), record("dda", status="failed")]
    for each in made:
        records.write(each, paths.records())
    report.write()
    text = (results / "all.csv").read_text()
    assert "\ncifar10,wrn40_2,wrn16_1,ssdkd,paper,0,1,ok,False,False,top1,90.0,90.0,94.87," in text
    read = pandas.read_csv(results / "all.csv")
    assert list(read.columns[:6]) == ["data", "teacher", "student", "method", "protocol", "seed"]
    assert list(zip(read["method"], read["seed"], read["status"], strict=True)) == [
        *(("cmi", 0, "unsupported"), ("dda", 0, "failed"), ("ssdkd", 0, "ok"), ("ssdkd", 1, "ok"))
    ]
    assert read["provenance.data.changed"][0] == 'line one\nline, "two"'
    assert list(read["diagnostics.largest"].dropna()) == [0.9] and list(read["report.kept"].dropna()) == [0.25]
    assert read["stale"].all()  # no code has the digest m1
    assert (read["time.total"] == 664.0).all() and read["cost.peak_memory_bytes"].dtype == int


def test_two_thousand_records_stand_in_fifty_tables(results):
    place(*two_thousand())
    rendered = report.render()
    assert len(rendered.found.records) == 2000 and not rendered.found.problems
    assert len(rendered.pairs) == 50 and all(row.rank for rows in rendered.pairs for row in rows[1:])


@pytest.mark.slow
def test_two_thousand_records_and_all_their_figures_take_less_than_a_gibibyte(results):
    """For the time they take see benchmarks/speed/test_report.py."""
    place(*two_thousand())
    code = "import sys; from pathlib import Path; from dfkd import paths, report; paths.RESULTS = Path(sys.argv[1]); "
    code += "report.write(); from tests.records.conftest import peak; print(peak())"
    said = subprocess.check_output([sys.executable, "-c", code, results], cwd=paths.ROOT, text=True)
    assert len(list((results / "plots").glob("*.png"))) == 20
    assert int(said.split()[-1]) < 2**30


def test_what_all_rows_have_in_common_is_said_once(record):
    text = page([record("ssdkd", 90.0), record("fast-10", 80.0)])
    said, (results, costs) = parts_of(text)["wrn40_2 → wrn16_1"]
    assert said == {"teacher": "94.87", "status": "ok", "hardware": "NVIDIA H200"}
    assert not {"pair", *said} & {*results[0], *costs[0]}
    said, (results, costs) = parts_of(page([record("ssdkd"), record("cmi", status="diverged", hardware="CPU")]))[
        "wrn40_2 → wrn16_1"
    ]
    assert said == {"teacher": "94.87"}
    assert [row["status"] for row in results] == ["ok", "diverged"]
    assert [row["hardware"] for row in costs] == ["NVIDIA H200", "CPU"]


def test_tables_stand_in_the_order_of_the_definition(record):
    """Protocols and pairs as the table lists them, what it does not know at the end."""
    runs = [record(protocol=name) for name in ("cpu", "gone", "paper", "scaled", "another")]
    runs += [record(teacher=teacher, student="resnet18") for teacher in ("vgg11", "resnet34")]
    runs += [record(data=data, protocol="quick") for data in ("unknown", "digits", "cifar100")]
    text = page(runs)
    assert re.findall(r"^## (\w+)$", text, re.MULTILINE)[:4] == ["cifar10", "cifar100", "digits", "unknown"]
    assert re.findall(r"^### (\w+)$", text, re.MULTILINE)[:5] == ["paper", "scaled", "cpu", "another", "gone"]
    assert list(parts_of(text)) == ["resnet34 → resnet18", "vgg11 → resnet18", "wrn40_2 → wrn16_1"]
    assert (
        "## cifar10\n\nCIFAR-10, 32×32, ten classes.\n\n### paper\n\nTop-1 accuracy in percent. The published" in text
    )


def test_a_table_is_no_wider_than_a_page(record):
    """As a reader sees it, at about eight pixels a character: long names, several seeds, all columns."""
    model = prior("stable-diffusion-v1-5", "LAION-5B", origin="foreign", seconds=36_000)
    table = {"seed": 0, "diagnostics": diagnostics(), "teacher": "deeplabv3plus_mobilenetv2", "hardware": "NVIDIA H200"}
    runs = [
        record("diffdfkd-unguided", 90.0 + seed, prior=model, shared=100.0, **table | {"seed": seed})
        for seed in range(3)
    ]
    runs += [record("student-real", reference=True, **table)]
    text = page(runs, [published("diffdfkd-unguided", 90.0) | {"teacher": "deeplabv3plus_mobilenetv2"}])
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        shown = [
            [re.sub(r"\]\(\S*\)|[`*\[]", "", cell) for cell in row]
            for row in map(list, map(dict.values, parsed(block)))
        ]
        widths = [max(map(len, column)) for column in zip(list(parsed(block)[0]), *shown, strict=True)]
        assert sum(widths) <= 120, block
