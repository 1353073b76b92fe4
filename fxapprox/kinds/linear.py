"""Linear layers: nn.Linear and F.linear."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..sites import ProductName
from ._arguments import arguments, leaf, unfit
from ._base import Call, OneProduct, Operation, Refusal, kind
from ._bilinear import AxisBilinear, Contraction, Pairs

CONTRACTIONS: dict[ProductName, Contraction] = {
    "forward": Contraction(Pairs(1), Pairs(1), "in features"),
    "grad_input": Contraction(Pairs(1), Pairs(0), "out features"),
    "grad_weight": Contraction(Pairs(0), Pairs(0), "batch"),
}


@dataclass(frozen=True)
class Rows(AxisBilinear):
    """`y [N, out] = x [N, in] · Wᵀ + b` with the weight as torch keeps it, `[out, in]`; `inner_first` where
    it lies in memory as `[in, out]`, so that its gradient does."""

    inner_first: bool = False

    def forward(self, left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(left, right, bias)

    def grad_left(self, grad: Tensor, right: Tensor, left_shape: tuple[int, ...]) -> Tensor:
        return grad @ right

    def grad_right(self, grad: Tensor, left: Tensor, right_shape: tuple[int, ...]) -> Tensor:
        return (left.t() @ grad).t() if self.inner_first else grad.t() @ left

    def grad_bias(self, grad: Tensor) -> Tensor:
        return grad.sum(0)

    def flops(self, left: tuple[int, ...], right: tuple[int, ...]) -> int:
        return 2 * left[0] * math.prod(right)

    def contraction(self, product: ProductName) -> Contraction:
        return CONTRACTIONS[product]

    def center_dims(self, left_ndim: int) -> tuple[int, ...]:
        return (0,)


@kind("linear", summary="nn.Linear and F.linear, over input features")
class Linear(OneProduct):
    """All leading dimensions are the batch: `[..., in]` is `[N, in]`."""

    modules = (nn.Linear,)
    functions = (F.linear,)  # also torch._C._nn.linear: one object
    gathered, matrix = 1, True

    def operation(self, call: Call) -> Operation | Refusal:
        layer: Any = call.module
        if layer is None:
            given = arguments(call, "input", "weight", "bias")
            x, weight, bias = given["input"], given["weight"], given.get("bias")
        else:
            x = call.args[0] if call.args else call.kwargs["input"]
            weight, bias = layer.weight, layer.bias
        if reason := unfit(x, weight):
            rows = x.numel() // max(weight.shape[-1], 1)
            return Refusal(reason, 2 * rows * weight.numel(), tuple(x.shape), tuple(weight.shape))
        shape = (*x.shape[:-1], *weight.shape[:-1])
        left = x if x.dim() == 2 else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
        # a vector is F.linear's form for one output without a dimension of its own
        matrix = weight.unsqueeze(0) if weight.dim() == 1 else weight
        fits = bias is None or tuple(bias.shape) == (matrix.shape[0],)
        finish = partial(_finish, shape=shape, bias=None if fits else bias)
        plain = fits and len(shape) == 2
        rows = Rows(inner_first=matrix.stride(0) < matrix.stride(1))
        return Operation(rows, left, matrix, bias if fits else None, None if plain else finish)

    @classmethod
    def examples(cls, dtype: torch.dtype) -> Iterator[Call]:
        for shape in ((5, 6), (2, 3, 6), (6,), (1, 6), (0, 6)):
            yield Call((leaf(*shape, dtype=dtype),), module=nn.Linear(6, 4).to(dtype))
        x, weight, bias = leaf(3, 5, 6, dtype=dtype), leaf(4, 6, dtype=dtype), leaf(4, dtype=dtype)
        yield Call((x, weight), function=F.linear)
        yield Call((x.transpose(0, 1),), {"weight": weight, "bias": bias}, function=F.linear)
        yield Call((x, leaf(6, 4, dtype=dtype).t(), bias), function=F.linear)
        yield Call((x, weight[0], bias[0]), function=F.linear)


def _finish(result: Tensor, shape: tuple[int, ...], bias: Tensor | None) -> Tensor:
    spread = result.reshape(shape)
    return spread if bias is None else spread + bias.to(spread.dtype)
