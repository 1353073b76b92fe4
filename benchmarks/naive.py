"""The published implementations' way to sample by topk, from their description, to compare with.

Norms of both operands at every step, the indices as topk gives them, operands gathered by
`index_select`, the exact operation on them, gradients copied into dense zeros.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Gather(torch.autograd.Function):
    """`index_select`, whose gradient is `index_copy_` into zeros."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, dim: int, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.dim, ctx.shape = dim, tensor.shape
        return tensor.index_select(dim, index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (index,) = ctx.saved_tensors
        return grads[0].new_zeros(ctx.shape).index_copy_(ctx.dim, index, grads[0]), None, None


class BackwardLinear(torch.autograd.Function):
    """An exact linear layer whose two gradients are sampled, each by its own scores."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, keep: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.keep = keep
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None, None]:
        (grad,), (x, weight) = grads, ctx.saved_tensors
        grad_x = None
        if ctx.needs_input_grad[0]:
            nodes = _largest(grad.norm(dim=0) * weight.norm(dim=1), ctx.keep)
            grad_x = grad.index_select(1, nodes) @ weight.index_select(0, nodes)
        rows = _largest(grad.norm(dim=1) * x.norm(dim=1), ctx.keep)
        grad_weight = grad.index_select(0, rows).t() @ x.index_select(0, rows)
        return grad_x, grad_weight, grad.sum(0) if ctx.needs_input_grad[2] else None, None


class Linear(nn.Linear):
    """A linear layer that samples in training."""

    keep, scope = 0.5, "forward"

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        flat = x.reshape(-1, x.shape[-1])
        if self.scope == "backward":
            result = BackwardLinear.apply(flat, self.weight, self.bias, self.keep)
        else:
            pairs = _largest(flat.detach().norm(dim=0) * self.weight.detach().norm(dim=0), self.keep)
            result = F.linear(Gather.apply(flat, 1, pairs), Gather.apply(self.weight, 1, pairs), self.bias)
        return result.reshape(*x.shape[:-1], -1)


class Conv2d(nn.Conv2d):
    """A convolution that samples its input channels in training."""

    keep, scope = 0.5, "forward"

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        norms = [one.detach().flatten(2).norm(dim=2).norm(dim=0) for one in (x, self.weight)]
        channels = _largest(norms[0] * norms[1], self.keep)
        cut = Gather.apply(x, 1, channels), Gather.apply(self.weight, 1, channels)
        return F.conv2d(*cut, self.bias, self.stride, self.padding, self.dilation)


def published(model: nn.Module, keep: float, scope: str = "forward", *, stem: bool = True) -> nn.Module:
    """The model with every linear layer and every convolution (`stem`: but the first) sampled this way, in
    place. Groups of convolutions and string paddings are not in the comparison's nets."""
    first = stem
    for module in model.modules():
        sampled: type[Linear] | type[Conv2d] | None = None
        if type(module) is nn.Linear:
            sampled = Linear
        elif type(module) is nn.Conv2d:
            sampled = Conv2d
        if sampled is not None and not first:
            module.__class__ = sampled
            module.keep, module.scope = keep, scope  # type: ignore[assignment]
        first = first and sampled is None
    return model


def _largest(scores: Tensor, keep: float) -> Tensor:
    return scores.topk(max(int(keep * scores.numel()), 1), sorted=False).indices
