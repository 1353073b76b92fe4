"""Scaled dot-product attention: two products, scores and values."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ._arguments import arguments, leaf, unfit
from ._base import Call, Kind, Operation, ProductRunner, Refusal, kind
from ._contract import contract, matmul_labels

NAMES = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")


@kind("attention", summary="F.scaled_dot_product_attention, its scores and values, where a rule names it")
class Attention(Kind):
    """`softmax(scale · q kᵀ + mask) v`, in pieces: torch's fused kernels have no place to sample in, so a
    sampled call keeps the scores, `[…, L, S]`, in memory. `scores` contracts the head's features,
    `values` the keys."""

    functions = (F.scaled_dot_product_attention,)
    opt_in = True

    def run(self, call: Call, product: ProductRunner) -> Any:
        given = arguments(call, *NAMES)
        query, key, value = (given[name] for name in NAMES[:3])
        if given.get("enable_gqa", False):
            key, value = (t.repeat_interleave(query.shape[-3] // t.shape[-3], -3) for t in (key, value))
        scale = given.get("scale")
        scale = 1 / math.sqrt(max(query.shape[-1], 1)) if scale is None else scale
        if reason := unfit(query, key) or unfit(value):
            positions = math.prod(query.shape[:-1]) * key.shape[-2]
            for part, other in (("scores", key), ("values", value)):
                flops = 2 * positions * other.shape[-1]
                product(part, Refusal(reason, flops, tuple(query.shape), tuple(other.shape)))
            return self.exact(call)
        operation = _matmul(query * scale, key.mT, ("head features", "keys", "queries"))
        scores = product("scores", operation)
        weights = _softmax(scores, given.get("attn_mask"), given.get("is_causal", False))
        if given.get("dropout_p", 0.0) > 0:
            weights = F.dropout(weights, given["dropout_p"])
        return product("values", _matmul(weights, value, ("keys", "value features", "queries")))

    @classmethod
    def examples(cls, dtype: torch.dtype) -> Iterator[Call]:
        q, k, v = (leaf(2, 4, n, width, dtype=dtype) for n, width in ((5, 8), (6, 8), (6, 3)))
        function = cls.functions[0]
        yield Call((q, k, v), function=function)
        yield Call((q, k), {"value": v, "scale": 0.3, "is_causal": True}, function=function)
        yield Call((q, k, v, torch.rand(5, 6) < 0.6), function=function)
        yield Call((q, k, v, torch.randn(4, 5, 6, dtype=dtype)), function=function)
        yield Call((q[0, 0], k[0, 0], v[0, 0]), function=function)
        yield Call((q, k[:, :2], v[:, :2]), {"enable_gqa": True}, function=function)
        yield Call((q, k, v), {"dropout_p": 0.5}, function=function)
        yield Call((q[:0], k[:0], v[:0]), function=function)


def _matmul(left: Tensor, right: Tensor, over: tuple[str, str, str]) -> Operation | Refusal:
    return contract(left, right, matmul_labels(left.dim(), right.dim()), over)


def _softmax(scores: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Attention weights; a query that may see no key gets zeros, as torch's kernels give it."""
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    wide = torch.float32 if scores.dtype in (torch.float16, torch.bfloat16) else scores.dtype
    if mask is None:
        return scores.softmax(-1, dtype=wide).to(scores.dtype)
    blind = (scores == -math.inf).all(-1, keepdim=True)
    # filled before, too: softmax of nothing but -inf is NaN, and so would be its gradient
    weights = scores.masked_fill(blind, 0).softmax(-1, dtype=wide)
    return weights.masked_fill(blind, 0).to(scores.dtype)
