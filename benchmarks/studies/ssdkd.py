"""The search for SSD-KD's reading (docs/methods/ssdkd.md 6): candidates by the command line, and what they measured.

    python benchmarks/studies/ssdkd.py cifar100 --seed 0,1,2 --reading fast,target,target-no-priority

runs what is missing (custom runs, below work/studies/ssdkd, two at a time) and prints a line for each reading: mean and
standard deviation over the seeds. Without --reading it prints what there is.
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
SMALL = {"ngf": 32}  # a generator that one core can afford
BUDGETS: dict[str, tuple[str, dict]] = {  # protocol, and what is set besides
    "digits": (
        "quick",
        SMALL | {"bn": 1.0, "warmup": 20, "training.steps": 400, "rounds": 20, "synthesis_batch": 64},
    ),
    "cifar100": ("cpu", SMALL | {"training.steps": 2400, "rounds": 48, "synthesis_batch": 128, "evaluations": 6}),
}
FAST = {"digits": "fast-5", "cifar100": "fast-10"}  # as many inner steps as the recipe of SSD-KD has there
CAPACITY = {"digits": 256, "cifar100": 1024}
QUARTER = {"digits": 100, "cifar100": 576}  # of the student steps, over as many rounds: `target-quarter`
# Readings of what the paper leaves open; each is measured whole, and without one of its three components at a time.
BASES: dict[str, dict] = {
    "argmax": {"phi_of": "argmax"},
    "argmax-normalised": {"phi_of": "argmax", "normalised": True},
    "target": {},
    "normalised": {"normalised": True},
    "adv": {"phi_on": "adv"},
    "oh+adv": {"phi_on": "oh+adv"},
    "average": {"count": "average"},
    "grad": {"phi_grad": True},
    "max": {"importance": "max"},
    "per": {"priority": "per"},
    "kd-loss": {"phi_kd": "loss"},
    "kd-priority": {"phi_kd": "priority"},
    "lowest": {"replace": "lowest"},
    "unweighted": {"beta": 0.0},
}
WITHOUT: dict[str, dict] = {
    "diversity": {"diversity": False},
    "difficulty": {"difficulty": False},
    "priority": {"priority": "uniform"},
}
DEFAULT = {"phi_of": "target", "normalised": False, "importance": "raw"}
# By reading: what differs from the arguments of the recipe `ssdkd`, or of Fast's.
READINGS: dict[str, dict] = {"fast": {}} | {
    f"{name}-no-{part}" if part else name: {**DEFAULT, **base, **WITHOUT.get(part, {})}
    for name, base in BASES.items()
    for part in ("", *WITHOUT)
}
# The reading that was given up, with the weights of prioritised replay.
READINGS["ssdkd-argmax"] = {**DEFAULT, "phi_of": "argmax", "importance": "max"}
READINGS["target-no-phi"] = {**DEFAULT, "diversity": False, "difficulty": False}
READINGS["bounded"] = {**READINGS["target-no-phi"], "priority": "uniform"}  # Fast with a buffer of this capacity
READINGS |= {f"target-{capacity}": {**DEFAULT, "capacity": capacity} for capacity in (5000, 2500, 640, 500, 128, 64)}
READINGS |= {"target-quarter": DEFAULT, "fast-quarter": {}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=BUDGETS)
    parser.add_argument("--seed", default="0")
    parser.add_argument("--reading", default="", help="with commas; none: only print")
    given = parser.parse_args()
    for name in filter(None, given.reading.split(",")):
        protocol, budget = BUDGETS[given.data]
        fast = name.startswith("fast")
        changes = budget | ({} if fast else {"capacity": CAPACITY[given.data]}) | READINGS[name]
        if name.endswith("-quarter"):
            changes |= {"training.steps": QUARTER[given.data]}
        options = [f"--data={given.data}", f"--protocol={protocol}", "--pair=resnet20-resnet8", f"--seed={given.seed}"]
        options += [f"--method={FAST[given.data] if fast else 'ssdkd'}", "--jobs=2", "--resume"]
        options += [f"--out={FOLDER / name}", *(f"--set={key}={str(to).lower()}" for key, to in changes.items())]
        subprocess.run([sys.executable, ROOT / "bench.py", "run", *options], cwd=ROOT, check=True)
    print("| reading | seeds | last | imbalance | difficulty | agreement | total time |")
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
    cells += [mean([imbalance(each) for each in images], ".2f"), mean([each["difficulty"] for each in images], ".3f")]
    cells += [mean([100 * each["agreement"] for each in images], ".0f") + " %"]
    return "| " + " | ".join([*cells, mean([record["time"]["scored"] for record in done], ".0f") + " s"]) + " |"


def imbalance(images: dict) -> float:
    """The classes' standard deviation over their mean, less what chance gives as many images of random classes.

    Squares are subtracted; a set that is more even than chance has 0.
    """
    shares = images["classes"]
    chance = (len(shares) - 1) / images["images"]
    return max(0.0, (statistics.pstdev(shares) * len(shares)) ** 2 - chance) ** 0.5


if __name__ == "__main__":
    main()
