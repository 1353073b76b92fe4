"""The limit of one product: the exact operation on the kept part alone.

Nothing is scored, drawn, gathered or put back, so no way to sample can be faster."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ..choices import Choice, Sampled
from ..kinds import Bilinear, Operation
from ..kinds._bilinear import positions
from ..sampling.nodes import node_choice
from ..sites import ProductName
from .timing import Arm


def limit(operation: Operation, choice: Choice, grad: bool = True) -> Arm:
    """What `choice` samples of one product on operands cut to the k pairs (or nodes), the rest whole.

    Where all wanted products go through one cut this is the exact operation on the cut operands, with
    torch's own backward; else the products one by one. `grad` False leaves the gradients out."""
    left, right = operation.left.detach(), operation.right.detach()
    bias = None if operation.bias is None else operation.bias.detach()
    operands = operation.left, operation.right, operation.bias
    wants = [grad and t is not None and t.requires_grad for t in operands]
    nodes = node_choice(choice)
    if nodes is not None:
        return _of_nodes(operation.bilinear, nodes[0], choice.forward != "exact", (left, right, bias), wants)
    return _of_pairs(operation.bilinear, choice, (left, right, bias), wants)


Operands = tuple[Tensor, Tensor, Tensor | None]


def _of_pairs(bilinear: Bilinear, choice: Choice, operands: Operands, wants: Sequence[bool]) -> Arm:
    left, right, bias = operands
    shapes = tuple(left.shape), tuple(right.shape)
    kept = _cut(bilinear, "forward", choice.forward, left, right, shapes)
    gradients = (choice.grad_input, choice.grad_weight)
    if all(how == "reuse" for how, wanted in zip(gradients, wants, strict=False) if wanted):
        return _by_autograd(bilinear, (*kept, bias), wants)
    grad = torch.randn_like(bilinear.forward(*kept, bias))
    runs: list[Arm] = [partial(bilinear.forward, *kept, bias)]
    if wants[0]:
        at = kept if choice.grad_input == "reuse" else (left, right)
        first, second = _cut(bilinear, "grad_input", choice.grad_input, grad, at[1], shapes)
        runs.append(partial(bilinear.grad_left, first, second, tuple(at[0].shape)))
    if wants[1]:
        at = kept if choice.grad_weight == "reuse" else (left, right)
        first, second = _cut(bilinear, "grad_weight", choice.grad_weight, grad, at[0], shapes)
        runs.append(partial(bilinear.grad_right, first, second, tuple(at[1].shape)))
    if wants[2]:
        runs.append(partial(bilinear.grad_bias, grad))
    return partial(_one_after_another, runs)


def _of_nodes(
    bilinear: Bilinear, sampled: Sampled, forward: bool, operands: Operands, wants: Sequence[bool]
) -> Arm:
    """k output nodes of the weight, the same for all examples, in all products or in the gradients alone."""
    left, right, bias = operands
    groups, nodes, _ = bilinear.sizes("grad_input", tuple(left.shape), tuple(right.shape))
    index = _spread(sampled.k(nodes), nodes, groups, left.device)
    kept = bilinear.take("grad_input", 1, right, index)
    if forward:
        short = None if bias is None else bias.index_select(0, positions(index, nodes))
        return _by_autograd(bilinear, (left, kept, short), wants)
    grad = torch.randn_like(bilinear.forward(left, right, bias))
    cut = bilinear.take("grad_input", 0, grad, index)
    runs: list[Arm] = [partial(bilinear.forward, left, right, bias)]
    if wants[0]:
        runs.append(partial(bilinear.grad_left, cut, kept, tuple(left.shape)))
    if wants[1]:
        runs.append(partial(bilinear.grad_right, cut, left, tuple(kept.shape)))
    if wants[2]:
        runs.append(partial(bilinear.grad_bias, grad))
    return partial(_one_after_another, runs)


def _spread(k: int, pairs: int, groups: int, device: torch.device) -> Tensor:
    """An index `[groups, k]`, ascending and evenly spread."""
    return (torch.arange(k, device=device) * pairs // k).expand(groups, k)


def _cut(
    bilinear: Bilinear,
    product: ProductName,
    how: object,
    first: Tensor,
    second: Tensor,
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
) -> tuple[Tensor, Tensor]:
    """Both operands of a product cut to k pairs, evenly spread; whole where it is not sampled."""
    if not isinstance(how, Sampled):
        return first, second
    groups, pairs, _ = bilinear.sizes(product, *shapes)
    k = how.k(pairs)
    if k == pairs:
        return first, second
    index = _spread(k, pairs, groups, first.device)
    return bilinear.take(product, 0, first, index), bilinear.take(product, 1, second, index)


def _by_autograd(bilinear: Bilinear, operands: Operands, wants: Sequence[bool]) -> Arm:
    leaves = [
        None if operand is None else operand.detach().requires_grad_(wanted)
        for operand, wanted in zip(operands, wants, strict=True)
    ]
    left, right, bias = leaves
    assert left is not None
    assert right is not None
    wanted = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
    grad = torch.randn_like(bilinear.forward(left, right, bias).detach())

    def arm() -> None:
        result = bilinear.forward(left, right, bias)
        if wanted:
            torch.autograd.grad(result, wanted, grad)

    return arm


def _one_after_another(runs: Sequence[Arm]) -> None:
    with torch.no_grad():
        for run in runs:
            run()
