"""One contraction with its three products, each exact, sampled, or through the pairs drawn forward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..choices import Choice, Sampled, Treatment
from ..errors import RequestError
from ..kinds import Bilinear, Operand, Operation
from ..policies import Policy, Selection
from ..sites import ProductName
from .matrices import matrix_product
from .memory import Pace, RowMemory
from .rectifiers import hold_signs
from .scores import pair_scores
from .streams import Draw

ROWS = 512


def sampled_product(
    operation: Operation,
    choice: Choice,
    draw: Draw,
    memory: RowMemory | None = None,
    pace: Callable[[], Pace | None] | None = None,
) -> Tensor:
    """The operation's result with its products done as `choice` says; where it wants a memory for
    grad_weight that is `memory`, and `pace` tells how the weight learns at a step.

    Autocast is as for the exact operation: operands are cast to its dtype. Where every product that
    this call needs comes out exact (k = n, no gradient wanted, an empty operand) this is the exact
    operation itself, to the bit. Gradients of gradients are not defined: asking for them raises.

    Kept for backward, and nothing else: the pairs' indices and scales; the left operand whole where
    grad_weight is exact or draws for itself, only its kept part where it is reused; the right operand
    likewise for grad_input; with `center` the mean, and the right operand whole. A weight's kept part is
    gathered again where that is next to nothing of the step (in a small layer it is a tenth of the backward
    pass). Where the left operand is not kept whole, a ReLU that made it does not keep it either
    (`rectifiers.py`)."""
    bilinear = operation.bilinear
    result = matrix_product(operation, choice, draw)
    if result is not None:
        hold_signs(operation.left)
    elif (job := _job(operation, choice, draw, memory, pace)) is not None:
        result = applied(_SampledProduct, operation, job)
        if job.forward != "exact" and job.grad_weight in ("reuse", None):
            hold_signs(operation.left)
    else:
        result = bilinear.forward(operation.left, operation.right, operation.bias)
    return operation.finish(result) if operation.finish else result


def applied(function: type[torch.autograd.Function], operation: Operation, job: object) -> Tensor:
    """`function.apply(left, right, bias, job)`; under autocast with operands of its dtype, and without it
    inside."""
    device = operation.left.device.type
    operands = (operation.left, operation.right, operation.bias)
    if not torch.is_autocast_enabled(device):
        return function.apply(*operands, job)
    dtype = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        return function.apply(*(_cast(operand, dtype) for operand in operands), job)


@dataclass(slots=True, eq=False)  # not frozen: it is made in every call, and that takes four times as long
class _Job:
    """What one call does, less its tensors, which autograd must see. None: a gradient nobody wants."""

    bilinear: Bilinear
    forward: Treatment
    grad_input: Treatment | None
    grad_weight: Treatment | None
    left_shape: tuple[int, ...]
    right_shape: tuple[int, ...]
    draw: Draw
    memory: RowMemory | None
    pace: Callable[[], Pace | None] | None

    def sizes(self, product: ProductName) -> tuple[int, int]:
        groups, pairs, _ = self.bilinear.sizes(product, self.left_shape, self.right_shape)
        return groups, pairs

    def select(
        self, product: ProductName, how: Sampled, first: Tensor, second: Tensor, mean: Tensor | None = None
    ) -> Selection:
        shape = self.sizes(product)
        assert isinstance(how.policy, Policy)
        scores = pair_scores(how.policy.scores, self.bilinear, product, first, second, shape, mean)
        return how.policy.select(scores, how.k(shape[1], self.draw.step), self.draw.stream(product))

    def cut(
        self, product: ProductName, first: Tensor, second: Tensor, selection: Selection
    ) -> tuple[Tensor, Tensor]:
        """Both operands cut to the kept pairs, the scale multiplied into the smaller one."""
        kept = [
            self.bilinear.take(product, 0, first, selection.index),
            self.bilinear.take(product, 1, second, selection.index),
        ]
        if selection.scale is not None:
            smaller = _smaller(*kept)
            kept[smaller] = self.bilinear.scale(product, smaller, kept[smaller], selection.scale)
        return kept[0], kept[1]

    def gathers_again(self, right: Tensor) -> bool:
        """Whether backward gathers the kept part of a weight again: a weight lives anyway, and where each of
        its entries meets `ROWS` rows of the batch a gather is little beside the products."""
        return isinstance(right, nn.Parameter) and self.bilinear.flops(self.left_shape, self.right_shape) >= (
            2 * ROWS * right.numel()
        )

    def rest_of(self, short: Tensor, selection: Selection) -> Tensor:
        """The mean's share: every pair of a short left operand times 1 − z, z its scale, 0 where not kept."""
        groups, pairs = self.sizes("forward")
        ones = (
            torch.ones_like(selection.index, dtype=torch.float32)
            if selection.scale is None
            else selection.scale
        )
        kept = ones.new_zeros(groups, pairs).scatter_add_(1, selection.index, ones)
        return self.bilinear.scale("forward", 0, short, 1 - kept)


