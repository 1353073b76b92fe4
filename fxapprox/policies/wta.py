"""`wta`: the largest pairs surely, the rest with replacement (winner takes all)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..sampling.draws import ascending, inclusion, with_replacement
from ._base import Policy, Selection, Stream, policy


@policy("wta", source="Liu et al. 2023 (WTA-CRS)", unbiased=True, random=True)
@dataclass(frozen=True)
class WinnerTakesAll(Policy):
    """Keep the |C| largest pairs unscaled and draw k − |C| of the others with replacement, p_i ∝ s_i.

    |C| minimises (1 − P_C)/(k − |C|), P_C the share of the scores in C: C is what water filling cuts at 1,
    and a drawn pair's scale (1 − P_C)/((k − |C|)·p_i) is the inverse of its uncut probability. Unbiased."""

    def select(self, scores: Tensor, k: int, stream: Stream) -> Selection:
        n = scores.shape[-1]
        p = inclusion(scores, k)
        sure = p >= 1.0
        count = k - sure.sum(-1, keepdim=True)
        drawn = with_replacement(p.masked_fill(sure, 0.0), k, stream.generator(), count)
        # the sure pairs' indices, last in the row: there they fill the slots behind the draws
        slot = torch.arange(n, device=p.device)
        kept = ascending(slot.where(sure, n))[:, :k].flip(-1)
        index = ascending(torch.where(slot[:k] < count, drawn, kept))
        return Selection(index, p.gather(-1, index).reciprocal_().to(scores.dtype), unique=False)
