"""A node policy: chooses output nodes of a layer (rows of its weight) instead of column-row pairs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from ..kinds import AxisBilinear
from ..sampling.streams import Draw
from ..sites import Site
from ._base import AnyPolicy, Scope, Scores, Size, Stream, policies


@dataclass(frozen=True)
class Active:
    """The output nodes that are computed; the others are 0, bias included.

    `index` int64, ascending in each row: `[groups, k]`, one choice for the whole batch, or with
    `each` `[rows, k]`, one an example. `scale` like `index` multiplies the nodes, None is 1 everywhere."""

    index: Tensor
    scale: Tensor | None = None
    each: bool = False


@dataclass(frozen=True)
class Gates:
    """Which entries of `Layer.result` stand (bool, in its shape); the others are 0. For policies that must
    know the result to choose, so that only the gradients are spared."""

    open: Tensor


class Derived(Protocol):
    """What a policy keeps at a site between steps and can make again from the weight. Copies and pickles
    of the model begin without it."""

    def forget(self) -> None:
        """The weight is another: loaded, moved or cast."""

    def state(self) -> dict[str, Any]:
        """What a resumed run needs to choose as this one would: ints and tensors, none shared with it."""

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on as the run did whose `state` this is, whether the weight is loaded before or after."""


@dataclass(frozen=True)
class Layer:
    """One call of a site as a node policy sees it: outside autograd and autocast.

    `sizes` is (groups, nodes in each): more than one group where groups of nodes see inputs of their own.
    `operands` are left, right and bias, in the forward pass only; `grad` is the gradient of the result,
    in the backward pass only. `kept` is what `NodePolicy.keeps` gave for the site. `draw` numbers the call;
    with `draw.again` it repeats an earlier one (gradient checkpointing) and must choose as that did."""

    bilinear: AxisBilinear
    sizes: tuple[int, int]
    device: torch.device
    draw: Draw
    operands: tuple[Tensor, Tensor, Tensor | None] | None = None
    grad: Tensor | None = None
    kept: Any = None

    @property
    def inputs(self) -> Tensor:
        """The left operand; of a linear layer `[rows, in]`."""
        assert self.operands is not None
        return self.operands[0]

    @property
    def weight(self) -> Tensor:
        """The weight of a linear layer as `[nodes, in]`: a view, whichever way it is kept."""
        assert self.operands is not None
        right = self.operands[1]
        return right if self.bilinear.contraction("grad_input").second.dim == 0 else right.t()

    @cached_property
    def result(self) -> Tensor:
        """The exact result of the product."""
        assert self.operands is not None
        return self.bilinear.forward(*self.operands)

    @property
    def magnitudes(self) -> Tensor:
        """Σ|grad| of every node over all else, float32 or float64 `[groups, nodes]`."""
        assert self.grad is not None
        # `energy` adds up squares, for groups of any layout
        return self.bilinear.energy("grad_input", 0, self.grad.abs().sqrt_())


class NodePolicy(AnyPolicy):
    """Chooses output nodes. In scope "forward" all three products go through the nodes chosen in the forward
    pass: the others are not computed, output 0, and their rows of the weight and the bias get no gradient.
    In scope "backward" the forward pass is exact and both gradients go through the nodes that are
    chosen by the gradient of the result; the bias gradient is exact."""

    samples = "nodes"

    @abstractmethod
    def choose(self, layer: Layer, k: int, stream: Stream) -> Active | Gates:
        """Choose nodes.

        Args:
            layer: the call; `layer.grad` is there in scope "backward" only.
            k: nodes to keep per group, 1 ≤ k < nodes (all nodes is the exact product).
            stream: random numbers; `stream.generator()` gives the one generator of this draw.
        """

    def keeps(self) -> Derived | None:
        """What one site keeps between steps, new; None where a choice needs nothing but its call."""
        return None

    def refuses(self, site: Site) -> str | None:
        """Why this policy cannot serve a site; None where it can."""
        if site.weight is not None:
            return None
        return (
            f"policy {self.name!r} samples output nodes, the rows of a weight, "
            f"and {site.op} here has no parameter among its operands"
        )

    def evaluate(self, result: Tensor) -> Tensor:
        """What evaluation makes of the exact result, where `evaluation` is "own"; differentiable."""
        raise NotImplementedError(f"policy {self.name!r} evaluates exactly")


P = TypeVar("P", bound=type[NodePolicy])


def node_policy(
    name: str,
    *,
    source: str,
    unbiased: bool,
    random: bool,
    scores: Scores,
    size: Size = "k",
    scopes: tuple[Scope, ...] = ("forward",),
    sized_by: tuple[str, ...] = (),
    evaluation: Literal["exact", "own"] = "exact",
) -> Callable[[P], P]:
    """Register a node policy under `name`, with the facts that tables and checks print."""

    def register(cls: P) -> P:
        cls.name, cls.source, cls.unbiased, cls.random = name, source, unbiased, random
        cls.scores, cls.size, cls.scopes, cls.sized_by = scores, size, scopes, sized_by
        cls.evaluation = evaluation
        policies.add(name, cls)
        return cls

    return register
