"""Hand-made records: the smallest that the schema accepts, with what a test wants to say about them."""

import pytest

ACCOUNTS = ("setup", "prior", "synthesis", "buffer", "distillation", "evaluation", "bookkeeping")


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
):
    time = dict.fromkeys(ACCOUNTS, 1.0) | {"prior": 0.0, "synthesis": synthesis, "distillation": distillation}
    total = sum(time.values())
    flags = {"test_changed": test_changed, "subset": subset}
    oracle = last if oracle is None else oracle
    return {
        "schema": 1,
        "status": status,
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
            "oracle_best": oracle if status == "ok" else None,
            "teacher": 94.87 if metric == "top1" else 0.517,
            "curve": [{"step": 1500, "seconds": 660.0, "value": last}],
        },
        "time": time | {"scored": total - 2.0, "total": total, "resumes": 0},
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
    }


@pytest.fixture
def record():
    """A function that makes a valid record; its arguments are what the test is about."""
    return make
