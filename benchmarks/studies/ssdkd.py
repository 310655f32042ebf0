"""The search for SSD-KD's reading (docs/methods/ssdkd.md 6): candidates by the command line, and what they measured.

    python benchmarks/studies/ssdkd.py cifar100 --seed 0,1,2 --reading fast,target,target-uniform

runs what is missing (custom runs, below work/studies/ssdkd) and prints a line for each reading: mean and standard
deviation over the seeds. Without --reading it prints what there is.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from dfkd import records  # noqa: E402

FOLDER = ROOT / "work" / "studies" / "ssdkd"
# Budgets at which a cell takes minutes on one core and most images get the class they were made for.
BUDGETS = {
    "digits": ["--protocol=quick"],
    "cifar100": ["--protocol=cpu", "--precision=bf16", "--set=training.steps=750", "--set=rounds=25", "--set=ngf=32"],
}
ARGMAX = ["phi_of=argmax", "normalised=false"]
NO_PHI = ["diversity=false", "difficulty=false"]
# By reading: the recipe and what differs from its arguments.
READINGS: dict[str, tuple[str, list[str]]] = {
    "fast": ("fast-10", []),
    "target": ("ssdkd", []),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=BUDGETS)
    parser.add_argument("--seed", default="0")
    parser.add_argument("--reading", default="", help="with commas; none: only print")
    given = parser.parse_args()
    for name in filter(None, given.reading.split(",")):
        recipe, changes = READINGS[name]
        options = [f"--data={given.data}", f"--method={recipe}", f"--seed={given.seed}", f"--out={FOLDER / name}"]
        options += [*BUDGETS[given.data], *(f"--set={change}" for change in changes)]
        subprocess.run([sys.executable, ROOT / "bench.py", "run", *options], cwd=ROOT, check=True)
    print("| reading | seeds | last | classes, rarest–commonest | difficulty | agreement | total time |")
    for name in READINGS:
        found = records.read_all(FOLDER / name, f"{given.data}/*/*/*.json").records
        if done := [record for record in found if record["status"] == "ok"]:
            print(line(name, done))


def line(name: str, done: list[dict]) -> str:
    """A row of the table: means over the seeds."""

    def mean(values: list[float], form: str) -> str:
        spread = f" ± {statistics.stdev(values):{form}}" if len(values) > 1 else ""
        return f"{statistics.mean(values):{form}}{spread}"

    images = [record["diagnostics"] for record in done]
    cells = [name, str(len(done)), mean([record["metrics"]["last"] for record in done], ".1f")]
    shares = [statistics.mean(choose(each["classes"]) for each in images) for choose in (min, max)]
    cells += [
        "–".join(f"{100 * share:.2f} %" for share in shares),
        mean([each["difficulty"] for each in images], ".3f"),
    ]
    cells += [mean([100 * each["agreement"] for each in images], ".0f") + " %"]
    return "| " + " | ".join([*cells, mean([record["time"]["scored"] for record in done], ".0f") + " s"]) + " |"


if __name__ == "__main__":
    main()
