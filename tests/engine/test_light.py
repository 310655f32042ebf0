"""What mmengine does not import here, and that it would: when a release stops, `light` can go."""

import subprocess
import sys

import pytest

HEAVY = ("torch.distributed.fsdp", "torch.distributed.optim", "transformers", "sympy")


def imported(code: str) -> set[str]:
    command = f"import sys\n{code}\nprint(*(m for m in {HEAVY!r} if m in sys.modules))"
    return set(subprocess.check_output([sys.executable, "-c", command], text=True).split())


def test_mmengine_alone_brings_them():
    assert imported("import mmengine.runner, mmengine.optim") == set(HEAVY)


@pytest.mark.parametrize("module", ["dfkd.engine.runner", "dfkd.engine.run", "dfkd.engine.distillation"])
def test_the_engine_does_not(module):
    assert imported(f"import {module}") == set()


def test_whoever_wants_them_gets_them():
    code = "import dfkd.engine.runner; from transformers import PreTrainedModel; import torch.distributed.optim"
    assert {"transformers", "torch.distributed.optim"} <= imported(code)
