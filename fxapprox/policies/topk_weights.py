"""`topk-weights`: the pairs with the largest rows of the weight."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..sampling.draws import largest
from ._base import Policy, Selection, Stream, policy


@policy(
    "topk-weights", source="Adelman et al. 2021, section 6", unbiased=False, random=False, scores="weight"
)
@dataclass(frozen=True)
class TopKWeights(Policy):
    """Keep the k pairs whose weight part has the largest norm, unscaled.

    Biased. The choice depends on the weight only, so every data-parallel worker makes the same one,
    and the norms can be kept between steps."""

    def select(self, scores: Tensor, k: int, stream: Stream) -> Selection:
        return Selection(largest(scores, k))
