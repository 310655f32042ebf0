"""The claim ledger: every verdict, and the rule that makes it."""

from __future__ import annotations

import pytest
import yaml

from dfkd import paths
from dfkd.errors import UserError
from dfkd.report import claims, ledger
from dfkd.report.claims import FAILS, HOLDS, NOT_RUN, UNCLEAR, UNTESTABLE
from dfkd.tables.definition import tables
from tests.records.conftest import gathered

SCORE = {"quantity": "score", "row": "ssdkd", "is": "more", "than": "fast-10"}
TIME = {"quantity": "total", "row": "ssdkd", "is": "less", "than": "fast-10"}


def claim(tmp_path, *comparisons, **changes):
    content = {"paper": "P", "says": "S.", "source": "T", "evidence": "read", "data": ["cifar10"]}
    content |= {"protocols": ["paper", "cpu"], "all": list(comparisons)} | changes
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump({"mine": content}))
    (found,) = claims.read(path)
    return found


def runs(record, method, *scores, **table):
    return [record(method, score, seed=seed, **table) for seed, score in enumerate(scores)]


GOOD, POOR, NOISY = (90.0, 90.2, 90.1), (88.0, 88.3, 88.1), (80.0, 99.0, 92.0)


@pytest.mark.parametrize(
    ("ours", "theirs", "relation", "word"),
    [
        (GOOD, POOR, "more", HOLDS),
        (POOR, GOOD, "more", FAILS),
        (GOOD, NOISY, "more", UNCLEAR),
        (GOOD[:2], POOR, "more", UNCLEAR),
        (GOOD, (90.1, 90.0, 90.2), "no less", HOLDS),  # less by nothing, and by no more than half a point
        (POOR, GOOD, "no less", FAILS),
        (NOISY, GOOD, "no less", UNCLEAR),
        (GOOD, (), "more", NOT_RUN),
    ],
)
def test_scores_are_told_by_the_interval_of_their_difference(record, tmp_path, ours, theirs, relation, word):
    results = gathered(runs(record, "ssdkd", *ours) + runs(record, "fast-10", *theirs))
    verdict = claims.judge(claim(tmp_path, SCORE | {"is": relation}), results)
    assert verdict.word == word
    fewest = min(len(ours), len(theirs))
    reason = f"({'too few seeds' if fewest < 3 else 'within seed noise'}, n = {fewest})"
    assert (reason in ledger.render([verdict])) is (word == UNCLEAR)


@pytest.mark.parametrize(
    ("ours", "theirs", "factor", "word"),
    [
        ([100.0, 120.0], [200.0, 300.0], 1.0, HOLDS),
        ([100.0], [2000.0], 10.0, HOLDS),
        ([100.0], [500.0], 10.0, FAILS),
        ([100.0, 220.0], [200.0, 300.0], 1.0, UNCLEAR),  # runs of both sides overlap
        ([190.0], [200.0], 1.0, UNCLEAR),  # within a tenth
        ([300.0], [100.0], 1.0, FAILS),
    ],
)
def test_times_are_told_run_by_run(record, tmp_path, ours, theirs, factor, word):
    made = [record("ssdkd", synthesis=seconds, seed=seed) for seed, seconds in enumerate(ours)]
    made += [record("fast-10", synthesis=seconds, seed=seed) for seed, seconds in enumerate(theirs)]
    verdict = claims.judge(claim(tmp_path, TIME | {"quantity": "synthesis", "factor": factor}), gathered(made))
    assert verdict.word == word


def test_times_on_other_hardware_tell_nothing(record, tmp_path):
    made = [record("ssdkd", distillation=1.0), record("fast-10", distillation=900.0, hardware="CPU")]
    verdict = claims.judge(claim(tmp_path, TIME), gathered(made))
    assert verdict.word == UNCLEAR and "on other hardware" in ledger.render([verdict])


def test_all_comparisons_must_hold_at_all_pairs_that_were_run(record, tmp_path):
    pair = {"teacher": "wrn40_2", "student": "wrn40_1"}
    made = runs(record, "ssdkd", *GOOD) + runs(record, "fast-10", *POOR)
    both = claim(tmp_path, SCORE, TIME)
    assert claims.judge(both, gathered(made)).word == UNCLEAR  # equal times
    verdict = claims.judge(claim(tmp_path, SCORE), gathered(made))
    assert (verdict.word, verdict.places[HOLDS], verdict.places[NOT_RUN]) == (HOLDS, 1, 4)
    noisy = made + runs(record, "ssdkd", *NOISY, **pair) + runs(record, "fast-10", *GOOD, **pair)
    assert claims.judge(claim(tmp_path, SCORE), gathered(noisy)).word == UNCLEAR
    worse = made + runs(record, "ssdkd", *POOR, **pair) + runs(record, "fast-10", *GOOD, **pair)
    assert claims.judge(claim(tmp_path, SCORE), gathered(worse)).word == FAILS


def test_what_is_stale_is_shown_and_tells_nothing(record, tmp_path):
    made = runs(record, "ssdkd", *GOOD) + runs(record, "fast-10", *POOR)
    old = {gathered(made[:1])[0].cell: ("new", "c1")}
    verdict = claims.judge(claim(tmp_path, SCORE), gathered(made, old))
    text = ledger.render([verdict])
    assert verdict.word == NOT_RUN and "90.10 ± 0.10 (3) (stale)" in text and "+1.97" in text


