"""`adaptive-dropout`: every node is kept with a probability that grows with its own input."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import RequestError
from ..sites import ProductName
from ._base import Stream
from ._nodes import Gates, Layer, NodePolicy, node_policy


@node_policy(
    "adaptive-dropout",
    source="Ba and Frey 2013 (standout); Ebrahimi et al. 2023, section 4.1",
    unbiased=False,
    random=True,
    scores="result",
    size="about k",
    sized_by=("alpha", "beta"),
    evaluation="own",
)
@dataclass(frozen=True)
class AdaptiveDropout(NodePolicy):
    """Keep node j of an example with probability p_j = σ(alpha·y_j + beta), y = Wx + b, unscaled.

    The probabilities need y, so the forward product is computed whole; gradients go only through what was
    kept, and nodes kept in no example of the batch are left out of both gradient products. Evaluation uses
    the expectation p·y (with a ReLU behind it the expectation of its output), not the exact model's y.

    Options:
        alpha: how much the probability follows the node's own input; 0 is plain dropout without scaling.
        beta: σ(beta) is the probability where y is 0.
    """

    alpha: float = 1.0
    beta: float = 0.0

    def __post_init__(self) -> None:
        for option in ("alpha", "beta"):
            if not math.isfinite(getattr(self, option)):
                raise RequestError(
                    f"policy 'adaptive-dropout': {option} = {getattr(self, option)} is not finite"
                )

    @property
    def own_keep(self) -> float:
        """The share kept where y is 0, or symmetric about it with beta = 0; never all, whatever beta is."""
        return min(max(1 / (1 + math.exp(-min(max(self.beta, -30.0), 30.0))), 1e-6), 1 - 1e-6)

    def work(self, product: ProductName, k: int, n: int, rows: int) -> float:
        return 1.0 if product == "forward" else 1 - (1 - k / n) ** rows

    def choose(self, layer: Layer, k: int, stream: Stream) -> Gates:
        result = layer.result
        numbers = torch.rand(result.shape, generator=stream.generator()).to(layer.device)
        # written so that a node whose input is NaN stands, and shows
        return Gates(~(numbers >= self._probability(result)))

    def evaluate(self, result: Tensor) -> Tensor:
        return self._probability(result).to(result.dtype) * result

    def _probability(self, result: Tensor) -> Tensor:
        wide = result if result.dtype == torch.float64 else result.float()
        return torch.sigmoid(self.alpha * wide + self.beta)
