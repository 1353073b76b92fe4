"""nn.Bilinear: listed with its FLOPs, never sampled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ._arguments import arguments
from ._base import Call, OneProduct, Refusal, kind


@kind("bilinear", summary="nn.Bilinear and F.bilinear, x₁ W x₂; never sampled")
class ThreeOperands(OneProduct):
    """`y[n, o] = Σ_ij x₁[n, i] W[o, i, j] x₂[n, j]`: three operands, so no column-row pairs of two."""

    modules = (nn.Bilinear,)
    functions = (torch.bilinear,)  # also F.bilinear

    def operation(self, call: Call) -> Refusal:
        given = arguments(call, "input1", "input2", "weight")
        layer: Any = call.module
        weight = given["weight"] if layer is None else layer.weight
        rows = given["input1"].numel() // max(given["input1"].shape[-1], 1)
        out, left, right = weight.shape
        reason = (
            f"it multiplies three operands, x₁ [{left}], weight [{out}, {left}, {right}] and x₂ [{right}]"
        )
        return Refusal(reason, 2 * rows * weight.numel(), tuple(given["input1"].shape), (out, left, right))

    @classmethod
    def examples(cls, dtype: torch.dtype) -> Iterator[Call]:
        x1, x2 = (torch.randn(5, n, dtype=dtype, requires_grad=True) for n in (3, 4))
        layer = nn.Bilinear(3, 4, 2).to(dtype)
        yield Call((x1, x2), module=layer)
        yield Call((x1, x2, layer.weight), {"bias": layer.bias}, function=torch.bilinear)
