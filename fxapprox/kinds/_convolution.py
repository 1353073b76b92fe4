"""The convolution of any number of dimensions, transposed or not, as a bilinear product."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..sites import ProductName
from ._bilinear import AxisBilinear, Contraction, Pairs


@dataclass(frozen=True)
class Convolution(AxisBilinear):
    """`y [N, out, …] = x [N, in, …] ∗ w` with zero padding that is symmetric in each dimension.

    The weight is `[out, in/groups, …]`, transposed `[in, out/groups, …]`. Pairs are channels, chosen
    within each group; for the weight gradient they are the examples."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    def forward(self, left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
        return torch.convolution(left, right, bias, *self._geometry())

    def grad_left(self, grad: Tensor, right: Tensor, left_shape: tuple[int, ...]) -> Tensor:
        return self._backward(grad, _shaped(left_shape, grad, right), right, 0)

    def grad_right(self, grad: Tensor, left: Tensor, right_shape: tuple[int, ...]) -> Tensor:
        return self._backward(grad, left, _shaped(right_shape, grad, left), 1)

    def grad_bias(self, grad: Tensor) -> Tensor:
        return grad.sum((0, *range(2, grad.dim())))

    def gradients(
        self, grad: Tensor, left: Tensor, right: Tensor | None, right_shape: tuple[int, ...], bias: bool
    ) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """In one call, which does the bias along the way: 1 to 2% of a layer's time."""
        operand = _shaped(right_shape, grad, left) if right is None else right
        found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
            grad, left, operand, [grad.shape[1]] if bias else None, *self._geometry(),
            [right is not None, True, bias],
        )  # fmt: skip
        return None if right is None else found[0], found[1], found[2] if bias else None

    def flops(self, left: tuple[int, ...], right: tuple[int, ...]) -> int:
        # every example and position (of the output; transposed, of the input) meets every weight once
        positions = left[2:] if self.transposed else self._output(left, right)
        return 2 * left[0] * math.prod(positions) * math.prod(right)

    def contraction(self, product: ProductName) -> Contraction:
        whole, within = Pairs(0), Pairs(1, block=0)  # the weight's dimensions: all channels, those of a group
        inner, outer = (whole, within) if self.transposed else (within, whole)
        return {
            "forward": Contraction(Pairs(1), inner, "in channels", self.groups),
            "grad_input": Contraction(Pairs(1), outer, "out channels", self.groups),
            "grad_weight": Contraction(Pairs(0), Pairs(0), "batch"),
        }[product]

    def center_dims(self, left_ndim: int) -> tuple[int, ...]:
        return (0, *range(2, left_ndim))

    def plane_dims(self, left_ndim: int) -> tuple[int, ...]:
        return tuple(range(2, left_ndim))

    def _geometry(self) -> tuple[Any, ...]:
        spare = self.output_padding or (0,) * len(self.stride)
        return self.stride, self.padding, self.dilation, self.transposed, spare, self.groups

    def _backward(self, grad: Tensor, left: Tensor, right: Tensor, wanted: int) -> Tensor:
        mask = [wanted == 0, wanted == 1, False]
        found = torch.ops.aten.convolution_backward(grad, left, right, None, *self._geometry(), mask)
        result: Tensor = found[wanted]
        return result

    def _output(self, left: tuple[int, ...], right: tuple[int, ...]) -> list[int]:
        rows = zip(left[2:], right[2:], self.stride, self.padding, self.dilation, strict=True)
        return [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in rows]


def _shaped(shape: tuple[int, ...], *operands: Tensor) -> Tensor:
    """A tensor of which only the shape matters, in the memory format that the operands' convolution
    runs in: it decides which kernel runs, and the format of the result."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(len(shape))
    wanted = last and any(t.is_contiguous(memory_format=last) and not t.is_contiguous() for t in operands)
    layout = last if last and wanted else torch.contiguous_format
    return torch.empty(shape, dtype=operands[0].dtype, device=operands[0].device, memory_format=layout)
