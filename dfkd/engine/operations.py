"""Floating-point operations of whatever runs, by whose weights they use and by operator."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import conv_flop_count, flop_registry


class Operations(TorchDispatchMode):
    """Counts operations by who owns the weights they use: `FlopCounterMode` asks for modules, which methods bypass."""

    def __init__(self, **owners: nn.Module) -> None:
        super().__init__()
        self.flops: Counter[str] = Counter()
        self.operators: Counter[str] = Counter()
        self._owners = {p.untyped_storage().data_ptr(): name for name, o in owners.items() for p in o.parameters()}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here, and a guard against it at each operation takes longer than the operation."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        operator = func._overloadpacket
        if operator in flop_registry:
            of = (self._owners.get(a.untyped_storage().data_ptr()) for a in args if isinstance(a, Tensor))
            owner = next(filter(None, of), "other")
            count = _backward if operator is torch.ops.aten.convolution_backward else flop_registry[operator]
            flops = count(*args, **(kwargs or {}), out_val=out)
            self.flops[owner] += flops
            self.operators[str(operator)] += flops
        return out


def _backward(grad: Tensor, x: Tensor, weight: Tensor, *others: Any, **out: Any) -> int:
    """Of a convolution: each gradient costs what the forward pass does. torch's own count knows no groups."""
    transposed, wanted = others[4], others[-1]
    each = conv_flop_count(list(x.shape), list(weight.shape), list(grad.shape), transposed)
    return each * sum(wanted[:2])
