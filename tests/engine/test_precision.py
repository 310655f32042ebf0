"""bf16 computes with the weights of now: what is cast for one step is not kept for the next."""

from __future__ import annotations

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

# Every method that steps something inside a call or a draw, on which the loop's autocast is. (DiffDFKD moves its
# latent codes by hand.)
INNER = ("fast", "ssdkd", "cmi", "deepinv", "dfad", "dda", "template")


@pytest.fixture
def stepped():
    """After each optimizer step inside an autocast: whether a pass through each stepped tensor saw its new value."""
    seen = []

    @torch.no_grad()
    def look(optimiser, *_) -> None:
        if not torch.is_autocast_enabled("cpu"):
            return
        for tensor in (p for group in optimiser.param_groups for p in group["params"] if p.grad is not None):
            if tensor.ndim not in (2, 4):
                continue
            x = torch.ones_like(tensor[:1])
            op = torch.nn.functional.linear if tensor.ndim == 2 else torch.nn.functional.conv2d
            with torch.autocast("cpu", enabled=False):
                expected = op(x.bfloat16(), tensor.bfloat16())
            with torch.enable_grad():  # a cast is kept for tensors that want a gradient
                seen.append(torch.equal(op(x, tensor).detach(), expected))

    handle = register_optimizer_step_post_hook(look)
    yield seen
    handle.remove()


@pytest.mark.parametrize("method", INNER)
def test_after_an_inner_step_the_next_pass_sees_the_new_weights(method, tiny, execute, stepped):
    assert execute(tiny(method, "precision=bf16"))["status"] == "ok"
    assert stepped and all(stepped)
