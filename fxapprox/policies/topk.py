"""`topk`: the pairs with the largest norm products."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..sampling.draws import largest
from ._base import Policy, Selection, Stream, policy


@policy("topk", source="Adelman et al. 2021, section 6", unbiased=False, random=False)
@dataclass(frozen=True)
class TopK(Policy):
    """Keep the k column-row pairs with the largest norm products, unscaled.

    Biased; the least mean squared error where pairs are independent with zero mean (Theorem 2), which
    `center` brings about."""

    def select(self, scores: Tensor, k: int, stream: Stream) -> Selection:
        return Selection(largest(scores, k))
