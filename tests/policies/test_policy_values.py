"""Policies against closed forms, brute force and the errors that operators of this kind are known for."""

from __future__ import annotations

from collections import Counter
from statistics import NormalDist

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fxapprox.policies import Policy, policies
from fxapprox.sampling.draws import inclusion, padded_size
from fxapprox.testing.policies import SeededStream

Z = NormalDist().inv_cdf(1 - 1e-6)


def make(name: str, **options: object) -> Policy:
    return policies.get(name)(**options)


def weights(policy: Policy, scores: Tensor, k: int, seed: int = 0) -> Tensor:
    """What every pair is multiplied with, float64 `[groups, n]`: 0 where it is left out."""
    drawn = policy.select(scores, k, SeededStream(seed))
    scale = torch.ones(drawn.index.shape) if drawn.scale is None else drawn.scale
    return torch.zeros(scores.shape, dtype=torch.float64).scatter_add_(1, drawn.index, scale.double())


def matrices(n: int = 12, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A [5, n], B [n, 4] with uneven pairs, and the scores [n]."""
    numbers = SeededStream(seed).generator()
    left = torch.randn(5, n, generator=numbers, dtype=torch.float64)
    right = torch.randn(n, 4, generator=numbers, dtype=torch.float64)
    left *= torch.linspace(0.2, 2.0, n, dtype=torch.float64)
    return left, right, left.norm(dim=0) * right.norm(dim=1)


def squared_errors(policy: Policy, k: int, runs: int = 20_000) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """‖error‖² of `runs` draws, and the matrices and scores they are of."""
    left, right, scores = matrices()
    drawn = weights(policy, scores.repeat(runs, 1), k)
    products = torch.einsum("mi,in->imn", left, right).flatten(1)
    errors = (drawn - 1.0) @ products
    return errors.square().sum(-1), left, right, scores


def assert_mean(samples: Tensor, expected: float) -> None:
    deviation = abs(float(samples.mean()) - expected)
    assert deviation < Z * float(samples.std()) / len(samples) ** 0.5, (float(samples.mean()), expected)


@pytest.mark.parametrize("k", [1, 4, 11])
def test_crs_has_the_variance_of_the_theorem(k: int) -> None:
    errors, left, right, scores = squared_errors(make("crs"), k)
    assert_mean(errors, float((scores.sum() ** 2 - (left @ right).square().sum()) / k))


@pytest.mark.parametrize("k", [1, 4, 11])
def test_bernoulli_has_the_variance_of_independent_pairs(k: int) -> None:
    errors, _, _, scores = squared_errors(make("bernoulli"), k)
    p = inclusion(scores[None], k)[0]
    assert_mean(errors, float((scores.square() * (1 / p - 1)).sum()))


@pytest.mark.parametrize("k", [1, 4, 11])
def test_uniform_has_the_variance_of_simple_random_sampling(k: int) -> None:
    errors, left, right, _ = squared_errors(make("uniform"), k)
    products = torch.einsum("mi,in->imn", left, right).flatten(1)
    n = len(products)
    spread = products.var(0, unbiased=True).sum()
    assert_mean(errors, float(n**2 * (1 - k / n) / k * spread))


def test_pps_includes_in_proportion_and_scales_by_the_inverse() -> None:
    _, _, scores = matrices()
    p, runs = inclusion(scores[None], 5)[0], 40_000
    drawn = weights(make("pps"), scores.repeat(runs, 1), 5)
    taken = (drawn > 0).double()
    deviation = (taken.mean(0) - p).abs() / (p * (1 - p) / runs).sqrt().clamp(min=1e-9)
    assert float(deviation.max()) < Z
    torch.testing.assert_close(drawn, taken / p, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", ["pps", "bernoulli", "wta"])
def test_a_dominant_pair_is_always_kept_unscaled(name: str) -> None:
    scores = torch.ones(500, 10).index_fill(1, torch.tensor(3), 1000.0)
    drawn = weights(make(name), scores, 4)
    torch.testing.assert_close(drawn[:, 3], torch.ones(500, dtype=torch.float64))
    assert float(drawn.sum(-1).mean()) == pytest.approx(10, rel=0.1)


def test_bernoulli_keeps_k_on_average_with_the_variance_of_its_probabilities() -> None:
    _, _, scores = matrices(40)
    p, runs = inclusion(scores[None], 15)[0], 20_000
    kept = (weights(make("bernoulli"), scores.repeat(runs, 1), 15) > 0).double().sum(-1)
    assert_mean(kept, 15.0)
    assert_mean((kept - 15.0).square(), float((p * (1 - p)).sum()))


@pytest.mark.parametrize(("n", "k"), [(1000, 500), (1000, 100), (64, 32)])
def test_bernoulli_takes_few_sizes_and_pads_with_distinct_pairs(n: int, k: int) -> None:
    scores = torch.rand(1, n, generator=SeededStream(7).generator())
    sizes: Counter[int] = Counter()
    for seed in range(300):
        drawn = make("bernoulli").select(scores, k, SeededStream(seed))
        assert drawn.unique
        assert bool((drawn.index.diff(dim=-1) > 0).all())
        assert drawn.scale is not None
        sizes[drawn.index.shape[1]] += 1
    assert all(size % 8 == 0 for size in sizes), sizes
    deviation = (k * (1 - k / n)) ** 0.5  # of how many are in, at most
    assert len(sizes) <= 2 + deviation, sizes  # four deviations to both sides, in steps of 8
    mean = sum(size * count for size, count in sizes.items()) / 300
    assert abs(mean - (k + 3.5)) <= 5 * (deviation + 3.5) / 300**0.5, sizes


@pytest.mark.parametrize(
    ("count", "n", "size"), [(0, 1000, 8), (500, 1000, 504), (504, 1000, 504), (997, 1000, 1000), (3, 4, 4)]
)
def test_padded_size(count: int, n: int, size: int) -> None:
    assert padded_size(count, n) == size


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0.01, 100.0), min_size=3, max_size=20), st.data())
def test_wta_keeps_the_set_that_minimises_its_criterion(values: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(values) - 1))
    scores = torch.tensor([values], dtype=torch.float64)
    ordered = sorted(values, reverse=True)
    criterion = [sum(ordered[size:]) / (k - size) for size in range(k)]
    drawn = make("wta").select(scores, k, SeededStream(0))
    assert drawn.scale is not None
    # drawn pairs are scaled by (1 − P_C)/((k − |C|)·p_i), C itself by 1: both are the minimum over s_i
    expected = (min(criterion) / scores.gather(1, drawn.index)).clamp(min=1.0)
    torch.testing.assert_close(drawn.scale, expected, rtol=1e-9, atol=0)
    size = criterion.index(min(criterion))
    largest = set(scores.topk(size).indices[0].tolist()) if size else set()
    assert largest <= set(drawn.index[0].tolist()) or len(set(values)) < len(values)


def test_wta_draws_the_rest_with_replacement_in_proportion() -> None:
    scores = torch.tensor([[50.0, 1.0, 2.0, 3.0, 4.0]]).repeat(30_000, 1)
    index = make("wta").select(scores, 3, SeededStream(1)).index
    assert bool((index[:, 0] == 0).all())  # |C| = 1
    frequency = torch.bincount(index[:, 1:].flatten(), minlength=5)[1:] / 60_000
    p = torch.tensor([0.1, 0.2, 0.3, 0.4])
    assert float(((frequency - p).abs() / (p * (1 - p) / 60_000).sqrt()).max()) < Z


@pytest.mark.parametrize("scale", ["none", "horvitz-thompson"])
def test_weighted_is_drawn_one_after_the_other(scale: str) -> None:
    """P(i among 2) = p_i + Σ_j≠i p_j·p_i/(1 − p_j)."""
    p = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    second = (p[:, None] * p[None, :] / (1 - p[:, None])).fill_diagonal_(0.0).sum(0)
    runs = 40_000
    drawn = weights(make("weighted", scale=scale), (7 * p).repeat(runs, 1), 2)
    frequency, expected = (drawn > 0).double().mean(0), p + second
    assert float(((frequency - expected).abs() / (expected * (1 - expected) / runs).sqrt()).max()) < Z


def test_weighted_without_scale_is_biased_and_with_it_not() -> None:
    _, _, scores = matrices()
    rows = scores.repeat(20_000, 1)
    plain = weights(make("weighted"), rows, 5) @ scores
    assert float(plain.mean()) < 0.8 * float(scores.sum())
    assert_mean(weights(make("weighted", scale="horvitz-thompson"), rows, 5) @ scores, float(scores.sum()))


def relative_errors(policy: Policy, means: tuple[float, float], runs: int, seed: int) -> Tensor:
    """‖approximation − AB‖/(‖A‖·‖B‖) for 100×100 matrices of normal entries with these means, k = 50."""
    numbers = SeededStream(seed).generator()
    errors = []
    for run in range(runs):
        left, right = (torch.randn(100, 100, generator=numbers) + mean for mean in means)
        scores = left.norm(dim=0) * right.norm(dim=1)
        kept = weights(policy, scores[None], 50, seed=run)[0].float()
        error = left * (kept - 1.0) @ right
        errors.append(error.norm() / (left.norm() * right.norm()))
    return torch.stack(errors)


@pytest.mark.parametrize(
    ("name", "both", "one"),
    [
        ("topk", 0.235, 0.066),
        ("crs", 0.121, 0.142),
        ("wta", 0.122, 0.140),
        ("bernoulli", 0.099, 0.099),
        ("pps", 0.086, 0.099),
    ],
)
def test_errors_are_those_measured_before(name: str, both: float, one: float) -> None:
    """Against means of 100 runs, given to three digits: both matrices N(1,1), or the left one N(0,1)."""
    for means, known in (((1.0, 1.0), both), ((0.0, 1.0), one)):
        errors = relative_errors(make(name), means, runs=200, seed=11)
        allowed = 0.0005 + Z * float(errors.std()) * (1 / 100 + 1 / 200) ** 0.5
        assert abs(float(errors.mean()) - known) < allowed, (means, float(errors.mean()), known, allowed)
