"""Whoever is killed, and when: the run goes on to the record that it would have had. And a machine without Landlock."""

from __future__ import annotations

import pytest

from dfkd.engine import confine
from dfkd.engine.harness import Failed
from tests.conftest import outcome

METHOD = """
import os
from pathlib import Path
from dfkd.engine.method import METHODS
from baselines.deepinv import DeepInv

@METHODS.register_module("dying", force=True)
class Dying(DeepInv):
    def after_step(self, ctx, batch, outputs):
        flag = Path("died")
        if {dies} and ctx.student_steps == {step} and not flag.exists():
            flag.touch()
            os.kill({victim}, 9)
"""


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_killed_worker_goes_on(tiny, execute, tmp_path, step: int):
    records = []
    for dies in (True, False):
        (tmp_path / str(dies)).mkdir()
        path = tmp_path / str(dies) / "dying.py"
        path.write_text(METHOD.format(dies=dies, step=step, victim="os.getpid()"))
        cell = tiny("dying", "steps=3", extra=str(path))
        if dies:
            with pytest.raises(Failed, match="SIGKILL"):
                execute(cell, save_every=0)
        records.append(execute(cell, save_every=0, resume=dies))
    assert records[0]["time"]["resumes"] == 1
    assert outcome(records[0]) == outcome(records[1])


def test_a_silent_worker_is_ended(tiny, execute, tmp_path):
    path = tmp_path / "dying.py"
    path.write_text(
        METHOD.format(dies=True, step=1, victim="os.getpid()").replace("os.kill", "__import__('time').sleep")
    )
    path.write_text(path.read_text().replace("sleep(os.getpid(), 9)", "sleep(99)"))
    with pytest.raises(Failed, match="said nothing"):
        execute(tiny("dying", "steps=3", extra=str(path)), patience=12.0)


def test_without_landlock_the_record_says_so(tiny, execute, monkeypatch: pytest.MonkeyPatch):
    with_it = execute(tiny("deepinv"))
    monkeypatch.setattr(confine, "version", lambda: 0)
    without = execute(tiny("deepinv"))
    assert without["provenance"]["isolation"] == "audit-hook"
    assert outcome(without) == outcome(with_it)


def test_debug_runs_in_one_process(tiny, execute):
    assert outcome(execute(tiny("deepinv"), debug=True)) == outcome(execute(tiny("deepinv")))