def _job(
    operation: Operation,
    choice: Choice,
    draw: Draw,
    memory: RowMemory | None,
    pace: Callable[[], Pace | None] | None,
) -> _Job | None:
    """What there is to do, None where every product is exact."""
    left, right = operation.left, operation.right
    if left.numel() == 0 or right.numel() == 0:
        return None
    shapes = tuple(left.shape), tuple(right.shape)
    grad = torch.is_grad_enabled()
    waits = memory is not None and len(memory.slots) > 0

    def treatment(product: ProductName) -> Treatment:
        how = choice.treatment(product)
        if not isinstance(how, Sampled):
            return how
        _check_weight_scores(operation, product, how)
        pairs = operation.bilinear.sizes(product, *shapes)[1]
        everything = how.k(pairs, draw.step) == pairs and not (waits and product == "grad_weight")
        return "exact" if everything else how

    def gradient(product: ProductName, operand: Tensor) -> Treatment | None:
        how = treatment(product)
        how = "exact" if how == "reuse" and forward == "exact" else how
        return how if grad and operand.requires_grad else None

    forward = treatment("forward")
    grad_input, grad_weight = gradient("grad_input", left), gradient("grad_weight", right)
    if forward == "exact" and grad_input in ("exact", None) and grad_weight in ("exact", None):
        return None
    return _Job(operation.bilinear, forward, grad_input, grad_weight, *shapes, draw, memory, pace)


def _check_weight_scores(operation: Operation, product: ProductName, how: Sampled) -> None:
    if how.policy.scores == "weight" and (product == "grad_weight" or not operation.weight):
        what = "grad_weight has no weight" if operation.weight else "this product has no weight"
        raise RequestError(
            f"policy {how.policy.name!r} scores pairs by the layer's weight, and {what} among its operands",
            remedy="choose a policy that scores pairs, such as topk",
        )


