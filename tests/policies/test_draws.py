"""The shared draws against what defines them: sums, proportions, frequencies, and a plain reference."""

from __future__ import annotations

from statistics import NormalDist

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fxapprox.sampling import draws
from fxapprox.testing.policies import SeededStream

SCORES = st.one_of(st.just(0.0), st.floats(1e-3, 1e3), st.floats(1e-30, 1e30))


@st.composite
def rows_and_k(draw: st.DrawFn) -> tuple[Tensor, int]:
    n = draw(st.integers(2, 40))
    rows = draw(st.lists(st.lists(SCORES, min_size=n, max_size=n), min_size=1, max_size=3))
    return torch.tensor(rows, dtype=torch.float64), draw(st.integers(1, n - 1))


def generator(seed: int = 0) -> torch.Generator:
    return SeededStream(seed).generator()


def z_bound(comparisons: int) -> float:
    """What `comparisons` standard normal numbers exceed with probability 1e-6."""
    return NormalDist().inv_cdf(1 - 1e-6 / (2 * comparisons))


def water_filling(scores: list[float], k: int) -> list[float]:
    """Cut one pair at a time, as one would by hand."""
    p = [0.0] * len(scores)
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    left = float(k)
    while order and scores[order[0]] > 0:
        rest = sum(sorted(scores[i] for i in order))
        if left * scores[order[0]] < rest:
            break
        p[order.pop(0)] = 1.0
        left -= 1
        if left == 0:
            return p
    rest = sum(sorted(scores[i] for i in order))
    for i in order:
        p[i] = left * scores[i] / rest if rest else left / len(order)
    return p


@settings(max_examples=300, deadline=None)
@given(rows_and_k())
def test_inclusion_is_water_filling(case: tuple[Tensor, int]) -> None:
    scores, k = case
    p = draws.inclusion(scores, k)
    assert p.dtype == torch.float64
    torch.testing.assert_close(p.sum(-1), torch.full((len(p),), float(k), dtype=p.dtype), rtol=1e-12, atol=0)
    assert bool(((p >= 0) & (p <= 1)).all())
    expected = torch.tensor([water_filling(row, k) for row in scores.tolist()], dtype=p.dtype)
    torch.testing.assert_close(p, expected, rtol=1e-9, atol=1e-12)


