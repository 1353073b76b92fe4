"""The draws that policies share: pure functions on tensors `[groups, n]`, every group on its own.

All arithmetic on probabilities is float64 (a float32 running sum over 10,000 pairs is off by 1e-4),
none waits for a GPU, and none loops over groups. Uniform numbers come from (0, 1], never 0, so
that `u <= p` and "the first running sum that reaches u" cannot pick a pair of probability zero.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..native import Kernels, kernels
from . import on_cpu

# What a score of zero counts as, relative to the largest of its row: no draw ever reaches such a pair
# beside positive ones, yet where positive scores run out the rest is shared evenly with no special case.
FLOOR = 1e-300
# Added to every exponential gap, so that no point is 0, where a pair of weight 0 might stand.
GAP = 1e-20
# Bits of a probability in the fixed point of `systematic`: resolves 1e-12; fewer where k needs the room.
BITS = 40
# Pairs of which torch.randperm draws another way, which the fused kernels do not follow.
MOST = 1 << 27


def largest(scores: Tensor, k: int) -> Tensor:
    """The k largest of each row: int64 `[groups, k]`, ascending."""
    if fused := _fused(scores, rows=None):
        return fused.largest(scores, k)
    index = scores.topk(k, sorted=False).indices
    if not _numpy_can(index):
        return index.sort(-1).values
    index.numpy().sort(-1)  # in place
    return index


def _numpy_can(values: Tensor) -> bool:
    """Whether numpy sees the memory: a real tensor on the CPU, not one of a tracer's."""
    return type(values) is Tensor and values.device.type == "cpu" and not torch.compiler.is_compiling()


def _fused(values: Tensor, rows: int | None = 1) -> Kernels | None:
    """The fused kernels, where they are built and can read so many rows (None: any number)."""
    fits = (rows is None or len(values) == rows) and values.shape[-1] < MOST and _numpy_can(values)
    return kernels() if fits else None


def ascending(values: Tensor) -> Tensor:
    """Rows sorted. Through numpy where it can be: it sorts with vector instructions, torch's CPU sort does
    not (1,000 float64: 14 against 53 µs; 32 rows of 64: 6 against 62)."""
    if _numpy_can(values):
        return torch.from_numpy(np.sort(values.numpy(), axis=-1))
    return values.sort(-1).values


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
    keys = torch.rand((groups, n), device=generator.device, generator=generator)
    order = torch.from_numpy(np.argsort(keys.numpy(), axis=-1)) if _numpy_can(keys) else keys.argsort(-1)
    return order.to(device)


def relative(scores: Tensor) -> Tensor:
    """Scores over the largest of their row: new, float64, in [FLOOR, 1]; a row of zeros becomes constant."""
    shares = scores.detach().to(torch.float64, copy=True)  # selections carry no gradient
    top = shares.amax(-1, keepdim=True).clamp_(min=torch.finfo(torch.float64).tiny)
    return shares.div_(top).clamp_(min=FLOOR)


def inclusion(scores: Tensor, k: int) -> Tensor:
    """Inclusion probabilities p = min(s/t, 1) with Σp = k in each row, float64 `[groups, n]`.

    Water filling, exactly: with the m largest cut at 1 the others share k − m, so t = rest_m/(k − m), rest_m
    the sum without the m largest; the level that cuts just those above it is the least of these over m < k
    (rest_m/(k − m) falls as long as the next pair exceeds it). The same minimum defines the set C of
    WTA-CRS, (1 − P_C)/(k − |C|): C is what is cut. With fewer than k positive scores these have p = 1
    and the zeros share what is left evenly."""
    if fused := _fused(scores, rows=None):
        return fused.inclusion(scores, k)
    if _numpy_can(scores):
        return torch.from_numpy(on_cpu.inclusion(scores.numpy(), k, FLOOR))
    shares = relative(scores)
    rest = ascending(shares).cumsum(-1)[:, -k:]  # m = k − 1 … 0; sums run from small to large
    level = (rest / torch.arange(1, k + 1, device=scores.device)).amin(-1, keepdim=True)
    return shares.div_(level).clamp_(max=1.0)


