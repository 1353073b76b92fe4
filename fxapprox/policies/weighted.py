"""`weighted`: k pairs without replacement, large scores more likely."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ..sampling.draws import ascending, relative, uniforms
from ._base import Policy, Selection, Stream, policy
from ._options import require_one_of


@policy("weighted", source="Hernandez, Rini, Duman 2021 (weightedK)", unbiased=False, random=True)
@dataclass(frozen=True)
class Weighted(Policy):
    """Draw k pairs one after the other without replacement, each time with p ∝ s_i of those left.

    Done at once by exponential keys: the k smallest of e_i/s_i (Efraimidis and Spirakis 2006).

    Options:
        scale: "none" leaves pairs as they are, as in the paper, and is biased; "horvitz-thompson"
            scales by 1/(1 − exp(−s_i·t)), t the (k+1)-th smallest key: given the other keys, the
            probability that pair i is in (Cohen and Kaplan 2007, bottom-k sketches). Unbiased.
    """

    scale: Literal["none", "horvitz-thompson"] = "none"

    def __post_init__(self) -> None:
        require_one_of("weighted", "scale", self.scale, ("none", "horvitz-thompson"))
        object.__setattr__(self, "unbiased", self.scale == "horvitz-thompson")

    def select(self, scores: Tensor, k: int, stream: Stream) -> Selection:
        shares = relative(scores)
        keys = uniforms(tuple(shares.shape), stream.generator(), shares.device).log_().neg_().div_(shares)
        if self.scale == "none":
            return Selection(ascending(keys.topk(k, largest=False, sorted=False).indices))
        smallest = keys.topk(k + 1, largest=False)
        index = ascending(smallest.indices[:, :k])
        absent = shares.gather(-1, index).mul_(smallest.values[:, k:]).neg_()
        return Selection(index, absent.expm1_().reciprocal_().neg_().to(scores.dtype))
