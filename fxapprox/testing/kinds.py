"""The contract of a kind, as checks that anybody can run on theirs.

    from fxapprox.testing import check_kind

    def test_my_kind():
        check_kind(MyKind)

A failure is an AssertionError that names the kind, the call and what differs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..kinds import Bilinear, Call, Kind, Operand, Operation, Refusal
from ..sites import PRODUCTS, ProductName

DTYPES = (torch.float32, torch.float64, torch.bfloat16)
# relative to the largest value of what is compared: some hundred roundings
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12, torch.bfloat16: 4e-2}


def check_kind(cls: type[Kind], dtypes: Iterable[torch.dtype] = DTYPES, seed: int = 0) -> int:
    """Run every check on every example of a kind; returns how many calls were checked.

    Per call: `run` with exact products gives the call's own result and gradients; a refusal is a
    sentence. Per product: see `check_operation`."""
    checked = 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for dtype in dtypes:
            for at, call in enumerate(cls.examples(dtype)):
                with _named(f"{cls.name}, example {at} in {dtype}"):
                    check_call(cls(), call)
                checked += 1
    assert checked, f"{cls.name} has no examples: write its `examples` classmethod"
    return checked


def check_call(kind: Kind, call: Call) -> None:
    """The call's own result and gradients against `run` with exact products, then every product."""
    found: list[Operation | Refusal] = []
    parts: list[str] = []

    def product(part: str, operation: Operation | Refusal) -> Any:
        parts.append(part)
        found.append(operation)
        return None if isinstance(operation, Refusal) else exact_product(operation)

    before = torch.random.get_rng_state()
    wanted = kind.exact(call)
    torch.random.set_rng_state(before)  # a call that draws (dropout) must draw the same
    got = kind.run(call, product)
    assert len(set(parts)) == len(parts), f"a part occurs twice: {parts}"
    if any(isinstance(operation, Refusal) for operation in found):
        assert all(isinstance(operation, Refusal) for operation in found), "only some parts are refused"
    else:
        same(got, wanted, "result of the call")
        _same_gradients(call, got, wanted)
    for operation in found:
        if isinstance(operation, Refusal):
            check_refusal(operation)
        else:
            check_operation(operation)


def exact_product(operation: Operation) -> Tensor:
    """The operation with nothing sampled, differentiable."""
    result = operation.bilinear.forward(operation.left, operation.right, operation.bias)
    return operation.finish(result) if operation.finish else result


def check_refusal(refusal: Refusal) -> None:
    """A refusal is a sentence with at least one value, and knows its FLOPs."""
    assert len(refusal.reason.split()) > 3, f"not a sentence: {refusal.reason!r}"
    assert isinstance(refusal.flops, int), f"flops is a {type(refusal.flops).__name__}"
    assert refusal.flops >= 0, f"flops is {refusal.flops}"


def check_operation(operation: Operation) -> None:
    """A bilinear product against autograd, and its parts against the whole, in two memory layouts."""
    left, right = operation.left.detach(), operation.right.detach()
    for first, second in ((left, right), (_strided(left), _strided(right))):
        check_gradients(operation.bilinear, first, second, operation.bias)
        grad = torch.randn_like(operation.bilinear.forward(first, second, None))
        for product in PRODUCTS:
            with _named(product):
                check_product(operation.bilinear, product, first, second, grad)
        if first.numel():
            with _named("centre"):
                check_center(operation.bilinear, first, second)


def check_gradients(bilinear: Bilinear, left: Tensor, right: Tensor, bias: Tensor | None) -> None:
    """`grad_left`, `grad_right` and `grad_bias` against autograd's."""
    leaves = [t.detach().requires_grad_() for t in (left, right, bias) if t is not None]
    result = bilinear.forward(leaves[0], leaves[1], leaves[2] if bias is not None else None)
    grad = torch.randn_like(result)
    wanted = torch.autograd.grad(result, leaves, grad)
    same(bilinear.grad_left(grad, right, tuple(left.shape)), wanted[0], "grad_left")
    same(bilinear.grad_right(grad, left, tuple(right.shape)), wanted[1], "grad_right")
    if bias is not None:
        same(bilinear.grad_bias(grad), wanted[2], "grad_bias")


