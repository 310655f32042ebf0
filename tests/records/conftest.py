"""Hand-made records: the smallest that the schema accepts, with what a test wants to say about them."""

import itertools
import json
import random
import sys
from pathlib import Path

import pytest

from dfkd import paths
from dfkd.identity import Run
from dfkd.report.statistics import gather, tidy

CATEGORIES = ("setup", "prior", "synthesis", "buffer", "distillation", "evaluation", "bookkeeping")


def make(
    method="fast-10",
    last=90.0,
    oracle=None,
    *,
    data="cifar10",
    teacher="wrn40_2",
    student="wrn16_1",
    protocol="paper",
    seed=0,
    status="ok",
    reference=False,
    custom=False,
    synthesis=60.0,
    distillation=600.0,
    hardware="NVIDIA H200",
    changed=None,
    test_changed=None,
    subset=None,
    method_digest="m1",
    config_digest="c1",
    metric="top1",
    prior=None,
    shared=None,
    diagnostics=None,
    report=None,
):
    time = dict.fromkeys(CATEGORIES, 1.0) | {"synthesis": synthesis, "distillation": distillation}
    time["prior"] = (prior or {}).get("seconds", 0.0)  # billed to every run that uses it
    total = sum(time.values())
    joined = {"diagnostics": diagnostics, "report": report}  # keys that older records do not have
    flags = {"test_changed": test_changed, "subset": subset}
    oracle = last if oracle is None else oracle
    curve = [
        {"step": 750, "seconds": 330.0, "value": oracle},
        {"step": 1500, "seconds": 660.0, "value": last},
    ]
    return {
        "schema": 1,
        "status": status,
        "error": "needs 64 pixels" if status == "unsupported" else None,
        "custom": custom,
        "reference": reference,
        "identity": {
            "data": data,
            "teacher": teacher,
            "student": student,
            "method": method,
            "protocol": protocol,
            "seed": seed,
        },
        "metrics": {
            "name": metric,
            "last": last if status == "ok" else None,
            "oracle_best": oracle,
            "teacher": 94.87 if metric == "top1" else 0.517,
            "curve": curve,
        },
        "time": time
        | {"scored": total - 2.0, "total": total, "resumes": 0}
        | ({} if shared is None else {"shared": shared}),
        "cost": {
            "images_synthesised": 51200,
            "student_steps": 80000,
            "teacher_forwards": 20480000,
            "peak_memory_bytes": 3 * 2**29,
        },
        "prior": prior or {"kind": "none", "trained_on": None, "digest": None},
        "provenance": {
            "code": {"method": method_digest, "harness": "h1"},
            "config": config_digest,
            "data": {"digest": "d1", "changed": changed}
            | {key: value for key, value in flags.items() if value is not None},
            "teacher": {"digest": "t1", "origin": "trained here", "accuracy": 94.87},
            "commit": None,
            "versions": {"torch": "2.15.0"},
            "hardware": {"class": hardware, "details": {"cores": 2}},
            "date": "2026-01-31T12:00:00+00:00",
        },
        "config": {"lr": 0.1},
        **{key: value for key, value in joined.items() if value is not None},
    }


def diagnostics(agreement=0.9, classes=(0.25, 0.75), diversity=0.8, frechet=2.5, images=2880):
    """What the evaluator says of synthetic images."""
    found = {"images": images, "agreement": agreement, "classes": list(classes)}
    return found | {"diversity": diversity, "frechet": frechet}


def prior(name="public32", trained_on="7,500 images", *, origin="adopted", seconds=7201, digest="p1"):
    """A diffusion model."""
    facts = {"kind": "diffusion", "name": name, "trained_on": trained_on, "digest": digest}
    return facts | {"origin": origin, "seconds": seconds}


def place(*made):
    """Put records where the reports look for them."""
    for record in made:
        path = Run.of(record).path()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record), encoding="utf-8")  # `records.write` waits for the disk each time


def peak():
    """The most bytes that were resident in this process. On Linux `getrusage` counts those of the process before it."""
    if sys.platform == "linux":
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def two_thousand():
    """As many records as a large campaign has: ten tables of five pairs, in each thirteen methods of three seeds and a
    reference row; every other table of the published protocol, with 50 evaluations and 100 classes, the rest with 5
    and 10. Scores and times of the methods lie apart, so that all of them have a rank."""
    draw = random.Random(0)
    rows = [("kd-real", 0), *((f"method{number}", seed) for number in range(13) for seed in range(3))]
    for table, pair, (method, seed) in itertools.product(range(10), range(5), rows):
        protocol, evaluations, classes = ("paper", 50, 100) if table % 2 else ("cpu", 5, 10)
        number = 0 if method == "kd-real" else 1 + int(method.removeprefix("method"))
        score = 60 + 2 * number + pair + 0.3 * seed if number else 95.0
        cell = {"data": f"set{table}", "student": f"student{pair}", "method": method, "seed": seed}
        shares = [round(draw.random(), 6) for _ in range(classes)]
        images = diagnostics(round(draw.random(), 6), shares, round(draw.random(), 6), round(draw.uniform(1, 9), 6))
        made = make(
            **cell, last=score, protocol=protocol, reference=not number, synthesis=60.0 * (number + seed),
            diagnostics=images,
        )  # fmt: skip
        values = [*sorted(round(draw.uniform(10, score), 2) for _ in range(evaluations - 1)), score]
        made["metrics"]["curve"] = [
            {"step": 1600 * i, "seconds": round(13.2 * i + draw.random(), 4), "value": value}
            for i, value in enumerate(values, 1)
        ]
        made["config"] = {"args": {f"argument{i}": round(draw.random(), 3) for i in range(20)}}
        made["provenance"]["code"]["external"] = True  # or all of them would be stale
        yield made


def results_in(folder: Path, monkeypatch):
    """An empty folder of results, with a table of published numbers that has no line."""
    monkeypatch.setattr(paths, "RESULTS", folder)
    folder.mkdir(parents=True, exist_ok=True)
    head = "data,teacher,student,method,metric,value,source,url,verified,primary,note\n"
    paths.published().write_text(head, encoding="utf-8")


def gathered(runs, current=None, ablations=None):
    """The results of these records."""
    return gather(tidy(runs, current), ablations)


@pytest.fixture
def record():
    """A function that makes a valid record; its arguments are what the test is about."""
    return make
