"""The draws that policies share: pure functions on tensors `[groups, n]`, every group on its own.

All arithmetic on probabilities is float64 (a float32 running sum over 10,000 pairs is off by 1e-4),
none waits for the device, and none loops over groups. Uniform numbers come from (0, 1], never 0, so
that `u <= p` and "the first running sum that reaches u" cannot pick a pair of probability zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

# What a score of zero counts as, relative to the largest of its row: no draw ever reaches such a pair
# beside positive ones, yet where positive scores run out the rest is shared evenly with no special case.
FLOOR = 1e-300
# A probability of 1 in the fixed point of `systematic`: resolves 1e-12, holds k up to 2**23 in an int64.
ONE = 2**40


def largest(scores: Tensor, k: int) -> Tensor:
    """The k largest of each row: int64 `[groups, k]`, ascending."""
    return scores.topk(k, sorted=False).indices.sort().values


def uniforms(shape: tuple[int, ...], generator: torch.Generator, device: torch.device) -> Tensor:
    """Independent float64 numbers in (0, 1] on `device`, drawn where the generator lives."""
    numbers = torch.rand(shape, dtype=torch.float64, device=generator.device, generator=generator)
    return numbers.neg_().add_(1.0).to(device)


def permutations(groups: int, n: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """One random permutation of n per group: int64 `[groups, n]`.

    One shared by all groups would serve each of them, too, but their errors would then be correlated
    and not average out in a gradient that sums over groups."""
    if groups == 1:
        return torch.randperm(n, device=generator.device, generator=generator).to(device).unsqueeze(0)
    return torch.rand((groups, n), device=generator.device, generator=generator).argsort().to(device)


def relative(scores: Tensor) -> Tensor:
    """Scores over the largest of their row, float64 in [FLOOR, 1], a new tensor. An all-zero row is constant."""
    shares = scores.to(torch.float64, copy=True)
    top = shares.amax(-1, keepdim=True).clamp_(min=torch.finfo(torch.float64).tiny)
    return shares.div_(top).clamp_(min=FLOOR)


def inclusion(scores: Tensor, k: int) -> Tensor:
    """Inclusion probabilities p = min(c·s, 1) with Σp = k in each row, float64 `[groups, n]`.

    Water filling, exactly: with the m largest cut at 1, c = (k − m) / (sum of the rest), and m is the
    smallest that leaves the next one uncut, c·s ≤ 1. m < k always. With fewer than k positive
    scores these have p = 1 and the zeros share what is left evenly. The m cut pairs are also the set C
    of WTA-CRS: (1 − P_C)/(k − |C|) = 1/(c·Σs) falls exactly while c·s of the next pair exceeds 1."""
    shares = relative(scores)
    n = shares.shape[-1]
    ordered = shares.sort(-1).values  # ascending, so that running sums add small to large
    rest = ordered.cumsum(-1)
    # entry j: what is left for pairs 0 … j once the n − 1 − j larger ones are cut
    left = torch.arange(k - n + 1, k + 1, dtype=torch.float64, device=scores.device)
    uncut = (ordered.mul_(left) <= rest).sum(-1, keepdim=True)
    return shares.mul_((uncut + (k - n)) / rest.gather(-1, uncut - 1)).clamp_(max=1.0)


def systematic(p: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Exactly k distinct pairs with inclusion probabilities `p` (Σp = k): int64 `[groups, k]`, ascending.

    Madow (1949): lay the probabilities end to end, in random order, and take those that hold the
    points u, u + 1, …, u + k − 1. In fixed point, where running sums are exact: no interval is longer
    than 1, so no pair can be hit twice, which rounding would allow in floating point."""
    groups, n = p.shape
    order = permutations(groups, n, generator, p.device)
    ends = p.gather(-1, order).mul_(ONE).round_().long().cumsum(-1)
    # rounding may leave the line a few units short of k: u stays within what is there
    width = (ends[:, -1:] - (k - 1) * ONE).clamp_(max=ONE)
    start = (uniforms((groups, 1), generator, p.device) * width).ceil_().long()
    points = start + torch.arange(0, k * ONE, ONE, device=p.device)
    return order.gather(-1, torch.searchsorted(ends, points)).sort().values


def with_replacement(weights: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """k independent draws, each pair with probability weight / Σweights: int64 `[groups, k]`, in drawn order.

    `weights` is float64 and not negative; a weight of zero is never drawn, unless its row has no other
    (then the first pair is)."""
    ends = weights.cumsum(-1)
    points = uniforms((weights.shape[0], k), generator, weights.device).mul_(ends[:, -1:])
    return torch.searchsorted(ends, points)
