"""A matrix product added to a tensor: addmm, baddbmm, addbmm, addmv."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ._arguments import arguments, leaf
from ._base import Call, OneProduct, Operation, Refusal, kind
from ._contract import Labels, contract

LABELS: dict[str, tuple[Labels, Labels, Labels]] = {
    "addmm": ("nm", "mp", "np"),
    "baddbmm": ("bnm", "bmp", "bnp"),
    "addbmm": ("bnm", "bmp", "np"),  # the batch is summed, so it is contracted
    "addmv": ("nm", "m", "n"),
}
NAMES = {
    "addmm": ("mat1", "mat2"),
    "baddbmm": ("batch1", "batch2"),
    "addbmm": ("batch1", "batch2"),
    "addmv": ("mat", "vec"),
}


@kind("addmm", summary="torch.addmm (GPT-2's Conv1D), baddbmm, addbmm, addmv, over the inner dimension")
class AddMM(OneProduct):
    """`beta·input + alpha·(left @ right)`. With both factors 1 and a vector for input this is a linear
    layer with the weight as `[in, out]`; else input and the factors are applied to the product."""

    functions = tuple(getattr(owner, name) for name in LABELS for owner in (torch, Tensor))

    def operation(self, call: Call) -> Operation | Refusal:
        assert call.function is not None
        name = call.function.__name__
        given = arguments(call, "input", *NAMES[name])
        left, right = (given[side] for side in NAMES[name])
        added, beta, alpha = given["input"], given.get("beta", 1), given.get("alpha", 1)
        if given.get("out") is not None:
            reason = f"it writes its result into out=, a tensor that exists already, of {tuple(added.shape)}"
            columns = right.shape[-1] if right.dim() > 1 else 1
            return Refusal(reason, 2 * left.numel() * columns, tuple(left.shape), tuple(right.shape))
        product = contract(left, right, LABELS[name])
        if isinstance(product, Refusal):
            return product
        vector = tuple(added.shape) == tuple(product.right.shape[-1:])
        if name == "addmm" and product.finish is None and (beta, alpha) == (1, 1) and vector:
            return replace(product, bias=added)
        return replace(product, finish=_plus(product.finish, added, beta, alpha))

    @classmethod
    def examples(cls, dtype: torch.dtype) -> Iterator[Call]:
        x, bias = leaf(5, 6, dtype=dtype), leaf(4, dtype=dtype)
        weight = nn.Parameter(torch.randn(6, 4, dtype=dtype))
        yield Call((bias, x, weight), function=torch.addmm)
        yield Call((bias, x), {"mat2": weight}, function=Tensor.addmm)
        yield Call((leaf(5, 4, dtype=dtype), x, weight), {"beta": 0.5, "alpha": 2}, function=torch.addmm)
        ignored = leaf(5, dtype=dtype)
        yield Call((ignored, weight.t(), leaf(6, 5, dtype=dtype)), {"beta": 0}, function=torch.addmm)
        left, right = leaf(3, 5, 6, dtype=dtype), leaf(3, 6, 4, dtype=dtype)
        function: Callable[..., Any]
        for function in (torch.baddbmm, Tensor.baddbmm):
            yield Call((leaf(3, 1, 4, dtype=dtype), left, right), {"alpha": 0.25}, function=function)
        for function in (torch.addbmm, Tensor.addbmm):
            yield Call((leaf(5, 4, dtype=dtype), left, right), function=function)
        for function in (torch.addmv, Tensor.addmv):
            yield Call((leaf(5, dtype=dtype), x, leaf(6, dtype=dtype)), function=function)


def _plus(
    finish: Callable[[Tensor], Tensor] | None, added: Tensor, beta: Any, alpha: Any
) -> Callable[[Tensor], Tensor]:
    def run(product: Tensor) -> Tensor:
        product = finish(product) if finish else product
        start = added.to(product.dtype)  # autocast has cast the product, and would have cast this, too
        if beta == 0:  # torch then ignores the values of input, NaN included, and its gradient is 0
            nothing = start.masked_fill(torch.ones_like(start, dtype=torch.bool), 0)
            return torch.add(nothing, product, alpha=alpha)
        return torch.add(start if beta == 1 else start * beta, product, alpha=alpha)

    return run