def proportional(scores: Tensor, k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Exactly k distinct pairs, each with its `inclusion` probability p: places int64 `[groups, k]`,
    ascending, and factors, 1/p of each, of the type of the scores."""
    if fused := _fused(scores):
        return fused.proportional(scores, k, _bits(k), generator)
    p = inclusion(scores, k)
    index = systematic(p, k, generator)
    return index, p.gather(-1, index).reciprocal_().to(scores.dtype)


def systematic(p: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Exactly k distinct pairs with inclusion probabilities `p` (Σp = k): int64 `[groups, k]`, ascending.

    Madow (1949): lay the probabilities end to end, in random order, and take those that hold the
    points u, u + 1, …, u + k − 1. In fixed point, where running sums are exact: no interval is longer
    than 1, so no pair can be hit twice, which rounding would allow in floating point."""
    groups, n = p.shape
    bits = _bits(k)
    one = 1 << bits
    order = permutations(groups, n, generator, p.device)
    start = torch.rand((groups, 1), dtype=torch.float64, device=generator.device, generator=generator)
    if _numpy_can(p):
        return torch.from_numpy(on_cpu.systematic(p.numpy(), k, order.numpy(), start.numpy(), bits))
    ends = p.gather(-1, order).mul_(one).long().cumsum(-1)
    # rounding leaves the line a few units from k: u stays within what the last point has
    room = (ends[:, -1:] - (k - 1) * one).clamp_(max=one)
    points = (start.to(p.device) * room).long() + torch.arange(0, k * one, one, device=p.device)
    return ascending(order.gather(-1, torch.searchsorted(ends, points, right=True)))


def _bits(k: int) -> int:
    return min(BITS, 61 - k.bit_length())


def independent(scores: Tensor, k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Every pair by itself, with its `inclusion` probability p: places int64 `[groups, size]`, ascending, and
    factors of the type of the scores, 1/p of each pair that is in and 0 of those that only pad its row,
    distinct too, to `padded_size`."""
    if fused := _fused(scores):
        return fused.independent(scores, k, generator)
    p = inclusion(scores, k)
    inside = uniforms(tuple(p.shape), generator, p.device) <= p
    n = p.shape[-1]
    if _numpy_can(p):
        known = inside.numpy()
        drawn = on_cpu.independent(known, p.numpy(), padded_size(int(known.sum(-1).max()), n))
        return torch.from_numpy(drawn[0]), torch.from_numpy(drawn[1]).to(scores.dtype)
    size = padded_size(int(inside.sum(-1).amax()), n)  # waits for the device: the size is data
    last = torch.where(inside, 0, torch.arange(1, n + 1, device=p.device))
    places = ascending(last.topk(size, largest=False, sorted=False).indices)
    factors = torch.where(inside.gather(-1, places), p.gather(-1, places).reciprocal_(), 0.0)
    return places, factors.to(scores.dtype)


def padded_size(count: int, n: int) -> int:
    """The next multiple of 8 that holds `count`, at least 8, at most n: a handful of sizes, whose kernels
    are soon built, for 3.5 pairs in the mean."""
    return min(max(-(-count // 8), 1) * 8, n)


def with_replacement(
    weights: Tensor, k: int, generator: torch.Generator, count: Tensor | None = None
) -> Tensor:
    """Independent draws, each pair with probability weight / Σweights: int64 `[groups, k]`, ascending.

    The first `count` of a row are its draws (an int64 `[groups, 1]` of at most k where rows differ, all k
    if None), the rest means nothing. `weights` is float64, not negative, some of each row positive.
    The points come in order without a sort: running sums of exponential gaps over the sum of count + 1
    gaps are distributed as `count` sorted uniforms."""
    gaps = uniforms((weights.shape[0], k + 1), generator, weights.device).log_().neg_()
    points = gaps.add_(GAP).cumsum_(-1)
    total = points[:, k:] if count is None else points.gather(-1, count)
    ends = weights.cumsum(-1)
    return torch.searchsorted(ends, points[:, :k] * (ends[:, -1:] / total))
