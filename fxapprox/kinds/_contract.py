"""Any contraction of two tensors as one matrix product, or one per batch: the normal form that matmul,
addmm, einsum, tensordot and attention share."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..sites import ProductName
from ._arguments import is_weight, unfit
from ._base import Operation, Refusal
from ._bilinear import AxisBilinear, Contraction, Pairs

Labels = Sequence[Hashable]
"""One name a dimension; equal names in two operands are the same dimension."""

LAYER = ("in features", "out features", "batch")
ACTIVATIONS = ("inner dimension", "columns of the right operand", "rows of the left operand")


@dataclass(frozen=True)
class MatrixProduct(AxisBilinear):
    """`left [n, m] · right [m, p]`; with `batch`, `left [batch, n, m] · right [batch, m, p]`, each with a
    choice of its own. `over` says in words what forward, grad input and grad weight contract."""

    batch: int | None = None
    over: tuple[str, str, str] = ACTIVATIONS

    def forward(self, left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
        return left @ right if bias is None else torch.addmm(bias, left, right)

    def grad_left(self, grad: Tensor, right: Tensor, left_shape: tuple[int, ...]) -> Tensor:
        return grad @ right.mT

    def grad_right(self, grad: Tensor, left: Tensor, right_shape: tuple[int, ...]) -> Tensor:
        return left.mT @ grad

    def grad_bias(self, grad: Tensor) -> Tensor:
        return grad.sum(0)

    def flops(self, left: tuple[int, ...], right: tuple[int, ...]) -> int:
        return 2 * math.prod(left) * right[-1]

    def contraction(self, product: ProductName) -> Contraction:
        rows, columns = (0, 1) if self.batch is None else (1, 2)
        at = {
            "forward": (columns, rows, self.over[0]),
            "grad_input": (columns, columns, self.over[1]),
            "grad_weight": (rows, rows, self.over[2]),
        }
        first, second, over = at[product]
        if self.batch is None:
            return Contraction(Pairs(first), Pairs(second), over)
        # an empty batch is one group of empty blocks, so that it can be reshaped
        return Contraction(Pairs(first, block=0), Pairs(second, block=0), over, groups=max(self.batch, 1))

    def center_dims(self, left_ndim: int) -> tuple[int, ...]:
        return (left_ndim - 2,)


def contract(
    left: Tensor,
    right: Tensor,
    labels: tuple[Labels, Labels, Labels],
    over: tuple[str, str, str] | None = None,
) -> Operation | Refusal:
    """The contraction of two tensors, given the names of their dimensions and of the result's.

    Names in both operands and the result are batches, in both operands only are contracted (several are
    flattened into one), in one operand only are rows or columns. A dimension of size 1 that is
    larger in the other operand is broadcast. A weight on the left changes places with an activation
    on the right."""
    first, second, out = (list(names) for names in labels)
    shapes = tuple(left.shape), tuple(right.shape)
    sizes = _sizes(shapes, (first, second))
    flops = 2 * math.prod(list(sizes.values()))
    if reason := unfit(left, right) or _illegible(first, second, out):
        return Refusal(reason, flops, *shapes)
    left, first = _without_broadcast(left, first, sizes)
    right, second = _without_broadcast(right, second, sizes)
    contracted = [name for name in first if name in second and name not in out]
    summed = [name for name in {*first, *second} if name not in out and name not in contracted]
    if summed:
        reason = f"a dimension of {sizes[summed[0]]} is summed in one of its operands only"
        return Refusal(reason, flops, *shapes)
    if not contracted:
        reason = f"operands of {shapes[0]} and {shapes[1]} have no dimension in common that is summed"
        return Refusal(reason, flops, *shapes)
    if (is_weight(left), -left.ndim) > (is_weight(right), -right.ndim):
        left, first, right, second = right, second, left, first
    return _normal_form(left, first, right, second, out, sizes, over)


def matmul_labels(left: int, right: int) -> tuple[Labels, Labels, Labels]:
    """The names of the dimensions of a matmul of operands of so many; batches count from the right."""
    batch_left, batch_right = range(-left, -2), range(-right, -2)
    rows, columns = ["row"] * (left > 1), ["column"] * (right > 1)
    batch = range(-max(left, right), -2)
    return (*batch_left, *rows, "inner"), (*batch_right, "inner", *columns), (*batch, *rows, *columns)


def _normal_form(
    left: Tensor, first: Labels, right: Tensor, second: Labels, out: Labels,
    sizes: dict[Hashable, int], over: tuple[str, str, str] | None,
) -> Operation:  # fmt: skip
    batch = [name for name in out if name in first and name in second]
    rows = [name for name in out if name in first and name not in second]
    columns = [name for name in out if name in second and name not in first]
    contracted = [name for name in first if name in second and name not in out]
    groups = _volume(batch, sizes) if batch else None
    weight = is_weight(right)
    return Operation(
        MatrixProduct(groups, over or (LAYER if weight else ACTIVATIONS)),
        _matrix(left, first, (batch, rows, contracted), sizes),
        _matrix(right, second, (batch, contracted, columns), sizes),
        finish=_spread((batch, rows, columns), out, sizes),
        weight=weight,
    )


def _matrix(tensor: Tensor, names: Labels, parts: Sequence[Labels], sizes: dict[Hashable, int]) -> Tensor:
    """The tensor as `[batch, rows, columns]` of its named parts; without the batch where it is empty."""
    order = [list(names).index(name) for part in parts for name in part]
    if order != sorted(order):
        tensor = tensor.permute(order)
    shape = [_volume(part, sizes) for part in (parts if parts[0] else parts[1:])]
    # not reshaped where nothing changes, so that a parameter arrives as itself
    return tensor if list(tensor.shape) == shape else tensor.reshape(shape)


def _spread(
    parts: tuple[Labels, Labels, Labels], out: Labels, sizes: dict[Hashable, int]
) -> Callable[[Tensor], Tensor] | None:
    """What brings the matrix product back to the shape and order of the result, None where it has them."""
    batch, rows, columns = parts
    names = [*batch, *rows, *columns]
    order = None if names == list(out) else [names.index(name) for name in out]
    if order is None and len(batch) < 2 and len(rows) == 1 and len(columns) == 1:
        return None
    return partial(_reshaped, shape=[sizes[name] for name in names], order=order)


def _reshaped(result: Tensor, shape: list[int], order: list[int] | None) -> Tensor:
    spread = result.reshape(shape)
    return spread if order is None else spread.permute(order)


def _illegible(first: Labels, second: Labels, out: Labels) -> str | None:
    for place, names in (("left operand", first), ("right operand", second), ("result", out)):
        if len(set(names)) < len(names):
            return f"a dimension occurs twice in its {place}, so it takes a diagonal"
    missing = [name for name in out if name not in first and name not in second]
    return f"dimension {missing[0]!r} of the result is in neither operand" if missing else None


def _without_broadcast(
    tensor: Tensor, names: list[Hashable], sizes: dict[Hashable, int]
) -> tuple[Tensor, list[Hashable]]:
    """The tensor without the dimensions of size 1 that the other operand has larger."""
    spare = [d for d, name in enumerate(names) if tensor.shape[d] == 1 and sizes[name] != 1]
    for d in reversed(spare):
        tensor = tensor.squeeze(d)
    return tensor, [name for d, name in enumerate(names) if d not in spare]


def _sizes(shapes: Sequence[Sequence[int]], labels: Sequence[Labels]) -> dict[Hashable, int]:
    """The size of each named dimension; 1 gives way to any other size, 0 included."""
    sizes: dict[Hashable, int] = {}
    for shape, names in zip(shapes, labels, strict=True):
        for name, size in zip(names, shape, strict=True):
            sizes[name] = size if sizes.get(name, 1) == 1 else sizes[name]
    return sizes


def _volume(names: Labels, sizes: dict[Hashable, int]) -> int:
    return math.prod([sizes[name] for name in names])
