"""Modules with two lengths of their own: each is probed, so that others are sampled, too."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

import fxapprox

RULES = [fxapprox.Rule(kind="linear", policy="topk", keep=0.5)]


def _inputs(query: int, key: int, batch: int, layout: str) -> tuple[Tensor, Tensor, Tensor]:
    def made(length: int) -> Tensor:
        if layout == "unbatched":
            return torch.randn(length, 16)
        return torch.randn(*((batch, length) if layout == "batch first" else (length, batch)), 16)

    return made(query), made(key), made(key)


@pytest.mark.parametrize("layout", ["batch first", "batch second", "unbatched"])
def test_attention_is_sampled_at_other_lengths_of_query_and_key(layout):
    model = nn.MultiheadAttention(16, 2, batch_first=layout == "batch first")
    fast = fxapprox.rewrite(model, _inputs(5, 7, 3, layout), rules=RULES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for query, key, batch in ((9, 7, 3), (5, 11, 3), (9, 4, 3), (4, 9, 2), (6, 6, 5), (1, 8, 4)):
            given = _inputs(query, key, batch, layout)
            assert not torch.equal(fast.train()(*given)[0], model(*given)[0])
            for ours, theirs in zip(fast.eval()(*given), model.eval()(*given), strict=True):
                torch.testing.assert_close(ours, theirs)
