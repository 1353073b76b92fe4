"""Scores: how much every pair of a product matters, from the norms of its operands."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..kinds import Bilinear, Operand
from ..policies._base import Scores
from ..sites import ProductName

_DOMINANT = 1e12  # score of a pair that is not finite, relative to the largest that is


def pair_scores(
    which: Scores,
    bilinear: Bilinear,
    product: ProductName,
    first: Tensor,
    second: Tensor,
    shape: tuple[int, int],
    mean: Tensor | None = None,
) -> Tensor:
    """Scores of `shape` (groups, pairs) for a policy: finite, not negative, float32 (float64 for float64).

    "pair": s_i = ‖A_i‖·‖B_i‖; "weight": ‖B_i‖; "none": ones. With `mean` (the left operand's
    `Bilinear.center`) norms of the first operand are those of what is left of it without the mean.
    Pairs with NaN or inf get so much that no draw that goes by scores passes them over; a row of zeros
    becomes ones, for every choice is then as good. Operands whose squares overflow or vanish are
    rescaled: one more pass, on a CPU only, for it needs to look at the values (elsewhere an overflow
    counts as inf)."""
    if which == "none":
        dtype = torch.float64 if second.dtype == torch.float64 else torch.float32
        return torch.ones(shape, dtype=dtype, device=second.device)
    scores = _norm(bilinear, product, 1, second)
    if which == "pair":
        scores = _norm(bilinear, product, 0, first, mean).mul_(scores)
    if scores.device.type != "cpu" or torch.compiler.is_compiling():
        return _repaired(scores)
    if _sound(scores):
        return scores
    scores = _norm(bilinear, product, 1, *_rescaled(second))
    if which == "pair":
        scores = _norm(bilinear, product, 0, *_rescaled(first, mean)).mul_(scores)
    return _repaired(scores)


def _repaired(scores: Tensor) -> Tensor:
    """Scores without NaN and inf, and without rows of zeros."""
    finite = scores.isfinite()
    largest = torch.where(finite, scores, 0).amax(-1, keepdim=True)
    # a random draw must not leave out the very pair that must show, were there a million others
    above = torch.where(largest > 0, _DOMINANT * largest, 1).clamp(max=torch.finfo(scores.dtype).max)
    scores = torch.where(finite, scores, above)
    return torch.where(scores.amax(-1, keepdim=True) > 0, scores, 1)


def _norm(
    bilinear: Bilinear, product: ProductName, operand: Operand, tensor: Tensor, mean: Tensor | None = None
) -> Tensor:
    energy = bilinear.energy(product, operand, tensor)
    if mean is not None and mean.numel() > 0:
        # Σ(x − x̄)² = Σx² − rows·Σx̄², in one pass. What cancellation leaves of a small variance is
        # noise of eps·Σx²: kept as a floor, so that no pair that differs from its mean gets a score of 0
        rows = tensor.numel() / mean.numel()
        floor = energy * (4 * torch.finfo(energy.dtype).eps)
        energy = (energy - rows * bilinear.energy(product, operand, mean)).maximum(floor)
    return energy.sqrt_()


def _sound(scores: Tensor) -> bool:
    """Whether all scores are finite and no row is all zeros: the largest of each row settles it, NaN counting
    as the largest."""
    if scores.numel() == 0:
        return True
    top = scores.amax(-1)
    if top.numel() == 1:
        return 0 < top.item() < math.inf
    least, most = top.aminmax()
    return least.item() > 0 and most.item() < math.inf


def _rescaled(tensor: Tensor, mean: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """The operand (and its mean with it) divided by its largest finite magnitude, in at least float32."""
    wide = tensor if tensor.dtype == torch.float64 else tensor.float()
    top = torch.where(wide.isfinite(), wide, 0).abs().amax()
    top = torch.where(top > 0, top, 1)
    return wide / top, None if mean is None else mean.to(wide.dtype) / top
