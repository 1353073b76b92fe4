"""Scores: norms, and what becomes of values that norms cannot stand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from fxapprox.kinds import Bilinear, Call, OneProduct, Operation, recognise
from fxapprox.policies._base import Scores
from fxapprox.sampling.scores import pair_scores


def bilinear() -> Bilinear:
    kind = recognise(function=F.linear)
    assert isinstance(kind, OneProduct)
    found = kind.operation(Call((torch.ones(2, 3), torch.ones(4, 3)), function=F.linear))
    assert isinstance(found, Operation)
    return found.bilinear


ROWS = bilinear()


def scores(x: Tensor, weight: Tensor, which: Scores = "pair", mean: Tensor | None = None) -> Tensor:
    return pair_scores(which, ROWS, "forward", x, weight, (1, x.shape[1]), mean)


def test_scores_are_products_of_norms() -> None:
    x, weight = torch.randn(6, 8), torch.randn(5, 8)
    torch.testing.assert_close(scores(x, weight)[0], x.norm(dim=0) * weight.norm(dim=0))
    torch.testing.assert_close(scores(x, weight, "weight")[0], weight.norm(dim=0))
    assert torch.equal(scores(x, weight, "none"), torch.ones(1, 8))
    mean = x.mean(0, keepdim=True)
    torch.testing.assert_close(scores(x, weight, mean=mean)[0], (x - mean).norm(dim=0) * weight.norm(dim=0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_scored_in_float32(dtype: torch.dtype) -> None:
    x = torch.full((6, 8), 300.0, dtype=dtype)  # 300² is beyond float16
    got = scores(x, torch.ones(5, 8, dtype=dtype))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, torch.full((1, 8), float(x[0, 0]) * math.sqrt(30)))


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_squares_beyond_the_range_of_the_type_keep_their_order(size: float) -> None:
    x = size * torch.tensor([[1.0, 4.0, 2.0, 3.0]])
    got = scores(x, torch.ones(1, 4))[0]
    torch.testing.assert_close(got / got.max(), x[0] / x.max())


def test_what_is_not_finite_is_above_all_else() -> None:
    x = torch.randn(6, 8)
    x[0, 2], x[1, 5], x[3, 5] = math.inf, math.nan, -math.inf
    got = scores(x, torch.randn(5, 8))[0]
    assert got.isfinite().all()
    assert set(got.topk(2).indices.tolist()) == {2, 5}
    assert got[2] == got[5] > got[torch.tensor([0, 1, 3, 4, 6, 7])].max()
    assert torch.equal(scores(torch.full((6, 8), math.nan), torch.randn(5, 8)), torch.ones(1, 8))


def test_a_row_of_zeros_becomes_ones() -> None:
    assert torch.equal(scores(torch.zeros(6, 8), torch.randn(5, 8)), torch.ones(1, 8))


def test_centring_leaves_a_small_variance_a_positive_score() -> None:
    x = torch.full((6, 2), 1e4)
    x[0, 0] += 1
    assert (scores(x, torch.ones(5, 2), mean=x.mean(0, keepdim=True)) > 0).all()


VALUES = st.floats(width=32, allow_nan=True, allow_infinity=True)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(VALUES, min_size=3, max_size=3), min_size=1, max_size=4),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    st.booleans(),
)
def test_scores_are_always_finite_not_negative_and_not_all_zero(
    values: list[list[float]], dtype: torch.dtype, center: bool
) -> None:
    x = torch.tensor(values, dtype=torch.float64).to(dtype)
    mean = x.mean(0, keepdim=True) if center else None
    got = scores(x, torch.randn(5, 3).to(dtype), mean=mean)
    assert got.isfinite().all()
    assert (got >= 0).all()
    assert (got > 0).any()
