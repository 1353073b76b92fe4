"""Bilinear products whose pairs lie along one dimension of each operand: all but the arithmetic of a kind."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ..sites import ProductName
from . import _strides
from ._base import Bilinear, Operand
from ._strides import WIDE


@dataclass(frozen=True)
class Pairs:
    """Where an operand holds its pairs: along `dim`.

    With several groups they lie along `dim` too, group after group (the input channels of a grouped
    convolution), unless `block` names another dimension that is made of one block per group (the
    weight `[groups·out, pairs, kh, kw]` of that convolution: dim 1, block 0; a batched matmul's
    operands with a choice per batch: block 0)."""

    dim: int
    block: int | None = None


@dataclass(frozen=True)
class Contraction:
    """How one product is contracted: its pairs in both operands, and what they are in words."""

    first: Pairs
    second: Pairs
    over: str
    groups: int = 1


class AxisBilinear(Bilinear):
    """A Bilinear that says where its pairs lie; norms, gathering and scattering follow.

    To write: `forward`, `grad_left`, `grad_right`, `grad_bias`, `flops`, `contraction`, `center_dims`
    and, where the mean must be spread out again, `plane_dims`."""

    @abstractmethod
    def contraction(self, product: ProductName) -> Contraction: ...

    @abstractmethod
    def center_dims(self, left_ndim: int) -> tuple[int, ...]:
        """Dimensions of the left operand that `center` averages away: all that are rows of y, neither
        contracted nor a batch that the right operand has too."""

    def plane_dims(self, left_ndim: int) -> tuple[int, ...]:
        """Those of `center_dims` along which the mean is repeated (a convolution's positions)."""
        return ()

    def sizes(
        self, product: ProductName, left: tuple[int, ...], right: tuple[int, ...]
    ) -> tuple[int, int, str]:
        at = self.contraction(product)
        pairs = at.first if product == "forward" else at.second
        shape = right if product == "grad_input" else left
        length = shape[pairs.dim]
        return at.groups, length if pairs.block is not None else length // at.groups, at.over

    def energy(self, product: ProductName, operand: Operand, tensor: Tensor) -> Tensor:
        pairs, groups = self._pairs(product, operand)
        if groups == 1 or pairs.block is None:
            return _strides.energy(tensor, pairs.dim).view(groups, -1)
        wide = tensor if tensor.dtype in WIDE else tensor.float()
        blocks, dim = _blocks(wide.square(), pairs.dim, pairs.block, groups)
        rest = tuple(d for d in range(blocks.ndim) if d not in (dim, pairs.block))
        sums = blocks.sum(rest)
        return sums if pairs.block < dim else sums.t()

    def take(self, product: ProductName, operand: Operand, tensor: Tensor, index: Tensor) -> Tensor:
        pairs, groups = self._pairs(product, operand)
        if groups == 1 or pairs.block is None:
            return _strides.select(tensor, pairs.dim, positions(index, tensor.shape[pairs.dim] // groups))
        blocks, dim = _blocks(tensor, pairs.dim, pairs.block, groups)
        kept = blocks.gather(dim, _expanded(index, blocks.shape, pairs.block, dim))
        return kept.flatten(pairs.block, pairs.block + 1)

    def scale(self, product: ProductName, operand: Operand, tensor: Tensor, factors: Tensor) -> Tensor:
        pairs, groups = self._pairs(product, operand)
        # half types are multiplied in the factors' float32: 1/p alone may be beyond float16
        factors = factors.to(tensor.dtype) if tensor.dtype in WIDE else factors
        if groups == 1 or pairs.block is None:
            scaled = tensor * _along(factors, pairs.dim, tensor.ndim)
            return scaled if scaled.dtype == tensor.dtype else scaled.to(tensor.dtype)
        blocks, dim = _blocks(tensor, pairs.dim, pairs.block, groups)
        scaled = (blocks * _grid(factors, pairs.block, dim, blocks.ndim)).to(tensor.dtype)
        return scaled.flatten(pairs.block, pairs.block + 1)

    def put(
        self, product: ProductName, operand: Operand, full: Tensor, kept: Tensor, index: Tensor, unique: bool
    ) -> None:
        pairs, groups = self._pairs(product, operand)
        if groups == 1 or pairs.block is None:
            at = positions(index, full.shape[pairs.dim] // groups)
            (full.index_copy_ if unique else full.index_add_)(pairs.dim, at, kept)
            return
        blocks, dim = _blocks(full, pairs.dim, pairs.block, groups)
        kept_blocks, _ = _blocks(kept, pairs.dim, pairs.block, groups)
        places = _expanded(index, kept_blocks.shape, pairs.block, dim)
        (blocks.scatter_ if unique else blocks.scatter_add_)(dim, places, kept_blocks)

    def spread(
        self, product: ProductName, operand: Operand, kept: Tensor, selected: tuple[Tensor, bool],
        shape: tuple[int, ...], strides: tuple[int, ...],
    ) -> Tensor:  # fmt: skip
        pairs, groups = self._pairs(product, operand)
        index, unique = selected
        if groups == 1 or pairs.block is None:
            at = positions(index, shape[pairs.dim] // groups)
            return _strides.spread(kept, pairs.dim, at, unique, shape, strides)
        full = _strides.zeros(shape, strides, kept)
        self.put(product, operand, full, kept, index, unique)
        return full

    def center(self, left: Tensor) -> Tensor:
        dims = self.center_dims(left.ndim)
        if not dims:  # one row: it is its own mean (torch would average over every dimension)
            return left
        mean = left.mean(dims, keepdim=True)
        planes = self.plane_dims(left.ndim)
        return mean.expand([left.shape[d] if d in planes else n for d, n in enumerate(mean.shape)])

    def center_grad(self, grad: Tensor, left_shape: tuple[int, ...]) -> Tensor:
        planes = self.plane_dims(len(left_shape))
        total = grad.sum(planes, keepdim=True) if planes else grad
        return total / math.prod([left_shape[d] for d in self.center_dims(len(left_shape))])

    def _pairs(self, product: ProductName, operand: Operand) -> tuple[Pairs, int]:
        at = self.contraction(product)
        return (at.second if operand else at.first), at.groups


def positions(index: Tensor, pairs: int) -> Tensor:
    """Positions `[groups·k]` along a dimension of groups·pairs from an index `[groups, k]`."""
    if index.shape[0] == 1:
        return index.squeeze(0)
    start = torch.arange(index.shape[0], device=index.device).unsqueeze(1) * pairs
    return (index + start).reshape(-1)


def _blocks(tensor: Tensor, dim: int, block: int, groups: int) -> tuple[Tensor, int]:
    """The tensor with its dimension `block` split into (groups, rest), and where `dim` went."""
    return tensor.unflatten(block, (groups, -1)), dim + (dim > block)


def _grid(values: Tensor, block: int, dim: int, ndim: int) -> Tensor:
    """Values `[groups, pairs]` as a tensor that broadcasts: groups at `block`, pairs at `dim`."""
    shape = [1] * ndim
    shape[block], shape[dim] = values.shape
    return (values if block < dim else values.t()).reshape(shape)


def _expanded(index: Tensor, shape: torch.Size, block: int, dim: int) -> Tensor:
    """An index `[groups, k]` expanded to what `gather` and `scatter` want for a tensor of `shape`."""
    wanted = list(shape)
    wanted[dim] = index.shape[1]
    return _grid(index, block, dim, len(shape)).expand(wanted)


def _along(values: Tensor, dim: int, ndim: int) -> Tensor:
    """Values `[n]` as a tensor that broadcasts along `dim`."""
    shape = [1] * ndim
    shape[dim] = -1
    return values.reshape(shape)
