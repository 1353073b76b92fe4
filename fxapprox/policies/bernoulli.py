"""`bernoulli`: every pair on its own, with a size that varies."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..sampling.draws import independent
from ._base import Policy, Selection, Stream, policy


@policy(
    "bernoulli",
    source='Adelman et al. 2021, section 4; "MC-approx" in Ebrahimi, Advani, Asudeh 2023',
    unbiased=True,
    random=True,
    size="about k",
)
@dataclass(frozen=True)
class Bernoulli(Policy):
    """Include each pair independently with p_i = min(c·s_i, 1), Σp = k, scaled by 1/p_i.

    Unbiased. The number of pairs is random with mean k and variance Σp(1 − p) ≤ k(1 − k/n). Kernels build
    a new primitive per size, 10 to 100 executions' worth, so rows are padded with *distinct* unselected
    pairs of scale 0 to the next multiple of 8."""

    def select(self, scores: Tensor, k: int, stream: Stream) -> Selection:
        return Selection(*independent(scores, k, stream.generator()))
