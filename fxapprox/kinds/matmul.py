"""Matrix products of any batch shape: `@`, matmul, mm, bmm, mv, dot."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ._arguments import leaf
from ._base import Call, OneProduct, Operation, Refusal, kind
from ._contract import contract, matmul_labels


@kind("matmul", summary="@, torch.matmul, mm, bmm, mv, dot of any batch shape, over the inner dimension")
class Matmul(OneProduct):
    """Each batch dimension that both operands have gets a choice of pairs of its own; those of one operand
    only are rows or columns of one product. For a parameter on the left, `W @ x`, the product is
    `xᵀ · Wᵀ`, so that its right operand is the weight."""

    functions = (
        # Python's @ arrives as Tensor.matmul; the other spellings only where they are called by name
        torch.matmul, Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__, operator.matmul,
        torch.linalg.matmul, torch.mm, Tensor.mm, torch.bmm, Tensor.bmm,
        torch.mv, Tensor.mv, torch.dot, Tensor.dot,
    )  # fmt: skip

    def operation(self, call: Call) -> Operation | Refusal:
        named = dict(call.kwargs)
        out = named.pop("out", None)
        # the first is called input everywhere, the second other, mat2, vec or tensor
        first = [named.pop("input")] if "input" in named else []
        operands = [*call.args, *first, *named.values()]
        if len(operands) != 2 or not all(isinstance(operand, Tensor) for operand in operands):
            types = ", ".join(type(operand).__name__ for operand in operands)
            return Refusal(f"its operands are ({types}), not two tensors", 0)
        left, right = reversed(operands) if call.function is Tensor.__rmatmul__ else operands
        if left.dim() == 0 or right.dim() == 0:
            return Refusal(f"operands of {left.dim()} and {right.dim()} dimensions are no matrices", 0)
        columns = right.shape[-1] if right.dim() > 1 else 1
        if out is not None:
            reason = f"it writes its result into out=, a tensor that exists already, of {tuple(out.shape)}"
            return Refusal(reason, 2 * left.numel() * columns, tuple(left.shape), tuple(right.shape))
        return contract(left, right, matmul_labels(left.dim(), right.dim()))

    @classmethod
    def examples(cls, dtype: torch.dtype) -> Iterator[Call]:
        for left, right in (
            ((5, 6), (6, 4)), ((2, 3, 5, 6), (6, 4)), ((2, 3, 5, 6), (2, 3, 6, 4)), ((2, 1, 5, 6), (3, 6, 4)),
            ((5, 6), (3, 6, 4)), ((3, 5, 6), (1, 6, 4)), ((6,), (6,)), ((6,), (3, 6, 4)), ((3, 5, 6), (6,)),
            ((1, 5, 6), (1, 6, 4)), ((0, 5, 6), (0, 6, 4)), ((0, 5, 6), (6, 4)),
        ):  # fmt: skip
            yield Call((leaf(*left, dtype=dtype), leaf(*right, dtype=dtype)), function=torch.matmul)
        a, b = leaf(3, 6, 5, dtype=dtype).mT, leaf(3, 6, 4, dtype=dtype)
        weight = torch.nn.Parameter(torch.randn(7, 5, dtype=dtype))
        yield Call((a, b), function=Tensor.matmul)
        yield Call((a, b), function=Tensor.__matmul__)
        yield Call((b, a), function=Tensor.__rmatmul__)
        yield Call((a, b), function=operator.matmul)
        yield Call((a,), {"other": b}, function=torch.linalg.matmul)
        yield Call((weight, a), function=Tensor.matmul)
        yield Call((a.mT, weight.t()), function=Tensor.matmul)
        function: Callable[..., Any]
        for function in (torch.bmm, Tensor.bmm):
            yield Call((a,), {"mat2": b}, function=function)
        for function in (torch.mm, Tensor.mm):
            yield Call((a[0], b[0]), function=function)
        for function in (torch.mv, Tensor.mv):
            yield Call((a[0], b[0, :, 0]), function=function)
        for function in (torch.dot, Tensor.dot):
            yield Call((a[0, 0], b[0, :, 0]), function=function)
