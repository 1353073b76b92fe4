"""The contract of a node policy; `fxapprox.testing.check_policy` runs it on one.

A small linear layer is run by `node_product` under the policy, and compared with what the policy says it
chose: which outputs are 0, and what autograd makes of the exact layer with the others taken out."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from ..choices import Choice, Sampled
from ..kinds import Operation
from ..kinds.linear import Rows
from ..policies import Active, Gates, Layer, NodePolicy
from ..sampling.nodes import node_product
from ..sampling.streams import Draw
from ..sites import PRODUCTS
from .policies import bound_of, check_facts, require, stream_of, worst_z

TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12, torch.bfloat16: 4e-2}
NODES = 24
KEPT = (1, 2, NODES // 2, NODES - 1)


def layer_operands(
    rows: int, dtype: torch.dtype = torch.float64, nodes: int = NODES, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Input `[rows, 7]`, weight `[nodes, 7]` and bias, leaves that need a gradient."""
    numbers = torch.Generator().manual_seed(seed)
    shapes = ((rows, 7), (nodes, 7), (nodes,))
    first, second, third = (
        torch.randn(shape, generator=numbers, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in shapes
    )
    return first, second, third


def run(policy: NodePolicy, operands: tuple[Tensor, Tensor, Tensor], k: int, number: int = 0) -> Tensor:
    """The layer under the policy, k nodes kept where `keep` decides that, draw `number`."""
    choice = Choice.of_scope(policy.scopes[0], Sampled(policy, 1e-9, min_k=k))
    return node_product(Operation(Rows(), *operands), choice, Draw("site", 0, number), policy.keeps())


def chosen(
    policy: NodePolicy, operands: tuple[Tensor, Tensor, Tensor], k: int, number: int, grad: Tensor
) -> tuple[Active | Gates, Tensor]:
    """What the policy answers for that draw, and the factors `[rows, nodes]` that its answer stands for."""
    backward = policy.scopes[0] == "backward"
    left, right, bias = (operand.detach() for operand in operands)
    seen = {"grad": grad} if backward else {"operands": (left, right, bias)}
    draw = Draw("site", 0, number)
    layer = Layer(Rows(), (1, len(right)), left.device, draw, kept=policy.keeps(), **seen)
    stream = draw.stream("grad_input" if backward else "forward")
    answer = policy.choose(layer, k, stream if policy.random else stream_of(policy, 0))
    if isinstance(answer, Gates):
        return answer, answer.open.double()
    index = answer.index if answer.each else answer.index.expand(len(left), -1)
    scale = torch.ones(1) if answer.scale is None else answer.scale
    factors = torch.zeros(len(left), len(right), dtype=torch.float64)
    return answer, factors.scatter_(1, index, scale.double().expand(index.shape))


def size(policy: NodePolicy, k: int) -> int:
    """Nodes kept of `NODES` where k are asked for."""
    return Sampled(policy, 1e-9, min_k=k).k(NODES)


def cases(policy: NodePolicy) -> Iterator[tuple[int, torch.dtype, int]]:
    """(rows, dtype, k): one k where the policy has a size of its own."""
    for rows in (1, 5):
        for dtype in (torch.float32, torch.float64):
            for k in KEPT if not policy.sized_by else (size(policy, 1),):
                yield rows, dtype, k


def check_answer(policy: NodePolicy) -> None:
    """Index: int64, in range, ascending, each node once, k of them; scale: none, or finite and positive."""
    for rows, dtype, k in cases(policy):
        where = f"{policy.name} with {rows} rows in {dtype}, k={k}"
        operands = layer_operands(rows, dtype)
        before = [operand.detach().clone() for operand in operands]
        answer, _ = chosen(policy, operands, k, 0, torch.ones(rows, NODES, dtype=dtype))
        for name, one, other in zip(("input", "weight", "bias"), operands, before, strict=True):
            require(torch.equal(one, other), f"{where}: changed the {name} it was shown")
        if isinstance(answer, Gates):
            require(answer.open.dtype == torch.bool, f"{where}: gates are {answer.open.dtype}, not bool")
            require(
                tuple(answer.open.shape) == (rows, NODES), f"{where}: gates are {tuple(answer.open.shape)}"
            )
            continue
        index, wanted = answer.index, (rows if answer.each else 1, k)
        require(index.dtype == torch.int64, f"{where}: index is {index.dtype}, not int64")
        require(tuple(index.shape) == wanted, f"{where}: index is {tuple(index.shape)}, not {wanted}")
        require(
            bool(((index >= 0) & (index < NODES)).all()), f"{where}: index out of range: {index.tolist()}"
        )
        require(bool((index.diff(dim=-1) > 0).all()), f"{where}: index not ascending: {index.tolist()}")
        if answer.scale is not None:
            require(answer.scale.shape == index.shape, f"{where}: scale is {tuple(answer.scale.shape)}")
            sound = answer.scale.isfinite() & (answer.scale > 0)
            require(bool(sound.all()), f"{where}: scale not finite and positive: {answer.scale.tolist()}")


def check_product(policy: NodePolicy) -> None:
    """Outputs and gradients are those of the exact layer with the nodes that were not chosen taken out."""
    for rows, dtype, k in cases(policy):
        operands = layer_operands(rows, dtype)
        numbers = torch.Generator().manual_seed(1)
        grad = torch.randn(rows, NODES, generator=numbers, dtype=torch.float64).to(dtype)
        result = run(policy, operands, k)
        found = torch.autograd.grad(result, operands, grad)
        _, factors = chosen(policy, operands, k, 0, grad)
        factors = factors.to(dtype)
        exact = F.linear(*operands)
        if policy.scopes[0] == "backward":
            wanted = (
                exact,
                *torch.autograd.grad(exact, operands[:2], grad * factors, retain_graph=True),
                grad.sum(0),
            )
        else:
            wanted = (
                exact * factors,
                *torch.autograd.grad(exact, operands, grad * factors, retain_graph=True),
            )
        for name, one, other in zip(
            ("result", *PRODUCTS[1:], "bias gradient"), (result, *found), wanted, strict=True
        ):
            far = float((one - other).detach().abs().max())
            near = TOLERANCE[dtype] * max(1.0, float(other.detach().abs().max()))
            where = f"{policy.name} with {rows} rows in {dtype}, k={k}"
            require(far <= near, f"{where}: {name} is {far} off what its choice stands for")


def check_randomness(policy: NodePolicy) -> None:
    """One seed, one draw; another draw, another; the global generator is left alone."""
    operands = layer_operands(5)
    k = size(policy, NODES // 2)
    state = torch.get_rng_state()
    grad = torch.ones(5, NODES, dtype=torch.float64)
    draws = [chosen(policy, operands, k, number, grad)[1] for number in (0, 0, *range(1, 9))]
    run(policy, operands, k).sum().backward()
    require(torch.equal(state, torch.get_rng_state()), f"{policy.name} draws from the global generator")
    require(torch.equal(draws[0], draws[1]), f"{policy.name}: the same seed gave two different draws")
    differ = any(not torch.equal(draws[0], other) for other in draws[2:])
    require(
        differ == policy.random, f"{policy.name} is declared random={policy.random}: draws differ: {differ}"
    )


def check_unbiased(policy: NodePolicy) -> None:
    """E[output] is the exact output, if the policy says so: a z-test over 4,000 draws of every entry."""
    if not policy.unbiased:
        return
    operands = layer_operands(2)
    exact = F.linear(*operands).detach()
    for k in KEPT if not policy.sized_by else (size(policy, 1),):
        with torch.no_grad():
            draws = torch.stack([run(policy, operands, k, number).flatten() for number in range(4000)])
        worst = worst_z(draws, exact.flatten(), slack=1e-6 * float(exact.abs().max()))
        bound = bound_of(len(KEPT) * exact.numel())
        require(
            worst < bound,
            f"{policy.name} is declared unbiased, but with k={k} an output's mean is {worst:.1f} standard"
            f" errors off (bound {bound:.1f})",
        )


def check_ends(policy: NodePolicy) -> None:
    """All nodes kept is the exact layer, to the bit; an empty batch works; half types keep their dtype."""
    if not policy.sized_by:
        operands = layer_operands(5, torch.float32)
        require(
            torch.equal(run(policy, operands, NODES), F.linear(*operands)),
            f"{policy.name}: k = n is not exact",
        )
    empty = run(policy, layer_operands(0, torch.float32), 2)
    require(tuple(empty.shape) == (0, NODES), f"{policy.name}: an empty batch gave {tuple(empty.shape)}")
    half = layer_operands(5, torch.bfloat16)
    result = run(policy, half, 2)
    result.sum().backward()
    require(result.dtype == torch.bfloat16, f"{policy.name}: bfloat16 in, {result.dtype} out")
    for operand in half:
        sound = (
            operand.grad is not None
            and operand.grad.dtype == torch.bfloat16
            and operand.grad.isfinite().all()
        )
        require(bool(sound), f"{policy.name}: a bfloat16 gradient is missing, of another dtype or not finite")


def check_evaluation(policy: NodePolicy) -> None:
    """`evaluate` is there, and differentiable, where the policy says that evaluation is its own."""
    if policy.evaluation == "own":
        result = torch.linspace(-2, 2, 5, requires_grad=True)
        value = policy.evaluate(result)
        require(
            value.shape == result.shape and value.requires_grad, f"{policy.name}: evaluate() gave {value}"
        )


def check_work(policy: NodePolicy) -> None:
    """The share of FLOPs that the summary prints is a share, and never less than nothing is done for."""
    for product in PRODUCTS:
        for rows in (1, 64):
            share = policy.work(product, size(policy, 2), NODES, rows)
            require(
                share > 0,
                f"{policy.name}: {product} of {rows} rows is said to take {share} of the exact work",
            )


CHECKS: tuple[Callable[[NodePolicy], None], ...] = (
    check_facts,
    check_answer,
    check_product,
    check_randomness,
    check_unbiased,
    check_ends,
    check_evaluation,
    check_work,
)