def test_another_teacher_tells_nothing(record, tmp_path):
    made = runs(record, "ssdkd", *GOOD) + runs(record, "fast-10", *POOR)
    for run in made[:3]:
        run["provenance"]["teacher"]["digest"] = "another"
    assert claims.judge(claim(tmp_path, SCORE), gathered(made)).word == NOT_RUN


def test_the_first_protocol_with_records_decides(record, tmp_path):
    small = {"protocol": "cpu", "teacher": "resnet20", "student": "resnet8"}
    made = runs(record, "ssdkd", *POOR, **small) + runs(record, "fast-10", *GOOD, **small)
    verdict = claims.judge(claim(tmp_path, SCORE), gathered(made))
    assert (verdict.word, verdict.protocol) == (FAILS, "cpu")
    assert "[0](records/cifar10/resnet20-resnet8/ssdkd/cpu-seed0.json)" in ledger.render([verdict])
    made += runs(record, "ssdkd", *GOOD) + runs(record, "fast-10", *POOR)
    assert claims.judge(claim(tmp_path, SCORE), gathered(made)).protocol == "paper"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"data": ["no-such"]}, "no-such: there is no such table"),
        ({"data": ["digits"], "protocols": ["cpu"]}, "digits: the table has no protocol cpu"),
        ({"all": [SCORE | {"than": "no-such"}]}, "cifar10: there is no recipe no-such"),
        (
            {"data": ["digits"], "protocols": ["quick"], "all": [SCORE | {"than": "fast-2"}]},
            "digits: the table does not ask for fast-2",
        ),
    ],
)
def test_what_no_table_asks_for_is_not_testable_and_says_why(tmp_path, changes, reason):
    verdict = claims.judge(claim(tmp_path, SCORE, **changes), [])
    assert verdict.word == UNTESTABLE and verdict.untested == (reason,)
    assert f"- Not testable on {reason}" in ledger.render([verdict])


def test_a_claim_that_some_tables_can_test_names_those_that_cannot(record, tmp_path):
    made = runs(record, "ssdkd", *GOOD) + runs(record, "fast-10", *POOR)
    asked = claim(tmp_path, SCORE, data=["cifar10", "digits", "no-such", "nor-this"])
    verdict = claims.judge(asked, gathered(made))
    assert verdict.word == HOLDS
    assert verdict.untested == (
        "digits: the table has no protocol paper or cpu",
        "no-such, nor-this: there is no such table",
    )


def test_protocols_in_which_no_table_asks_for_the_rows_are_said_to_be_by_hand(tmp_path):
    asked = claim(tmp_path, SCORE | {"row": "ssdkd-no-phi", "than": "ssdkd"})
    text = ledger.render([claims.judge(asked, [])])
    assert "- On cifar10 under `cpu`, `paper` (by hand: no table asks for all the rows)\n" in text
    assert "- On cifar10 under `paper`, `cpu`\n" in ledger.render([claims.judge(claim(tmp_path, SCORE), [])])


def test_every_claim_can_be_tested_wherever_it_is_said_to_be():
    untested = {verdict.claim.name: verdict.untested for verdict in claims.judged([])}
    assert untested and not any(untested.values()), {name: each for name, each in untested.items() if each}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"evidence": "rumour"}, "mine.evidence: unknown value 'rumour'"),
        ({"all": []}, "mine.all: "),
        ({"all": [SCORE | {"is": "less"}]}, "mine.all.0.is: unknown value 'less'"),
        ({"all": [TIME | {"factor": 0}]}, "mine.all.0.factor: "),
        ({"all": [SCORE | {"quantity": "beauty"}]}, "mine.all.0.quantity: unknown value 'beauty'"),
        ({"says": ""}, "mine.says: "),
    ],
)
def test_a_broken_claim_is_named_with_its_key(tmp_path, changes, reason):
    with pytest.raises(UserError) as caught:
        claim(tmp_path, SCORE, **changes)
    assert str(caught.value).startswith(f"{tmp_path / 'claims.yaml'}: {reason}") and "\n" not in str(caught.value)


ASKED = [
    "ssdkd-time",
    "ssdkd-ten-percent",
    "ssdkd-phi",
    "ssdkd-priority",
    "ssdkd-beats-real",
    "ssdkd-nyuv2",
    "diffdfkd-guidance",
    "diffdfkd-cutmix",
    "diffdfkd-msarc",
    "diffdfkd-fast",
    "diffdfkd-domain-gap",
    "dda-variants",
    "dda-filter",
    "dda-cmi",
    "fast-meta",
    "fast-steps",
    "fast-time",
    "cmi-deepinv",
]


def test_every_headline_claim_is_in_the_ledger_with_its_source():
    found = {each.name: each for each in claims.read()}
    assert set(ASKED) <= set(found)
    for name in ("ssdkd-time", "ssdkd-ten-percent", "fast-time"):  # budgets are equal there by design
        assert "cpu" not in found[name].protocols
    for each in found.values():
        assert any(f"{page.stem}.md" in each.source for page in (paths.ROOT / "docs" / "methods").glob("*.md"))


def test_some_table_asks_for_all_rows_of_every_claim():
    owners = {data: table for table in tables().values() for data in table.data}
    for each in claims.read():
        assert set(each.data) <= owners.keys(), each.name
        protocols = [protocol for data in each.data for protocol in owners[data].protocols.values()]
        asked = [protocol.recipes for protocol in protocols if protocol.name in each.protocols]
        assert any(set(each.rows) <= set(recipes) for recipes in asked), each.name
