"""The numbers in the README are those of the records."""

import json
import re
from pathlib import Path
from statistics import mean, stdev

ROOT = Path(__file__).parents[2]
CELLS = ROOT / "results" / "records" / "cifar10" / "resnet20-resnet8"
# On which the minutes were taken.
PROCESSOR = "Intel(R) Xeon(R) Processor (AVX512), 1 thread, bf16"
# The last recipe that a row of the table names, then its score and its minutes.
ROW = re.compile(r"^\| .*?(teacher|`[^|]+`).*\| (\d+\.\d\d[^|]*) \| (\d+|–) \|$", re.MULTILINE)


def measured(recipe: str) -> tuple[str, str]:
    """The score, a mean over seeds with deviation and number, and the minutes of seed 0: others may have run on another
    processor."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((CELLS / recipe).glob("cpu-seed*.json"))]
    assert records[0]["provenance"]["hardware"]["class"] == PROCESSOR
    minutes = round(records[0]["time"]["scored"] / 60)
    scores = [record["metrics"]["last"] for record in records]
    spread = f" ± {stdev(scores):.2f}" if len(scores) > 1 else ""
    return f"{mean(scores):.2f}{spread} ({len(scores)})", str(minutes or "–")


def test_scores_and_times_are_those_of_the_records():
    rows = ROW.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    shown = {re.findall(r"[\w-]+", names)[-1]: (score, minutes) for names, score, minutes in rows}
    assert len(shown) > 8, "the pattern finds what there is"
    assert shown == {recipe: measured(recipe) for recipe in shown}
