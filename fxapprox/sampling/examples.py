"""A linear layer of which every example computes output nodes of its own.

Only chosen nodes are multiplied: rows·k·in multiplications for each of the three products. Shapes:
`index` `[rows, k]`; the weight as `[nodes, in]`; a cut result or gradient `[rows, k]`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..policies import Active

CHUNK = 1 << 24
"""Numbers of the weight that are gathered at a time where examples are multiplied together."""


def forward(inputs: Tensor, weight: Tensor, bias: Tensor | None, active: Active) -> Tensor:
    """The result `[rows, nodes]`, 0 where a node was not chosen."""
    index = active.index
    part = _on_cpu(inputs, weight, index) if inputs.device.type == "cpu" else _batched(inputs, weight, index)
    if bias is not None:
        part += bias[index]
    if active.scale is not None:
        part = (part * active.scale).to(part.dtype)
    return part.new_zeros(len(inputs), len(weight)).scatter_(1, index, part)


def _on_cpu(inputs: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    """One example at a time: a gathered part of the weight then stays in the cache, and torch's batched
    product of a matrix and a vector is slow (64 × 50 nodes × 1,000 inputs, one thread: 2.0 ms against 22)."""
    part = inputs.new_empty(index.shape)
    for x, nodes, out in zip(inputs.unbind(), index.unbind(), part.unbind(), strict=True):
        torch.mv(weight.index_select(0, nodes), x, out=out)
    return part


def _batched(inputs: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    k, width = index.shape[1], inputs.shape[1]
    step = max(1, CHUNK // max(1, k * width))
    parts = [
        torch.bmm(weight.index_select(0, nodes.reshape(-1)).view(-1, k, width), x.unsqueeze(2)).squeeze(2)
        for x, nodes in zip(inputs.split(step), index.split(step), strict=True)
    ]
    return torch.cat(parts)


def cut(grad: Tensor, active: Active) -> Tensor:
    """The gradient of the chosen nodes before they were scaled."""
    part = grad.gather(1, active.index)
    return part if active.scale is None else (part * active.scale).to(part.dtype)


def grad_input(part: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    """Σ_j part_j · weight_index_j of every example, without a gathered copy of the weight."""
    return F.embedding_bag(index, weight, mode="sum", per_sample_weights=part)


def grad_weight(part: Tensor, inputs: Tensor, index: Tensor, nodes: int) -> Tensor:
    """`[nodes, in]`: for each node the sum over the examples that chose it; zeros for the others."""
    order = index.reshape(-1).argsort(stable=True)
    chosen, counts = index.reshape(-1)[order].unique_consecutive(return_counts=True)
    example = order.div(index.shape[1], rounding_mode="floor")
    offsets = counts.cumsum(0) - counts
    weights = part.reshape(-1)[order]
    sums = F.embedding_bag(example, inputs, offsets, mode="sum", per_sample_weights=weights)
    return sums.new_zeros(nodes, inputs.shape[1]).index_copy_(0, chosen, sums)


def grad_bias(part: Tensor, index: Tensor, nodes: int) -> Tensor:
    wide = part if part.dtype == torch.float64 else part.float()
    return wide.new_zeros(nodes).index_add_(0, index.reshape(-1), wide.reshape(-1)).to(part.dtype)