@given(rows_and_k(), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_draws_in_numpy_are_those_of_other_devices(case: tuple[Tensor, int], seed: int) -> None:
    rows, k = case
    with pytest.MonkeyPatch.context() as patch:
        found = []
        for numpy in (True, False):
            patch.setattr(draws, "_numpy_can", lambda values, numpy=numpy: numpy)
            kept = draws.proportional(rows, k, generator(seed))
            found.append((draws.inclusion(rows, k), *kept, *draws.independent(rows, k, generator(seed))))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_inclusion_leaves_the_scores_alone() -> None:
    scores = torch.rand(2, 9, dtype=torch.float64, generator=generator())
    before = scores.clone()
    draws.inclusion(scores, 4)
    assert torch.equal(scores, before)


@pytest.mark.parametrize(
    ("scores", "k", "expected"),
    [
        ([0.0, 0.0, 0.0, 0.0], 2, [0.5, 0.5, 0.5, 0.5]),
        ([0.0, 5.0, 0.0, 0.0], 2, [1 / 3, 1.0, 1 / 3, 1 / 3]),
        ([1.0, 5.0, 0.0, 0.0], 2, [1.0, 1.0, 0.0, 0.0]),
        ([1.0, 1.0, 1.0, 1.0], 3, [0.75, 0.75, 0.75, 0.75]),
        ([1.0, 1.0, 100.0, 2.0], 2, [0.25, 0.25, 1.0, 0.5]),
        ([3.0, 1.0], 1, [0.75, 0.25]),
    ],
)
def test_inclusion_by_hand(scores: list[float], k: int, expected: list[float]) -> None:
    p = draws.inclusion(torch.tensor([scores]), k)[0]
    torch.testing.assert_close(p, torch.tensor(expected, dtype=p.dtype), rtol=1e-12, atol=1e-200)


@settings(max_examples=200, deadline=None)
@given(rows_and_k(), st.integers(0, 2**32))
def test_systematic_takes_k_distinct_pairs_and_all_sure_ones(case: tuple[Tensor, int], seed: int) -> None:
    scores, k = case
    p = draws.inclusion(scores, k)
    index = draws.systematic(p, k, generator(seed))
    assert index.shape == (len(scores), k)
    assert bool((index.diff(dim=-1) > 0).all())
    taken = torch.zeros_like(p).scatter_(-1, index, 1.0)
    assert bool((taken[p == 1.0] == 1.0).all())
    assert bool((taken[p < 1e-13] == 0.0).all())


def test_systematic_includes_with_the_given_probabilities() -> None:
    p = draws.inclusion(torch.tensor([[1.0, 2.0, 3.0, 4.0, 0.5, 30.0, 0.0, 2.0]]), 4)
    runs = 40_000
    index = draws.systematic(p.repeat(runs, 1), 4, generator(1))
    frequency = torch.zeros(runs, 8).scatter_(1, index, 1.0).mean(0)
    z = (frequency - p[0]) / (p[0] * (1 - p[0]) / runs).sqrt().clamp(min=1e-9)
    assert float(z.abs().max()) < z_bound(8)


def test_systematic_joins_pairs_at_random() -> None:
    """After the permutation no two pairs exclude each other for good, as neighbours would."""
    p = torch.full((4000, 6), 0.5, dtype=torch.float64)
    index = draws.systematic(p, 3, generator(2))
    taken = torch.zeros(4000, 6).scatter_(1, index, 1.0)
    together = (taken.T @ taken / 4000).fill_diagonal_(1.0)
    assert float(together.min()) > 0.1


@settings(max_examples=100, deadline=None)
@given(rows_and_k(), st.integers(0, 2**32))
def test_with_replacement_comes_in_order_and_never_draws_a_zero(case: tuple[Tensor, int], seed: int) -> None:
    weights, k = case
    assume(bool((weights.sum(-1) > 0).all()))
    index = draws.with_replacement(weights, k, generator(seed))
    assert index.shape == (len(weights), k)
    assert bool((index.diff(dim=-1) >= 0).all())
    assert bool((weights.gather(-1, index) > 0).all())


@pytest.mark.parametrize("count", [None, 5, 2])
def test_with_replacement_draws_in_proportion(count: int | None) -> None:
    weights = torch.tensor([1.0, 0.0, 2.0, 5.0, 2.0], dtype=torch.float64)
    runs, k = 20_000, 5
    counts = None if count is None else torch.full((runs, 1), count)
    index = draws.with_replacement(weights.repeat(runs, 1), k, generator(3), counts)[:, : count or k]
    taken = index.numel()
    p = weights / weights.sum()
    frequency = torch.bincount(index.flatten(), minlength=5) / taken
    z = (frequency - p) / (p * (1 - p) / taken).sqrt().clamp(min=1e-9)
    assert float(z.abs().max()) < z_bound(5)
    # draws of one row are independent: how often the first two agree is Σp²
    agree, expected = float((index[:, 0] == index[:, 1]).double().mean()), float(p.square().sum())
    if count == 2:  # of more draws the first two are the two lowest
        assert abs(agree - expected) < z_bound(1) * (expected * (1 - expected) / runs) ** 0.5


@pytest.mark.parametrize("groups", [1, 5000])
def test_permutations_put_every_pair_everywhere_equally_often(groups: int) -> None:
    numbers = generator(4)
    orders = [draws.permutations(groups, 4, numbers, torch.device("cpu")) for _ in range(5000 // groups)]
    order = torch.cat(orders)
    assert torch.equal(order.sort(-1).values, torch.arange(4).repeat(5000, 1))
    frequency = torch.nn.functional.one_hot(order).double().mean(0)
    assert float((frequency - 0.25).abs().max()) < z_bound(16) * (0.25 * 0.75 / 5000) ** 0.5


def test_uniforms_are_never_zero_and_may_be_one() -> None:
    numbers = draws.uniforms((1000, 100), generator(5), torch.device("cpu"))
    assert numbers.dtype == torch.float64
    assert 0 < float(numbers.min()) < 1e-3
    assert 1 - 1e-3 < float(numbers.max()) <= 1


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64])
def test_ascending_sorts_rows_like_torch(dtype: torch.dtype) -> None:
    values = (torch.rand(7, 33, generator=generator(6)) * 20).to(dtype)
    assert torch.equal(draws.ascending(values), values.sort(-1).values)
    assert torch.equal(draws.ascending(values.T), values.T.sort(-1).values)


def test_largest_runs_on_fake_tensors() -> None:
    with FakeTensorMode():
        assert draws.largest(torch.rand(3, 20), 5).shape == (3, 5)


@settings(max_examples=100, deadline=None)
@given(rows_and_k())
def test_largest_keeps_the_largest(case: tuple[Tensor, int]) -> None:
    scores, k = case
    index = draws.largest(scores, k)
    assert bool((index.diff(dim=-1) > 0).all())
    kept = scores.gather(-1, index).sort(-1).values
    assert torch.equal(kept, scores.sort(-1).values[:, -k:])


def test_systematic_has_room_for_millions_of_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 61 bits for all of k, a tenth of a million pairs leave 44: the same rule as 2**23 of 2**24."""
    monkeypatch.setattr(draws, "BITS", 60)
    p = torch.full((1, 100_000), 0.5, dtype=torch.float64)
    index = draws.systematic(p, 50_000, generator())
    assert bool((index.diff(dim=-1) > 0).all())
    assert index.shape == (1, 50_000)


@pytest.mark.parametrize("edge", [0.0, 1 - 2**-53])
def test_systematic_at_the_ends_of_the_random_number(edge: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the first point falls on an end of the line, a pair of probability zero there is not taken."""
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.full(shape, edge, dtype=torch.float64))
    p = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0, 0.4, 0.6, 0.0]], dtype=torch.float64)
    for seed in range(50):
        index = draws.systematic(p, 2, generator(seed))[0].tolist()
        assert index[0] < index[1]
        assert set(index) <= {1, 3, 5, 6}


def test_with_replacement_at_the_end_of_the_random_number(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = torch.tensor([[1.0, 0.5, 0.5]], dtype=torch.float64)  # a first gap of zero
    monkeypatch.setattr(draws, "uniforms", lambda *_: numbers.clone())
    weights = torch.tensor([[0.0, 1.0, 1.0]], dtype=torch.float64)
    assert draws.with_replacement(weights, 2, generator()).tolist() == [[1, 1]]