def check_product(
    bilinear: Bilinear, product: ProductName, left: Tensor, right: Tensor, grad: Tensor
) -> None:
    """Sizes, energies, take, scale and put of one product, all against the exact one."""
    first, second = {"forward": (left, right), "grad_input": (grad, right), "grad_weight": (grad, left)}[
        product
    ]
    groups, pairs, over = bilinear.sizes(product, tuple(left.shape), tuple(right.shape))
    assert over, "what is contracted has no name"
    everything = torch.arange(pairs).expand(groups, pairs)
    exact = compute(bilinear, product, first, second, left, right)
    for at, operand in enumerate((first, second)):
        side: Operand = 1 if at else 0
        _check_operand(bilinear, product, side, operand, everything)
    taken = [bilinear.take(product, side, t, everything) for side, t in _sided(first, second)]
    same(compute(bilinear, product, taken[0], taken[1], left, right), exact, "product of all pairs taken")
    if pairs < 2:
        return
    _check_partition(bilinear, product, (first, second), (left, right), (groups, pairs), exact)


def check_center(bilinear: Bilinear, left: Tensor, right: Tensor) -> None:
    """The product of the mean row is that of the left operand with every row the mean."""
    mean = bilinear.center(left)
    spread = mean.expand(left.shape).contiguous()
    short, full = bilinear.forward(mean, right, None), bilinear.forward(spread, right, None)
    same(short.expand(full.shape), full, "product of the mean")
    same(bilinear.center(left - spread), torch.zeros_like(mean), "mean of what is centred", scale=left)
    ones = torch.ones(bilinear.sizes("forward", tuple(left.shape), tuple(right.shape))[:2])
    same(bilinear.scale("forward", 0, mean, ones), mean, "mean with factors of 1")
    leaf = left.detach().requires_grad_()
    centre = bilinear.center(leaf)
    grad = torch.randn_like(centre)
    (wanted,) = torch.autograd.grad(centre, leaf, grad)
    same(bilinear.center_grad(grad, tuple(left.shape)).expand(left.shape), wanted, "center_grad")


def compute(
    bilinear: Bilinear, product: ProductName, first: Tensor, second: Tensor, left: Tensor, right: Tensor
) -> Tensor:
    """One of the three products of (possibly shortened) operands; `left` and `right` give the full shapes."""
    if product == "forward":
        return bilinear.forward(first, second, None)
    if product == "grad_input":
        return bilinear.grad_left(first, second, tuple(left.shape))
    return bilinear.grad_right(first, second, tuple(right.shape))


def same(found: Any, wanted: Any, what: str, scale: Tensor | None = None) -> None:
    """Equal to rounding: shape, dtype and values, relative to the largest wanted value."""
    if not isinstance(wanted, Tensor):
        for here, there in zip(found, wanted, strict=True):
            same(here, there, what)
        return
    assert found.dtype == wanted.dtype, f"{what}: dtype {found.dtype}, wanted {wanted.dtype}"
    assert found.shape == wanted.shape, f"{what}: shape {tuple(found.shape)}, wanted {tuple(wanted.shape)}"
    if not wanted.numel():
        return
    reference = wanted if scale is None else scale
    bound = TOLERANCE.get(wanted.dtype, 1e-2) * max(reference.abs().max().item(), 1e-30)
    off = (found - wanted).abs().max().item()
    assert off <= bound, f"{what}: off by {off:.3g}, allowed {bound:.3g}"


