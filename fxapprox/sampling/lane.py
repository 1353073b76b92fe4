"""The short way of a linear layer that is called with one matrix, where the fused kernels are built; where
only gradients are sampled, with a stack of matrices, too.

The same estimator, draws and gradients as `product.py`, in few Python functions: around a product of half a
millisecond a hundred of them, each swept out of the caches by the one before, cost as much as it does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..choices import Choice, Sampled
from ..kinds._strides import PLAIN
from ..kinds.linear import Rows
from ..native import Kernels, kernels
from ..policies import Policy, Selection
from ..sites import ProductName
from .matrices import MatrixProduct, plain_matrices
from .scores import pair_scores
from .streams import Draw

ROWS, ROWS_INNER_FIRST = Rows(), Rows(inner_first=True)
Drawer = Callable[[Tensor], Draw]


@dataclass(slots=True, eq=False)
class Lane:
    """What one layer does on this way. `draw` makes the draw of a forward pass; `sizes` remembers k by n."""

    choice: Choice
    draw: Drawer
    sizes: dict[tuple[ProductName, int], int] = field(default_factory=dict)

    def __call__(self, layer: nn.Module, x: Any) -> Tensor | None:
        """The layer's result; None where the call is not of this form."""
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            return None
        weight, bias = layer._parameters.get("weight"), layer._parameters.get("bias")
        fused = kernels()
        if fused is None or type(x) not in PLAIN or type(weight) is not nn.Parameter or x.dim() < 2:
            return None
        if bias is not None and (bias.shape != weight.shape[:1] or bias.dtype != weight.dtype):
            return None
        if self.choice.forward == "exact":
            return self._backward(fused, x, weight, bias)
        if x.dim() > 2:  # the general way makes one matrix of it, too, and then fused products
            return None
        k = self.k("forward", x.shape[1])
        scores = fused.scores(x, weight, True) if k < x.shape[1] else None
        if scores is None:
            return None
        selection = self.select("forward", scores, k, self.draw(x))
        if not selection.unique:
            result: Tensor = MatrixProduct.apply(x, weight, bias, ROWS_INNER_FIRST, True, selection)
            return result
        return fused.product(x, weight, bias, selection.index, selection.scale, True)

    def _backward(self, fused: Kernels, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
        watched = torch._C._len_torch_dispatch_stack() > 0  # by a flop counter, say: kernels are not torch's
        if watched or x.numel() == 0 or weight.numel() == 0:
            return None
        if not (torch.is_grad_enabled() and x.is_contiguous() and weight.is_contiguous()):
            return None
        rows = x if x.dim() == 2 else x.flatten(0, -2)
        if not plain_matrices(rows, weight):
            return None
        result = fused.own(rows, weight, bias, self.gradients, self.draw(x))
        return result if x.dim() == 2 else result.unflatten(0, x.shape[:-1])

    def gradients(self, grad: Tensor, *given: Any) -> tuple[Tensor | None, ...]:
        """What the backward pass calls; see `Kernels.own`."""
        return (_refusing if torch.is_grad_enabled() else _gradients)(self, grad, *given)

    def k(self, product: ProductName, pairs: int) -> int:
        known = self.sizes.get((product, pairs))
        if known is None:
            how = getattr(self.choice, product)
            known = self.sizes[product, pairs] = how.k(pairs)
        return known

    def select(self, product: ProductName, scores: Tensor, k: int, draw: Draw) -> Selection:
        return getattr(self.choice, product).policy.select(scores, k, draw.stream(product))


def lane(choice: Choice, draw: Drawer) -> Lane | None:
    """The short way for this choice; None where it has none."""
    if choice.forward == "exact":
        ways = [how for how in (choice.grad_input, choice.grad_weight) if how != "exact"]
        fits = all(_plain(how) for how in ways) and len(ways) > 0
    else:
        fits = _plain(choice.forward) and choice.grad_input == choice.grad_weight == "reuse"
    return Lane(choice, draw) if fits else None


def _plain(how: Any) -> bool:
    if not isinstance(how, Sampled) or not isinstance(how.policy, Policy) or how.policy.scores != "pair":
        return False
    return not how.center and how.memory is None and isinstance(how.keep, float | int)


def _gradients(
    lane: Lane, grad: Tensor, x: Tensor | None, weight: Tensor | None, wanted: bool, draw: Draw
) -> tuple[Tensor | None, ...]:
    """Gradients of x, weight and bias, each with a draw of its own."""
    if torch.is_autocast_enabled("cpu"):
        with torch.autocast("cpu", enabled=False):
            return _gradients(lane, grad, x, weight, wanted, draw)
    grad, fused = grad.contiguous(), kernels()
    assert fused is not None
    grad_x = None if weight is None else _grad_input(lane, draw, fused, grad, weight)
    grad_weight = None if x is None else _grad_weight(lane, draw, fused, grad, x)
    return grad_x, grad_weight, grad.sum(0) if wanted else None


_refusing = once_differentiable(_gradients)
"""The gradients, of which no gradients can be taken."""


def _grad_input(lane: Lane, draw: Draw, fused: Kernels, grad: Tensor, weight: Tensor) -> Tensor:
    """Contracted over the output features: columns of the gradient and rows of the weight."""
    pairs = grad.shape[1]
    k = pairs if lane.choice.grad_input == "exact" else lane.k("grad_input", pairs)
    if k == pairs:
        return grad @ weight
    scores = fused.scores(grad, weight, False)
    if scores is None:
        scores = pair_scores("pair", ROWS, "grad_input", grad, weight, (1, pairs))
    selection = lane.select("grad_input", scores, k, draw)
    return fused.through(grad, weight, selection.index, selection.scale)


def _grad_weight(lane: Lane, draw: Draw, fused: Kernels, grad: Tensor, x: Tensor) -> Tensor:
    """Contracted over the batch: rows of both."""
    pairs = len(x)
    k = pairs if lane.choice.grad_weight == "exact" else lane.k("grad_weight", pairs)
    if k == pairs:
        return grad.t() @ x
    scores = fused.row_scores(grad, x)
    if scores is None:
        scores = pair_scores("pair", ROWS, "grad_weight", grad, x, (1, pairs))
    selection = lane.select("grad_weight", scores, k, draw)
    return fused.outer(grad, x, selection.index, selection.scale)
