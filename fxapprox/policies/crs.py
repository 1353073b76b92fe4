"""`crs`: column-row sampling with replacement."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..sampling.draws import relative, with_replacement
from ._base import Policy, Selection, Stream, policy


@policy(
    "crs",
    source="Drineas, Kannan, Mahoney 2006; Adelman et al. 2021, section 2.2",
    unbiased=True,
    random=True,
)
@dataclass(frozen=True)
class ColumnRowSampling(Policy):
    """Draw k pairs with replacement, p_i = s_i/Σs, each scaled by 1/(k·p_i).

    Unbiased, with E‖error‖² = (Σs)²/k − ‖AB‖²/k (the least of all p for draws with replacement). A pair
    may come several times: each occurrence is an entry of its own."""

    def select(self, scores: Tensor, k: int, stream: Stream) -> Selection:
        shares = relative(scores)
        index = with_replacement(shares, k, stream.generator())
        scale = shares.sum(-1, keepdim=True) / shares.gather(-1, index).mul_(k)
        return Selection(index, scale.to(scores.dtype), unique=False)
