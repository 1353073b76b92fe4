"""Gathering, spreading and summing along one dimension in the order in which a tensor lies in memory.

Every function takes logical dimensions and works on physical ones: on a channels_last tensor, or a
weight whose pairs lie outermost, this is up to 20 times faster, and the result has the same format."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..native import Kernels, kernels

PLAIN = (Tensor, nn.Parameter)
WIDE = (torch.float32, torch.float64)
FUSED = (*WIDE, torch.bfloat16)
"""Types of which the fused kernels take, spread and sum columns."""
AT_ONCE = 1 << 19
"""Numbers squared at a time: the squares stay in the cache, and no copy of the operand is ever allocated."""


def fused_for(tensor: Tensor) -> Kernels | None:
    """The fused kernels, where they are built and can read the tensor, and nobody (a flop counter, say)
    watches the operations of torch, of which they are none."""
    plain = type(tensor) in PLAIN and tensor.device.type == "cpu" and tensor.dtype in FUSED
    watched = torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0
    return kernels() if plain and not watched and tensor.numel() > 0 else None


def physical(strides: Sequence[int]) -> list[int]:
    """Dimensions from the outermost in memory to the innermost."""
    if len(strides) == 2:
        return [0, 1] if strides[0] >= strides[1] else [1, 0]
    return sorted(range(len(strides)), key=strides.__getitem__, reverse=True)


def inverse(order: Sequence[int]) -> list[int]:
    """The permutation that undoes `order`."""
    return sorted(range(len(order)), key=order.__getitem__)


def zeros(shape: Sequence[int], strides: Sequence[int], like: Tensor) -> Tensor:
    """Dense zeros of `shape` in the memory format that `strides` belong to, dtype and device of `like`."""
    order = physical(strides)
    return like.new_zeros([shape[d] for d in order]).permute(inverse(order))


def select(tensor: Tensor, dim: int, index: Tensor) -> Tensor:
    """`tensor.index_select(dim, index)` that keeps the memory format."""
    if torch.compiler.is_compiling() or tensor.is_contiguous():
        return tensor.index_select(dim, index)
    order = physical(tensor.stride())
    at, dense = order.index(dim), _permuted(tensor, order)
    if at == tensor.ndim - 1 > 1:  # along the last dimension a matrix is gathered 15 times faster than a cube
        matrix = dense.reshape(-1, dense.shape[at])
        fused = fused_for(matrix)
        rows = fused.take(matrix, index) if fused else matrix.index_select(1, index)
        return _back(rows.view(*dense.shape[:at], -1), order)
    return _back(dense.index_select(at, index), order)


def spread(
    kept: Tensor, dim: int, index: Tensor, unique: bool, shape: Sequence[int], strides: Sequence[int]
) -> Tensor:
    """Dense zeros of `shape` with the slices of `kept` at the places `index` (ascending) along `dim`, in the
    memory format that `strides` belong to; slices with the same place are added up.

    On a CPU every entry is written once, where slices are more than single numbers: a place is a bag of the
    slices that go there, mostly one or none (4 MB: 86 µs, where zeros and index_copy take 250 to 400)."""
    order = physical(strides)
    at, lengths = order.index(dim), [shape[d] for d in order]
    before, after = math.prod(lengths[:at]), math.prod(lengths[at + 1 :])
    plain = kept.device.type == "cpu" and not torch.compiler.is_compiling() and kept.numel() > 0
    kept = _permuted(kept, order)
    if plain and after > 1:
        full = bags(kept.reshape(-1, after), index, before, shape[dim])
    elif plain and (fused := fused_for(kept)):
        full = fused.spread(kept.reshape(-1, len(index)), index, shape[dim])
    elif plain:
        full, columns = kept.new_zeros(before, shape[dim]), index.expand(before, -1)
        full = (full.scatter_ if unique else full.scatter_add_)(1, columns, kept.reshape(before, -1))
    else:
        full = kept.new_zeros(lengths)
        (full.index_copy_ if unique else full.index_add_)(at, index, kept)
    return _back(full.view(lengths), order)


def _permuted(tensor: Tensor, order: list[int]) -> Tensor:
    """The tensor with its dimensions in this order; two dimensions in the cheapest way."""
    if len(order) == 2:
        return tensor if order[0] == 0 else tensor.t()
    return tensor.permute(order)


def _back(tensor: Tensor, order: list[int]) -> Tensor:
    """The reverse of `_permuted`."""
    if len(order) == 2:
        return tensor if order[0] == 0 else tensor.t()
    return tensor.permute(inverse(order))


def bags(rows: Tensor, index: Tensor, blocks: int, size: int) -> Tensor:
    """Rows `[blocks·k, m]` spread out to `[blocks·size, m]`, by `index` `[k]` within each block."""
    count = torch.bincount(index, minlength=size)
    starts = count.cumsum(0).sub_(count)
    if blocks > 1:
        first = torch.arange(0, rows.shape[0], index.numel(), device=index.device)
        starts = (first.unsqueeze(1) + starts).view(-1)
    return torch.embedding_bag(rows, torch.arange(rows.shape[0]), starts)[0]


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype in WIDE else tensor.float()


def energy(tensor: Tensor, dim: int) -> Tensor:
    """Sums of squares along `dim` over all other dimensions: `[size of dim]`, in float32 for half types."""
    if torch.compiler.is_compiling() or tensor.device.type != "cpu" or tensor.numel() == 0:
        squares = _wide(tensor).square()
        rest = tuple(d for d in range(tensor.ndim) if d != dim)
        return squares.sum(rest) if rest else squares
    order = physical(tensor.stride())
    at = order.index(dim)
    outer, inner = order[:at], order[at + 1 :]
    if outer and not inner and (fused := fused_for(tensor)):
        return fused.energies(tensor.permute(order).reshape(-1, tensor.shape[dim]))
    wide = _wide(tensor)
    if inner:  # norms are vectorised along what is contiguous, and need no squares in memory
        rows = torch.linalg.vector_norm(wide, dim=inner, keepdim=bool(outer)).square_()
        return rows.sum(outer).view(-1) if outer else rows
    if not outer:
        return wide.square()
    if wide.numel() <= AT_ONCE:
        return wide.square().sum(outer)
    matrix = wide.permute(order).reshape(-1, wide.shape[dim])
    parts = [part.square().sum(0) for part in matrix.split(max(AT_ONCE // wide.shape[dim], 1))]
    return torch.stack(parts).sum(0)