def _check_operand(
    bilinear: Bilinear, product: ProductName, side: Operand, operand: Tensor, everything: Tensor
) -> None:
    groups, pairs = everything.shape
    energy = bilinear.energy(product, side, operand)
    assert tuple(energy.shape) == (groups, pairs), (
        f"energy of {tuple(energy.shape)}, wanted {(groups, pairs)}"
    )
    half = operand.dtype in (torch.float16, torch.bfloat16)
    assert energy.dtype == (torch.float32 if half else operand.dtype), f"energy in {energy.dtype}"
    total = operand.to(energy.dtype).square().sum()
    same(energy.sum(), total, "sum of the energies")
    for pair in range(min(pairs, 3)):
        kept = bilinear.take(product, side, operand, everything[:, pair : pair + 1])
        same(
            energy[:, pair].sum(), kept.to(energy.dtype).square().sum(), f"energy of pair {pair}", scale=total
        )
    same(bilinear.take(product, side, operand, everything), operand, "all pairs taken")
    index = everything.flip(1)[:, : max(pairs // 2, 1)].sort().values  # the last half
    kept = bilinear.take(product, side, operand, index)
    mask = torch.zeros(groups, pairs).scatter_(1, index, 1.0)
    place = tuple(operand.shape), operand.stride()
    full = bilinear.spread(product, side, kept, (index, True), *place)
    same(full, bilinear.scale(product, side, operand, mask), "kept pairs put back")
    full = operand.detach().clone()
    bilinear.put(product, side, full, -kept, index, True)
    same(full, bilinear.scale(product, side, operand, 1 - 2 * mask), "kept pairs put over others")
    twice = index.repeat_interleave(2, 1)
    kept = bilinear.take(product, side, operand, twice)
    full = bilinear.spread(product, side, kept, (twice, False), *place)
    same(full, bilinear.scale(product, side, operand, 2 * mask), "pairs that occur twice put back")


def _check_partition(
    bilinear: Bilinear, product: ProductName, operands: tuple[Tensor, Tensor], full: tuple[Tensor, Tensor],
    size: tuple[int, int], exact: Tensor,
) -> None:  # fmt: skip
    """The product is the sum over any partition of its pairs, each group with a partition of its own."""
    groups, pairs = size
    order = torch.stack([torch.randperm(pairs) for _ in range(groups)]) if groups else torch.zeros(0, pairs)
    total = torch.zeros_like(exact)
    for index in (order[:, : pairs // 3 + 1].long(), order[:, pairs // 3 + 1 :].long()):
        kept = [bilinear.take(product, side, t, index) for side, t in _sided(*operands)]
        part = compute(bilinear, product, kept[0], kept[1], *full)
        total += part
        factors = torch.rand(groups, index.shape[1], dtype=exact.dtype)
        scaled = [bilinear.scale(product, side, t, factors) for side, t in _sided(kept[0], kept[1])]
        same(
            compute(bilinear, product, scaled[0], kept[1], *full),
            compute(bilinear, product, kept[0], scaled[1], *full),
            "scale in the first or second operand",
            scale=exact,
        )
        if product == "forward":
            shapes = [tuple(t.shape) for t in (*full, *kept)]
            whole, cut = bilinear.flops(*shapes[:2]), bilinear.flops(*shapes[2:])
            assert cut * pairs == whole * index.shape[1], (
                f"{cut} FLOPs for {index.shape[1]} of {pairs}: {whole}"
            )
            assert whole > 0 or not exact.numel(), "no FLOPs"
    same(total, exact, "sum over a partition of the pairs", scale=exact)


def _sided(first: Tensor, second: Tensor) -> Iterator[tuple[Operand, Tensor]]:
    yield 0, first
    yield 1, second


def _same_gradients(call: Call, got: Any, wanted: Any) -> None:
    leaves = [t for t in _tensors([call.args, call.kwargs]) if t.requires_grad]
    leaves += list(call.module.parameters()) if call.module is not None else []
    if not leaves or not isinstance(wanted, Tensor):
        return
    grad = torch.randn_like(wanted)
    found = torch.autograd.grad(got, leaves, grad, allow_unused=True)
    expected = torch.autograd.grad(wanted, leaves, grad, allow_unused=True)
    for at, (here, there) in enumerate(zip(found, expected, strict=True)):
        if there is not None:
            assert here is not None, f"no gradient reaches operand {at}"
            same(here, there, f"gradient of operand {at}")


def _tensors(nest: Any) -> Iterator[Tensor]:
    if isinstance(nest, Tensor):
        yield nest
    elif isinstance(nest, dict):
        yield from _tensors(list(nest.values()))
    elif isinstance(nest, (list, tuple)):
        for item in nest:
            yield from _tensors(item)


def _strided(tensor: Tensor) -> Tensor:
    """The same values in another memory layout: channels_last, or the last two dimensions swapped."""
    if tensor.dim() == 4:
        return tensor.contiguous(memory_format=torch.channels_last)
    return tensor.mT.contiguous().mT if tensor.dim() > 1 else tensor


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Put `what` before the message of whatever fails inside."""
    try:
        yield
    except AssertionError as failure:
        raise AssertionError(f"{what}: {failure}") from failure
    except Exception as failure:
        raise AssertionError(f"{what}: {type(failure).__name__}: {failure}") from failure
