"""One contraction of which only chosen output nodes are computed, forward, backward or both.

Nodes are what the gradient of the input is contracted over: the out features of a linear layer, the out
channels of a convolution (in each group). A choice for the whole batch gathers rows of the weight, so that
every product runs on smaller operands; a choice for each example is in `examples.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..choices import Choice, Sampled
from ..errors import RequestError
from ..kinds import AxisBilinear, Operand, Operation
from ..kinds._bilinear import positions
from ..policies import Active, Gates, Layer, NodePolicy
from ..policies._nodes import Derived
from ..sites import PRODUCTS
from . import examples
from .product import applied
from .streams import Draw


def node_choice(choice: Choice) -> tuple[Sampled, NodePolicy] | None:
    """The treatment that samples output nodes, and its policy; None where the choice samples none."""
    for product in PRODUCTS:
        how = choice.treatment(product)
        if isinstance(how, Sampled) and isinstance(how.policy, NodePolicy):
            return how, how.policy
    return None


def node_product(operation: Operation, choice: Choice, draw: Draw, kept: Derived | None) -> Tensor:
    """The operation's result, through the nodes that the choice's node policy chooses.

    Autocast and gradients of gradients are as for `sampled_product`. With all nodes kept, or an empty
    operand, this is the exact operation itself, to the bit. Kept for backward: both operands by reference
    (the left one where the weight needs a gradient), the chosen nodes and their scales."""
    job = _job(operation, choice, draw, kept)
    if job is None:
        result = operation.bilinear.forward(operation.left, operation.right, operation.bias)
    else:
        result = applied(_NodeProduct, operation, job)
    return operation.finish(result) if operation.finish else result


@dataclass(frozen=True)
class _Job:
    """What one call does, less its tensors, which autograd must see."""

    bilinear: AxisBilinear
    policy: NodePolicy
    k: int
    forward: bool  # whether the forward pass chooses; else the backward pass does
    sizes: tuple[int, int]  # (groups, nodes)
    left_shape: tuple[int, ...]
    right_shape: tuple[int, ...]
    draw: Draw
    kept: Derived | None

    def layer(self, device: torch.device, **seen: Any) -> Layer:
        return Layer(self.bilinear, self.sizes, device, self.draw, kept=self.kept, **seen)

    def choose(self, layer: Layer) -> Active | Gates:
        stream = self.draw.stream("forward" if self.forward else "grad_input")
        return self.policy.choose(layer, self.k, stream)

    def cut(self, operand: Operand, tensor: Tensor, index: Tensor) -> Tensor:
        """The result (0) or the weight (1) with the nodes `index` only."""
        return self.bilinear.take("grad_input", operand, tensor, index)

    def scaled(self, result: Tensor, scale: Tensor | None) -> Tensor:
        return result if scale is None else self.bilinear.scale("grad_input", 0, result, scale)

    def spread(self, operand: Operand, part: Tensor, index: Tensor) -> Tensor:
        """A cut result or weight among zeros, in the memory format it has."""
        groups, nodes = self.sizes
        at = self.bilinear.contraction("grad_input")
        pairs = at.second if operand else at.first
        shape = list(part.shape)
        shape[pairs.dim] = nodes * (groups if pairs.block is None else 1)
        return self.bilinear.spread("grad_input", operand, part, (index, True), tuple(shape), part.stride())


def _job(operation: Operation, choice: Choice, draw: Draw, kept: Derived | None) -> _Job | None:
    """What there is to do, None where everything is exact."""
    found = node_choice(choice)
    assert found is not None
    how, policy = found
    bilinear, left, right = operation.bilinear, operation.left, operation.right
    if not isinstance(bilinear, AxisBilinear):
        raise RequestError(
            f"policy {policy.name!r} samples output nodes, and {type(bilinear).__name__} does not say "
            "where they are",
            remedy="derive it from fxapprox.kinds.AxisBilinear",
        )
    if left.numel() == 0 or right.numel() == 0:
        return None
    shapes = tuple(left.shape), tuple(right.shape)
    groups, nodes, _ = bilinear.sizes("grad_input", *shapes)
    k = how.k(nodes, draw.step)
    if k == nodes:
        return None
    return _Job(bilinear, policy, k, choice.forward != "exact", (groups, nodes), *shapes, draw, kept)


class _NodeProduct(torch.autograd.Function):
    """The products of one call. `ctx` holds tensors only through `save_for_backward`."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, bias: Tensor | None, job: _Job) -> Tensor:
        ctx.job, ctx.each = job, False
        operands = (right if ctx.needs_input_grad[0] else None, left if ctx.needs_input_grad[1] else None)
        if not job.forward:
            ctx.save_for_backward(*operands, None, None, None)
            return job.bilinear.forward(left, right, bias)
        layer = job.layer(left.device, operands=(left, right, bias))
        chosen = job.choose(layer)
        if isinstance(chosen, Gates):
            ctx.save_for_backward(*operands, chosen.open, None, None)
            return layer.result.where(chosen.open, 0)
        ctx.save_for_backward(*operands, None, chosen.index, chosen.scale)
        ctx.each = chosen.each
        if chosen.each:
            return examples.forward(left, layer.weight, bias, chosen)
        part = job.bilinear.forward(left, job.cut(1, right, chosen.index), _cut_bias(bias, chosen.index, job))
        return job.spread(0, job.scaled(part, chosen.scale), chosen.index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        device = grad.device.type
        if not torch.is_autocast_enabled(device):
            return (*_gradients(ctx, grad), None)
        with torch.autocast(device, enabled=False):
            return (*_gradients(ctx, grad), None)


Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def _gradients(ctx: Any, grad: Tensor) -> Gradients:
    job: _Job = ctx.job
    right, left, gates, index, scale = ctx.saved_tensors
    if gates is not None:
        return _gated(ctx, grad.where(gates, 0), gates, left, right)
    grad_bias = None
    if not job.forward:
        chosen = job.choose(job.layer(grad.device, grad=grad))
        assert isinstance(chosen, Active)
        index, scale = chosen.index, chosen.scale
        grad_bias = job.bilinear.grad_bias(grad) if ctx.needs_input_grad[2] else None
    if ctx.each:
        return _each(ctx, grad, Active(index, scale, each=True), left, right)
    cut = job.scaled(job.cut(0, grad, index), scale)
    if job.forward and ctx.needs_input_grad[2]:
        grad_bias = _spread_bias(job.bilinear.grad_bias(cut), index, job)
    return (*_through(ctx, cut, index, left, right), grad_bias)


def _through(
    ctx: Any, grad: Tensor, index: Tensor | None, left: Tensor | None, right: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Both operands' gradients from that of the nodes `index`, None for all of them."""
    job: _Job = ctx.job
    grad_left = grad_right = None
    if right is not None:
        grad_left = job.bilinear.grad_left(
            grad, right if index is None else job.cut(1, right, index), job.left_shape
        )
    if left is not None and index is None:
        grad_right = job.bilinear.grad_right(grad, left, job.right_shape)
    elif left is not None and index is not None:
        shape = list(job.right_shape)
        pairs = job.bilinear.contraction("grad_input").second
        shape[pairs.dim] = index.shape[1] * (index.shape[0] if pairs.block is None else 1)
        grad_right = job.spread(1, job.bilinear.grad_right(grad, left, tuple(shape)), index)
    return grad_left, grad_right


def _each(ctx: Any, grad: Tensor, active: Active, left: Tensor | None, right: Tensor | None) -> Gradients:
    """Through a set of nodes for each example of a linear layer."""
    nodes, part = ctx.job.sizes[1], examples.cut(grad, active)
    by_rows = ctx.job.bilinear.contraction("grad_input").second.dim == 0
    grad_left = grad_right = None
    if right is not None:
        grad_left = examples.grad_input(part, right if by_rows else right.t(), active.index)
    if left is not None:
        rows = examples.grad_weight(part, left, active.index, nodes)
        grad_right = rows if by_rows else rows.t()
    wanted = ctx.needs_input_grad[2]
    return grad_left, grad_right, examples.grad_bias(part, active.index, nodes) if wanted else None


def _gated(ctx: Any, grad: Tensor, gates: Tensor, left: Tensor | None, right: Tensor | None) -> Gradients:
    """Through the entries that stand. Nodes that stand in some example are multiplied for all, by zeros where
    they do not: at the usual shares one dense product is faster than a gathered one for each example."""
    job: _Job = ctx.job
    grad_bias = job.bilinear.grad_bias(grad) if ctx.needs_input_grad[2] else None
    standing = job.bilinear.energy("grad_input", 0, gates).ne(0)
    # groups would stand with different numbers of nodes, which no grouped product can run on
    if job.sizes[0] > 1 or bool(standing.all() | ~standing.any()):
        return (*_through(ctx, grad, None, left, right), grad_bias)
    index = standing.nonzero()[:, 1].unsqueeze(0)
    return (*_through(ctx, job.cut(0, grad, index), index, left, right), grad_bias)


def _cut_bias(bias: Tensor | None, index: Tensor, job: _Job) -> Tensor | None:
    return None if bias is None else bias.index_select(0, positions(index, job.sizes[1]))


def _spread_bias(part: Tensor, index: Tensor, job: _Job) -> Tensor:
    groups, nodes = job.sizes
    return part.new_zeros(groups * nodes).index_copy_(0, positions(index, nodes), part)
