"""einsum of two operands, tensordot and inner: one contracted group of dimensions."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ._arguments import leaf
from ._base import Call, Kind, OneProduct, Operation, ProductRunner, Refusal, kind
from ._contract import Labels, contract


@kind("einsum", summary="torch.einsum of two operands, over the letters that the result lacks")
class Einsum(Kind):
    """The contracted letters are flattened into one dimension; letters in both operands and the result are
    batches with a choice each. An einsum of one operand multiplies nothing and is no product."""

    functions = (torch.einsum,)  # also torch.functional.einsum: one object

    def run(self, call: Call, product: ProductRunner) -> Any:
        operands, labels, out = _parsed(call)
        if len(operands) < 2:
            return self.exact(call)
        if len(operands) > 2:
            reason = f"it multiplies {len(operands)} operands, and only products of two are sampled"
            product("", Refusal(reason, _pairwise(operands, labels, out)))
            return self.exact(call)
        operation = contract(operands[0], operands[1], (labels[0], labels[1], out))
        result = product("", operation)
        return self.exact(call) if isinstance(operation, Refusal) else result

    @classmethod
    def examples(cls, dtype: torch.dtype) -> Iterator[Call]:
        weight = torch.nn.Parameter(torch.randn(6, 2, 4, dtype=dtype))
        for equation, left, right in (
            ("nm,mp->np", (5, 6), (6, 4)), ("bhqd,bhkd->bhqk", (2, 3, 5, 4), (2, 3, 6, 4)),
            ("ij,kj", (5, 6), (4, 6)), ("bcij,cd->bdij", (2, 3, 4, 4), (3, 5)),
            ("bijc,bcd -> bijd", (2, 3, 4, 5), (2, 5, 3)), ("...i,...i->...", (2, 3, 6), (3, 6)),
            ("b...k,kj->bj...", (2, 3, 4, 6), (6, 5)), ("aibj,jic->cab", (2, 3, 4, 5), (5, 3, 2)),
            ("bnm,bmp->bnp", (0, 5, 6), (0, 6, 4)),
        ):  # fmt: skip
            yield Call((equation, leaf(*left, dtype=dtype), leaf(*right, dtype=dtype)), function=torch.einsum)
        x = leaf(3, 5, 6, dtype=dtype)
        yield Call(("mhd,bnm->bhnd", weight, x), function=torch.einsum)
        yield Call(("bnm,mhd->bhnd", [x, weight]), function=torch.einsum)
        yield Call((x, [0, 1, 2], weight, [2, 3, 4], [0, 3, 1, 4]), function=torch.einsum)
        yield Call(("bnm,nb,m->", x, x[:, :, 0].t(), x[0, 0]), function=torch.einsum)


@kind("tensordot", summary="torch.tensordot and torch.inner, over the dimensions they name")
class TensorDot(OneProduct):
    """`tensordot(a, b, dims)` sums over the last `dims` dimensions of a and the first of b, or over the
    pairs of dimensions that are listed; `inner` over the last of both."""

    functions = (torch.tensordot, torch.inner, Tensor.inner)

    def operation(self, call: Call) -> Operation | Refusal:
        named = dict(call.kwargs)
        given = [*call.args, *(named[name] for name in ("a", "b", "input", "other") if name in named)]
        a, b = given[:2]
        if not isinstance(a, Tensor) or not isinstance(b, Tensor):
            return Refusal(f"its operands are ({type(a).__name__}, {type(b).__name__}), not two tensors", 0)
        if a.dim() == 0 or b.dim() == 0:
            return Refusal(f"operands of {a.dim()} and {b.dim()} dimensions are scaled, not contracted", 0)
        dims = given[2] if len(given) > 2 else named.get("dims", 2)
        over_a, over_b = ([-1], [-1]) if call.function is not torch.tensordot else _dims(dims, a.dim())
        first: list[Hashable] = [("a", d) for d in range(a.dim())]
        second: list[Hashable] = [("b", d) for d in range(b.dim())]
        for here, there in zip(over_a, over_b, strict=True):
            second[there] = first[here]
        out = [name for name in first if name not in second] + [name for name in second if name not in first]
        return contract(a, b, (first, second, out))

    @classmethod
    def examples(cls, dtype: torch.dtype) -> Iterator[Call]:
        a, b = leaf(3, 5, 6, dtype=dtype), leaf(5, 6, 4, dtype=dtype)
        yield Call((a, b), function=torch.tensordot)
        yield Call((a, b), {"dims": ([2, 1], [1, 0])}, function=torch.tensordot)
        yield Call((a, leaf(6, 4, dtype=dtype), 1), function=torch.tensordot)
        for function in (torch.inner, Tensor.inner):
            yield Call((a, leaf(4, 6, dtype=dtype)), function=function)


def _dims(dims: Any, ndim: int) -> tuple[list[int], list[int]]:
    """What tensordot sums over, as lists of dimensions of its first and second operand."""
    dims = dims.tolist() if isinstance(dims, Tensor) else dims
    if isinstance(dims, int):
        return list(range(ndim - dims, ndim)), list(range(dims))
    over_a, over_b = ([side] if isinstance(side, int) else list(side) for side in dims)
    return over_a, over_b


def _parsed(call: Call) -> tuple[list[Tensor], list[Labels], Labels]:
    """The operands, the names of their dimensions, and those of the result."""
    args = [*call.args, *(call.kwargs[name] for name in ("equation", "operands") if name in call.kwargs)]
    if isinstance(args[0], str):
        equation, rest = args[0].replace(" ", ""), args[1:]
        operands = list(rest[0]) if len(rest) == 1 and isinstance(rest[0], (list, tuple)) else list(rest)
        terms, arrow, result = equation.partition("->")
        names: list[list] = [_letters(term) for term in terms.split(",")]
        out: list | None = _letters(result) if arrow else None
    else:  # einsum(operand, names, operand, names, …, names of the result)
        operands, names = list(args[0:-1:2]), [list(term) for term in args[1::2]]
        out = list(args[-1]) if len(args) % 2 else None
    if out is None:  # the rule of einsum: the ellipsis, then what occurs once, in alphabetical order
        single = sorted(name for term in names for name in term if name != ... and _count(names, name) == 1)
        out = [...] * any(... in term for term in names) + single
    hidden = [(x.dim() - len(term) + 1) * (... in term) for x, term in zip(operands, names, strict=True)]
    labels = [_expanded(term, count) for term, count in zip(names, hidden, strict=True)]
    return operands, labels, _expanded(out, max(hidden))


def _letters(term: str) -> list[Hashable]:
    return [... if letter == "." else letter for letter in term.replace("...", ".")]


def _count(names: Sequence[list], name: Hashable) -> int:
    return sum(term.count(name) for term in names)


def _expanded(term: list, hidden: int) -> Labels:
    """The names with the ellipsis replaced by one name for each of the dimensions it stands for."""
    if ... not in term:
        return term
    at = term.index(...)
    return [*term[:at], *(("...", d) for d in range(-hidden, 0)), *term[at + 1 :]]


def _pairwise(operands: Sequence[Tensor], labels: Sequence[Labels], out: Labels) -> int:
    """FLOPs of an einsum of several operands done from left to right, as torch does without opt_einsum."""
    sizes = {name: size for operand, names in zip(operands, labels, strict=True)
             for name, size in zip(names, operand.shape, strict=True) if size != 1}  # fmt: skip
    held, flops = set(labels[0]), 0
    for at, names in enumerate(labels[1:], start=1):
        held |= set(names)
        flops += 2 * math.prod([sizes.get(name, 1) for name in held])
        later = {*out, *(name for rest in labels[at + 1 :] for name in rest)}
        held &= later
    return flops
