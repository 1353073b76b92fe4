"""`bernoulli`: every pair on its own, with a size that varies."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..sampling.draws import ascending, inclusion, uniforms
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
    pairs of scale 0 to `padded_size`, which takes two values in all but 3% of draws of one group."""

    def select(self, scores: Tensor, k: int, stream: Stream) -> Selection:
        p = inclusion(scores, k)
        # u ≤ p as a ratio, so that one ordering puts what is included before what may pad
        ratio = uniforms(tuple(p.shape), stream.generator(), p.device).div_(p)
        most = int((ratio <= 1.0).sum(-1).amax())  # waits for the device: the size is data
        size = padded_size(most, k, p.shape[-1])
        index = ascending(ratio.topk(size, largest=False, sorted=False).indices)
        scale = torch.where(ratio.gather(-1, index) <= 1.0, p.gather(-1, index).reciprocal_(), 0.0)
        return Selection(index, scale.to(scores.dtype))


def padded_size(count: int, k: int, n: int) -> int:
    """k, or k plus the fewest whole steps that hold `count`, at most n.

    A step is two standard deviations of the count, √(k(1 − k/n)) at most each, rounded up to a multiple
    of 8: 32 for k = 500 of 1000, 8 for k = 8 of 16."""
    step = 8 * math.ceil(2 * math.sqrt(k * (1 - k / n)) / 8)
    return min(k + step * max(0, math.ceil((count - k) / step)), n)
