"""The commonest product in the fewest calls: two matrices on a CPU, sampled forward, both gradients reused.

The same estimator, draws and gradients as `product.py`, which serves everything else. A layer of a
million weights takes a millisecond; there the general way spends as long in Python between its products
as on them, for each of them sweeps the interpreter out of the caches. Where the fused kernels are built
(`fxapprox.native`) they do the arithmetic, and nothing is gathered or spread out.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..choices import Choice, Sampled
from ..kinds import Bilinear, Operation
from ..kinds._bilinear import AxisBilinear
from ..kinds._strides import PLAIN, WIDE, bags
from ..native import kernels
from ..policies import Policy, Selection
from .streams import Draw


def matrix_product(operation: Operation, choice: Choice, draw: Draw) -> Tensor | None:
    """What `sampled_product` computes, less `finish`; None where the call is not of this form.

    That is: matrices of one wide type, pairs along the columns of the left one and along contiguous rows (or
    such columns, where they lie transposed) of the right one, scores that are finite and not all zero."""
    how, bilinear, left, right = choice.forward, operation.bilinear, operation.left, operation.right
    if not isinstance(how, Sampled) or choice.grad_input != "reuse" or choice.grad_weight != "reuse":
        return None
    policy = how.policy
    if how.center or not isinstance(policy, Policy) or policy.scores != "pair":
        return None
    if not isinstance(bilinear, AxisBilinear) or not plain_matrices(left, right):
        return None
    at = bilinear.contraction("forward")
    if at.groups != 1 or at.first.dim != 1:
        return None
    pairs = left.shape[1]
    k = how.k(pairs, draw.step)
    inner = at.second.dim == 1  # the right operand is the transpose of its rows
    if k == pairs or not contiguous_rows(right, inner) or not left.is_contiguous() or left.shape[0] == 0:
        return None
    fused = kernels()
    scores = fused.scores(left, right, inner) if fused else _scores(left, right, inner)
    if scores is None:
        return None
    selection = policy.select(scores, k, draw.stream("forward"))
    if fused and selection.unique:
        return fused.product(left, right, operation.bias, selection.index, selection.scale, inner)
    # called in this very function: torch.compile gives up on some functions, and goes on to compile
    # those that they call, but none that begins like this one
    result: Tensor = MatrixProduct.apply(left, right, operation.bias, bilinear, inner, selection)
    return result


def contiguous_rows(right: Tensor, inner: bool) -> bool:
    """Whether the rows of the right operand, or of its transpose, lie one after the other."""
    return (right.t() if inner else right).is_contiguous()


def _scores(left: Tensor, right: Tensor, inner: bool) -> Tensor | None:
    rows = right.detach().t() if inner else right.detach()
    scores = left.detach().square().sum(0).sqrt_().mul_(torch.linalg.vector_norm(rows, dim=1))
    return scores.unsqueeze(0) if 0 < scores.amax().item() < math.inf else None


def plain_matrices(left: Tensor, right: Tensor) -> bool:
    return (
        type(left) in PLAIN
        and type(right) in PLAIN
        and left.dtype == right.dtype
        and left.dtype in WIDE
        and left.dim() == right.dim() == 2
        and left.device.type == right.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
    )


class MatrixProduct(torch.autograd.Function):
    """The product through a selection, and its gradients."""

    @staticmethod
    def forward(
        ctx: Any, left: Tensor, right: Tensor, bias: Tensor | None, bilinear: Bilinear, inner: bool,
        selection: Selection,
    ) -> Tensor:  # fmt: skip
        index = selection.index.squeeze(0)
        kept_left = left.index_select(1, index)
        kept_rows = (right.t() if inner else right).index_select(0, index)
        scale = None if selection.scale is None else selection.scale.to(left.dtype).squeeze(0)
        ctx.scaled = None
        if scale is not None:
            ctx.scaled = "left" if kept_left.numel() <= kept_rows.numel() else "right"
            (kept_left if ctx.scaled == "left" else kept_rows.t()).mul_(scale)
        kept_right = kept_rows.t() if inner else kept_rows
        ctx.bilinear, ctx.inner, ctx.shapes = bilinear, inner, (left.shape, right.shape)
        ctx.unique = selection.unique
        wanted = ctx.needs_input_grad
        ctx.save_for_backward(
            kept_left if wanted[1] else None, kept_right if wanted[0] else None, index, scale
        )
        return bilinear.forward(kept_left, kept_right, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _refusing(ctx, grad) if torch.is_grad_enabled() else _gradients(ctx, grad)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    kept_left, kept_right, index, scale = ctx.saved_tensors
    bilinear, (left_shape, right_shape), k = ctx.bilinear, ctx.shapes, len(index)
    grad_left = grad_right = None
    if kept_right is not None:
        kept = bilinear.grad_left(grad, kept_right, (left_shape[0], k))
        if ctx.scaled == "left":
            kept = kept.mul_(scale)
        full, places = kept.new_zeros(left_shape), index.expand(left_shape[0], -1)
        grad_left = (full.scatter_ if ctx.unique else full.scatter_add_)(1, places, kept)
    if kept_left is not None:
        shape = (right_shape[0], k) if ctx.inner else (k, right_shape[1])
        kept = bilinear.grad_right(grad, kept_left, shape)
        rows = kept.t() if ctx.inner else kept
        if ctx.scaled == "right":
            rows.t().mul_(scale)
        full = bags(rows.contiguous(), index, 1, left_shape[1])
        grad_right = full.t() if ctx.inner else full
    grad_bias = bilinear.grad_bias(grad) if ctx.needs_input_grad[2] else None
    return grad_left, grad_right, grad_bias, None, None, None


_refusing = once_differentiable(_gradients)
"""The gradients, of which no gradients can be taken."""
