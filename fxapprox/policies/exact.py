"""`exact`: every pair, the treatment that samples nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ._base import Policy, Selection, Stream, policy


@policy("exact", source="the product itself", unbiased=True, random=False, scores="none", size="all")
@dataclass(frozen=True)
class Exact(Policy):
    """Keep all pairs, whatever k says.

    A product under this name is run as the exact call and never asks for a selection; the class is
    here so that the name is listed, documented and checked like any other."""

    def select(self, scores: Tensor, k: int, stream: Stream) -> Selection:
        return Selection(torch.arange(scores.shape[-1], device=scores.device).repeat(scores.shape[0], 1))
