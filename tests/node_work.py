"""How many multiplications a layer's matrix products take, counted by the shapes of their operands."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


class Multiplications(TorchDispatchMode):
    """Adds up rows · columns · inner of every matrix product, and the numbers that bags weigh and add up;
    a bag without weights only puts rows in their places."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("mm", "bmm", "mv", "addmm"):
            left, right = args[-2:]
            self.total += left.numel() * (right.shape[-1] if right.dim() > 1 else 1)
        elif name.startswith("_embedding_bag") and len(args) > 6 and args[6] is not None:
            self.total += args[1].numel() * args[0].shape[1]
        return func(*args, **(kwargs or {}))


def work_of(layer: nn.Module, x: Tensor) -> list[int]:
    """Of a training step: forward, and both gradients together."""
    x = x.detach().requires_grad_()
    with Multiplications() as forward:
        y = layer(x)
    with Multiplications() as backward, torch.enable_grad():
        y.sum().backward()
    return [forward.total, backward.total]
