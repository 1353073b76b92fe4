"""Draws of `draws.py` in numpy, for rows that lie in the CPU's memory: the same arithmetic on the same random
numbers, at a third of the cost, most of which is that of starting some twenty calls on a thousand numbers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Places = NDArray[np.int64]
Inside = NDArray[np.bool_]


def inclusion(scores: NDArray[np.floating], k: int, floor: float) -> Floats:
    """`draws.inclusion`."""
    shares = scores.astype(np.float64)
    if scores.dtype == np.float64:  # of float32 none comes near the floor as it is
        shares /= np.maximum(shares.max(-1, keepdims=True), np.finfo(np.float64).tiny)
    np.maximum(shares, floor, out=shares)
    total = shares.sum(-1, keepdims=True)
    if (total >= k * shares.max(-1, keepdims=True)).all():  # no share exceeds 1/k of its row: none is cut
        return np.multiply(shares, k / total, out=shares)
    rest = np.sort(shares, axis=-1).cumsum(-1)[:, -k:]
    shares /= (rest / np.arange(1, k + 1)).min(-1, keepdims=True)
    return np.minimum(shares, 1.0, out=shares)


def systematic(p: Floats, k: int, order: Places, start: Floats, bits: int) -> Places:
    """`draws.systematic`, given the permutations `[groups, n]` and a uniform number `[groups, 1]` per row."""
    groups, n = p.shape
    one = 1 << bits
    first = np.arange(0, groups * n, n)[:, None]
    places = order + first if groups > 1 else order
    ends = (p.reshape(-1)[places] * one).astype(np.int64).cumsum(-1)
    room = np.minimum(ends[:, -1:] - (k - 1) * one, one)
    ends += one - 1 - (start * room).astype(np.int64)
    ends >>= bits
    hit = np.empty((groups, n), dtype=bool)
    hit[:, 0] = ends[:, 0] > 0
    np.not_equal(ends[:, 1:], ends[:, :-1], out=hit[:, 1:])
    kept = np.empty(groups * n, dtype=bool)
    kept[places] = hit
    return np.flatnonzero(kept).reshape(groups, k) - first


def independent(inside: Inside, p: Floats, size: int) -> tuple[Places, Floats]:
    """`draws.independent`, given which pairs are in and how many places each row gets; uses up `inside`."""
    if len(inside) == 1:
        out = np.flatnonzero(~inside)[: size - np.count_nonzero(inside)]
        inside[0, out] = True
        index = np.flatnonzero(inside)
        factors = 1 / p.take(index)
        factors[np.searchsorted(index, out)] = 0.0
        return index[None], factors[None]
    last = np.where(inside, 0, np.arange(1, p.shape[-1] + 1))
    index = np.sort(last.argpartition(size - 1, axis=-1)[:, :size], axis=-1)
    places = index + np.arange(0, p.size, p.shape[-1])[:, None]
    return index, np.where(inside.take(places), 1 / p.take(places), 0.0)
