"""`pps`: exactly k pairs, each included with probability proportional to its size."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..sampling.draws import proportional
from ._base import Policy, Selection, Stream, policy


@policy(
    "pps",
    source="Madow 1949 (systematic, probability proportional to size), after a random permutation",
    unbiased=True,
    random=True,
)
@dataclass(frozen=True)
class ProportionalToSize(Policy):
    """Include pair i with probability p_i = min(c·s_i, 1), Σp = k, scaled by 1/p_i; always exactly k pairs.

    Unbiased. A dominant pair is always kept, unscaled; what it leaves over goes to the others."""

    def select(self, scores: Tensor, k: int, stream: Stream) -> Selection:
        return Selection(*proportional(scores, k, stream.generator()))
