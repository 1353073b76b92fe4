"""What the kinds share: a call's arguments by name, and what operands cannot be sampled."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ._base import Call


def arguments(call: Call, *names: str) -> dict[str, Any]:
    """The call's arguments by name, `names` being those of the positional ones in order."""
    return dict(zip(names, call.args, strict=False)) | dict(call.kwargs)


def is_weight(tensor: Tensor) -> bool:
    """Whether a tensor is a parameter, or a view of one (`self.weight.t()`)."""
    return isinstance(tensor, nn.Parameter) or isinstance(tensor._base, nn.Parameter)


def unfit(*operands: Tensor) -> str | None:
    """Why these operands have no column-row pairs that can be scored, None where they have."""
    for operand, place in zip(operands, ("left", "right"), strict=False):
        if not isinstance(operand, Tensor):
            return f"its {place} operand is a {type(operand).__name__}, not a tensor"
        if operand.layout is not torch.strided or operand.is_nested:
            layout = "nested" if operand.is_nested else str(operand.layout).removeprefix("torch.")
            return f"its {place} operand is {layout}, and only dense tensors are sampled"
        if not operand.dtype.is_floating_point:
            name = str(operand.dtype).removeprefix("torch.")
            return f"its {place} operand is {name}, and only real floating-point numbers are sampled"
    return None


def leaf(*shape: int, dtype: torch.dtype) -> Tensor:
    """A random operand that needs a gradient, for examples."""
    return torch.randn(shape, dtype=dtype, requires_grad=True)
