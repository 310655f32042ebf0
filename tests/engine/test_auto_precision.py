"""`precision: auto`: the machine chooses, the record says what ran, and no run is custom for it."""

import time
from dataclasses import replace

import pytest
import torch

from dfkd import records
from dfkd.engine import precision
from dfkd.engine.compat import autocast
from dfkd.errors import UserError
from dfkd.tables.resolve import resolve

PAIR = "wrn16_2-wrn16_1"


@pytest.fixture(autouse=True)
def forgotten():
    precision.chosen.cache_clear()
    yield
    precision.chosen.cache_clear()


@pytest.mark.parametrize(("gain", "expected"), [(1.19, "fp32"), (1.2, "bf16"), (0.2, "fp32")])
def test_bf16_where_it_is_clearly_faster(gain, expected, monkeypatch):
    monkeypatch.setattr(precision, "gain", lambda device: gain)
    cell = resolve("digits", "quick", "fast-5", PAIR)
    assert cell.precision == "auto"
    settled = precision.settled(cell, torch.device("cpu"))
    assert (settled.precision, settled.config["precision"], settled.custom) == (expected, "auto", False)
    assert settled.digest == cell.digest


def test_the_probe_answers_and_is_asked_once(monkeypatch):
    calls = []
    probe = precision.gain
    monkeypatch.setattr(precision, "gain", lambda device: calls.append(1) or probe(device))
    assert precision.chosen(torch.device("cpu")) == precision.chosen(torch.device("cpu"))
    assert len(calls) == 1


def test_a_processor_that_does_something_else_meanwhile_answers_the_same(monkeypatch):
    """Each convolution in bf16 is held up by what costs this process nothing, as when another has the processor."""

    def held_up(device, name):
        if name == "bf16":
            time.sleep(1)
        return autocast(device, name)

    monkeypatch.setattr(precision, "GAIN", precision.gain(torch.device("cpu")) / 2)
    monkeypatch.setattr(precision, "REPEATS", 2)
    monkeypatch.setattr(precision, "autocast", held_up)
    assert precision.chosen(torch.device("cpu")) == "bf16"


@pytest.mark.parametrize("forced", ["fp32", "bf16"])
def test_either_may_be_forced_and_is_no_custom_run(forced):
    cell = resolve("digits", "quick", "fast-5", PAIR, precision=forced)
    assert (cell.precision, cell.custom, cell.config["precision"]) == (forced, False, "auto")


def test_where_the_protocol_fixes_it_another_is_custom():
    cell = resolve("digit-scenes", "quick", "fast-5", precision="bf16")
    assert (cell.precision, cell.custom, cell.config["precision"]) == ("bf16", True, "bf16")
    assert resolve("digits", "quick", "fast-5", PAIR, precision="tf32").custom


def test_both_ways_of_saying_it_at_once_are_refused():
    with pytest.raises(UserError, match="pass one of them"):
        resolve("digits", "quick", "fast-5", PAIR, changes=["precision=bf16"], precision="bf16")


@pytest.mark.parametrize("ran", ["fp32", "bf16"])
def test_the_record_says_what_ran_and_keeps_times_apart(ran, tiny, execute, monkeypatch):
    monkeypatch.setattr(precision, "chosen", lambda device: ran)
    record = execute(replace(tiny("fast"), precision="auto"))
    assert record["provenance"]["precision"] == ran
    assert record["provenance"]["hardware"]["class"].endswith(", bf16") == (ran == "bf16")
    assert record["config"]["precision"] == "auto"
    records.validate(record)