def _cast(operand: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """As autocast does: every floating dtype but float64."""
    if operand is None or not operand.is_floating_point() or operand.dtype == torch.float64:
        return operand
    return operand.to(dtype)


def _smaller(first: Tensor, second: Tensor) -> Operand:
    return 0 if first.numel() <= second.numel() else 1


class _SampledProduct(torch.autograd.Function):
    """The products of one call. `ctx` holds tensors only through `save_for_backward`."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, bias: Tensor | None, job: _Job) -> Tensor:
        ctx.job, ctx.scaled = job, None
        if job.forward == "exact":
            ctx.save_for_backward(left if job.grad_weight else None, right if job.grad_input else None)
            return job.bilinear.forward(left, right, bias)
        assert isinstance(job.forward, Sampled)
        mean = job.bilinear.center(left) if job.forward.center else None
        selection = job.select("forward", job.forward, left, right, mean)
        kept_left, kept_right = job.cut("forward", left, right, selection)
        result = job.bilinear.forward(kept_left, kept_right, bias)
        if mean is not None:
            row = job.bilinear.forward(job.rest_of(mean, selection), right, None)
            ctx.row_shape, ctx.mean_shape = row.shape, mean.shape
            result.add_(row)
        ctx.unique = selection.unique
        ctx.scaled = None if selection.scale is None else _smaller(kept_left, kept_right)
        ctx.kept_shapes = kept_left.shape, kept_right.shape
        ctx.strides = left.stride(), right.stride()
        reuse_input, reuse_weight = job.grad_input == "reuse", job.grad_weight == "reuse"
        again = reuse_input and job.gathers_again(right)
        whole_right = job.grad_input is not None and (not reuse_input or again or mean is not None)
        ctx.save_for_backward(
            left if job.grad_weight is not None and not reuse_weight else None,
            right if whole_right else None,
            kept_left if reuse_weight else None,
            kept_right if reuse_input and not again else None,
            mean if reuse_weight else None,
            selection.index if reuse_input or reuse_weight else None,
            selection.scale if reuse_input or reuse_weight else None,
        )
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        # the wrapper is for create_graph=True, and takes a tenth of a small layer's time
        return _refusing(ctx, grad) if torch.is_grad_enabled() else _backward(ctx, grad)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
    saved = _Saved(*ctx.saved_tensors)
    device = grad.device.type
    if not torch.is_autocast_enabled(device):
        return _gradients(ctx, grad, saved)
    with torch.autocast(device, enabled=False):
        return _gradients(ctx, grad, saved)


_refusing = once_differentiable(_backward)
"""The gradients, of which no gradients can be taken."""


@dataclass(slots=True, eq=False)
class _Saved:
    """What forward left for backward, each where it is needed."""

    left: Tensor | None
    right: Tensor | None
    kept_left: Tensor | None = None
    kept_right: Tensor | None = None
    mean: Tensor | None = None
    index: Tensor | None = None
    scale: Tensor | None = None


def _gradients(
    ctx: Any, grad: Tensor, saved: _Saved
) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
    job: _Job = ctx.job
    selection = None if saved.index is None else Selection(saved.index, saved.scale, ctx.unique)
    if selection is not None and job.grad_weight == "reuse" and job.grad_input in ("reuse", None):
        return *_reused(ctx, grad, saved, selection), None
    grad_left = grad_right = None
    if job.grad_input is not None and selection is not None and job.grad_input == "reuse":
        kept = job.bilinear.grad_left(grad, _kept_right(ctx, saved, selection), tuple(ctx.kept_shapes[0]))
        grad_left = _full_left(ctx, grad, saved, selection, kept)
    elif job.grad_input is not None:
        assert saved.right is not None
        first, second = grad, saved.right
        if isinstance(job.grad_input, Sampled):
            drawn = job.select("grad_input", job.grad_input, first, second)
            first, second = job.cut("grad_input", first, second, drawn)
        grad_left = job.bilinear.grad_left(first, second, job.left_shape)
    if job.grad_weight is not None and selection is not None and job.grad_weight == "reuse":
        assert saved.kept_left is not None
        kept = job.bilinear.grad_right(grad, saved.kept_left, tuple(ctx.kept_shapes[1]))
        grad_right = _full_right(ctx, grad, saved, selection, kept)
    elif job.grad_weight is not None:
        assert saved.left is not None
        grad_right = _grad_right(job, grad, saved.left)
    grad_bias = job.bilinear.grad_bias(grad) if ctx.needs_input_grad[2] else None
    return grad_left, grad_right, grad_bias, None


def _reused(
    ctx: Any, grad: Tensor, saved: _Saved, selection: Selection
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """All gradients that are wanted, through the forward's pairs."""
    job: _Job = ctx.job
    assert saved.kept_left is not None
    kept_right = None if job.grad_input is None else _kept_right(ctx, saved, selection)
    left, right, bias = job.bilinear.gradients(
        grad, saved.kept_left, kept_right, tuple(ctx.kept_shapes[1]), ctx.needs_input_grad[2]
    )
    left = None if left is None else _full_left(ctx, grad, saved, selection, left)
    return left, _full_right(ctx, grad, saved, selection, right), bias


def _grad_right(job: _Job, grad: Tensor, left: Tensor) -> Tensor:
    """The right gradient, exact or from rows of its own draw, those that waited among them."""
    how = job.grad_weight

    def chosen(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        assert isinstance(how, Sampled)
        groups, pairs = job.sizes("grad_weight")
        if how.k(pairs, job.draw.step) < pairs:
            drawn = job.select("grad_weight", how, first, second)
        else:
            drawn = Selection(torch.arange(pairs, device=first.device).expand(groups, pairs))
        kept = job.cut("grad_weight", first, second, drawn)
        # what waits is wider than half types
        gradient = job.bilinear.grad_right(kept[0].to(grad.dtype), kept[1].to(left.dtype), job.right_shape)
        return gradient, drawn.index, kept

    if not isinstance(how, Sampled):
        return job.bilinear.grad_right(grad, left, job.right_shape)
    pace = job.pace() if job.pace else None
    # a step of length 0 would use up what waits for nothing
    if job.memory is None or how.memory is None or (pace is not None and pace.rate == 0):
        return chosen(grad, left)[0]
    return job.memory.apply(
        job.bilinear, (grad, left), job.right_shape, chosen, pace=pace, decay=how.memory.decay
    )


def _kept_right(ctx: Any, saved: _Saved, selection: Selection) -> Tensor:
    """The right operand's kept part: as forward left it, or gathered again."""
    if saved.kept_right is not None:
        return saved.kept_right
    assert saved.right is not None
    kept: Tensor = ctx.job.bilinear.take("forward", 1, saved.right, selection.index)
    if selection.scale is not None and ctx.scaled == 1:
        kept = ctx.job.bilinear.scale("forward", 1, kept, selection.scale)
    return kept


def _full_left(ctx: Any, grad: Tensor, saved: _Saved, selection: Selection, kept: Tensor) -> Tensor:
    """The left gradient from that of the forward's pairs: zero elsewhere but for the mean's part."""
    job: _Job = ctx.job
    if selection.scale is not None and ctx.scaled == 0:
        kept = job.bilinear.scale("forward", 0, kept, selection.scale)
    selected = selection.index, selection.unique
    full = job.bilinear.spread("forward", 0, kept, selected, job.left_shape, ctx.strides[0])
    if isinstance(job.forward, Sampled) and job.forward.center:
        assert saved.right is not None
        row = job.bilinear.grad_left(grad.sum_to_size(ctx.row_shape), saved.right, tuple(ctx.mean_shape))
        full.add_(job.bilinear.center_grad(job.rest_of(row, selection), job.left_shape))
    return full


def _full_right(ctx: Any, grad: Tensor, saved: _Saved, selection: Selection, kept: Tensor) -> Tensor:
    """The right gradient from that of the forward's pairs: zero elsewhere but for the mean's part."""
    job: _Job = ctx.job
    if selection.scale is not None and ctx.scaled == 1:
        kept = job.bilinear.scale("forward", 1, kept, selection.scale)
    selected = selection.index, selection.unique
    full = job.bilinear.spread("forward", 1, kept, selected, job.right_shape, ctx.strides[1])
    if saved.mean is not None:
        rest = job.rest_of(saved.mean, selection)
        full.add_(job.bilinear.grad_right(grad.sum_to_size(ctx.row_shape), rest, job.right_shape))
    return full
