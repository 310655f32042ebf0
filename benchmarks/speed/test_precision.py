"""How near a student step is to what the machine can do: bf16 against fp32, and both against matrix products."""

from __future__ import annotations

import pytest
from conftest import BATCH, kd_step, make_world, seconds

from dfkd.engine.operations import Operations
from dfkd.engine.precision import chosen
from dfkd.engine.profile import matmul_peak

pytestmark = pytest.mark.benchmark(group="precision")


def test_bf16_against_fp32(device, benchmark, tell_ratio):
    """The student step of CIFAR-10's `cpu` pair in either precision, in turns."""
    if benchmark.enabled and chosen(device) != "bf16":
        pytest.skip("this machine is not faster in bf16")
    pairs = 20 if benchmark.enabled else 2
    steps = [kd_step(make_world(device, "resnet20", "resnet8", BATCH), precision) for precision in ("fp32", "bf16")]

    def measure() -> list[list[float]]:
        for step in steps:
            step()
        return [[seconds(step, device) for step in steps] for _ in range(pairs)]

    took = benchmark.pedantic(measure, rounds=1)
    ratios = [fp32 / bf16 for fp32, bf16 in took]
    tell_ratio("student step: fp32 / bf16", ratios, 1.4, f"{pairs} pairs of a step of {BATCH}")
    assert len(took) == pairs


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_share_of_the_peak(device, precision, benchmark, tell_ratio):
    """The student step of CIFAR-10's `paper` pair: operations a second over those of the largest matrix product."""
    pairs, batch, size = (6, 256, 1536) if benchmark.enabled else (2, 4, 64)
    step = kd_step(make_world(device, "wrn40_2", "wrn16_1", batch), precision)
    with Operations() as counted:
        step()
    flops = counted.flops.total()

    def measure() -> list[float]:
        step()
        return [flops / seconds(step, device) / matmul_peak(device, precision, size) for _ in range(pairs)]

    shares = benchmark.pedantic(measure, rounds=1)
    of = f"{pairs} steps of {batch}"
    tell_ratio(f"WRN-40-2 to WRN-16-1 in {precision}: of the peak", shares, 0.7, of, gflop=flops / 1e9)
    assert len(shares) == pairs
