"""`uniform`: k pairs at random, no scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ..sampling.draws import ascending, permutations
from ._base import Policy, Selection, Stream, policy
from ._options import require_one_of


@policy("uniform", source="Hernandez, Rini, Duman 2021 (randK)", unbiased=True, random=True, scores="none")
@dataclass(frozen=True)
class Uniform(Policy):
    """Keep k pairs without replacement, all equally likely.

    Options:
        scale: "inverse" scales by n/k and is unbiased; "none" leaves pairs as they are, as in the
            paper's experiments, and is biased.
    """

    scale: Literal["inverse", "none"] = "inverse"

    def __post_init__(self) -> None:
        require_one_of("uniform", "scale", self.scale, ("inverse", "none"))
        object.__setattr__(self, "unbiased", self.scale == "inverse")

    def select(self, scores: Tensor, k: int, stream: Stream) -> Selection:
        groups, n = scores.shape
        index = ascending(permutations(groups, n, stream.generator(), scores.device)[:, :k])
        return Selection(index, scores.new_full((groups, k), n / k) if self.scale == "inverse" else None)
