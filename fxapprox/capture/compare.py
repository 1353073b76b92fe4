"""Compare nests of tensors and plain values, to rounding."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

# Both sides run the same operations in the same order, so they are equal to the bit but where a
# fused kernel (attention in eval mode) or several threads adding up change the order of a sum.
_TOLERANCE = {
    torch.float64: 1e-9,
    torch.complex128: 1e-9,
    torch.float32: 1e-4,
    torch.complex64: 1e-4,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
}
Plain = bool | int | float | complex | str | bytes | None


def leaves(value: Any, name: str = "", nesting: int = 8) -> Iterator[tuple[str, Any]]:
    """The tensors and plain values in a nest, each with its path (`["logits"]`, `[0].hidden`).

    Looks into mappings, sequences, sets, dataclasses and the attributes of other objects `nesting`
    deep; modules, functions and classes are passed over."""
    if isinstance(value, Tensor | Plain):
        yield name, value
    elif not nesting or isinstance(value, nn.Module | type) or callable(value):
        return
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, f"{name}[{key!r}]", nesting - 1)
    elif isinstance(value, list | tuple):
        for position, item in enumerate(value):
            yield from leaves(item, f"{name}[{position}]", nesting - 1)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from leaves(getattr(value, field.name, None), f"{name}.{field.name}", nesting - 1)
    elif hasattr(value, "__dict__"):
        for key, item in vars(value).items():
            yield from leaves(item, f"{name}.{key}", nesting - 1)


def tolerance(dtype: torch.dtype) -> float:
    """The largest difference that is rounding, relative to the largest entry of the tensor."""
    return _TOLERANCE.get(dtype, 0.0)


def difference(theirs: Any, ours: Any, floor: float = 0.0) -> str | None:
    """How `ours` differs from `theirs` in words, None where it does not.

    Floating tensors may differ by rounding: `tolerance(dtype)` times the largest finite entry, or
    `floor`, whichever is more. NaN equals NaN; all else must be equal."""
    left, right = dict(leaves(theirs)), dict(leaves(ours))
    if left.keys() != right.keys():
        missing, extra = sorted(left.keys() - right.keys()), sorted(right.keys() - left.keys())
        return f"structure: without {missing[:3]}, with {extra[:3]} besides"
    for name, expected in left.items():
        found = difference_of_leaves(expected, right[name], floor)
        if found:
            return f"{name} {found}".strip()
    return None


def difference_of_leaves(expected: Any, actual: Any, floor: float = 0.0) -> str | None:
    """As `difference`, of two leaves."""
    if not isinstance(expected, Tensor) or not isinstance(actual, Tensor):
        same = type(expected) is type(actual) and (expected == actual or expected != expected)
        return None if same else f"is {_facts(actual)}, expected {_facts(expected)}"
    if expected.is_nested or actual.is_nested:
        if not (expected.is_nested and actual.is_nested):
            return f"is {_facts(actual)}, expected {_facts(expected)}"
        return difference(list(expected.unbind()), list(actual.unbind()), floor)
    if expected.shape != actual.shape or expected.dtype != actual.dtype:
        return f"is {_facts(actual)}, expected {_facts(expected)}"
    if expected.is_meta or actual.is_meta:
        return None
    if expected.layout != torch.strided:
        expected, actual = expected.to_dense(), actual.to_dense()
    if torch.equal(expected, actual):
        return None
    if not (expected.is_floating_point() or expected.is_complex()):
        return f"differs in {int((expected != actual).sum())} of {expected.numel()} entries"
    return _rounding(expected.detach(), actual.detach(), floor)


def _rounding(expected: Tensor, actual: Tensor, floor: float) -> str | None:
    finite = expected.isfinite()
    if not torch.equal(finite, actual.isfinite()):
        return "differs in which entries are finite"
    if not torch.equal(expected[~finite].nan_to_num(), actual[~finite].nan_to_num()):
        return "differs in which entries are infinite"
    if not finite.any():
        return None
    gap = (expected[finite] - actual[finite]).abs().max().item()
    size = expected[finite].abs().max().item()
    if gap <= max(tolerance(expected.dtype) * size, floor):
        return None
    return f"differs by {gap:.3g} where the largest entry is {size:.3g}"


def _facts(leaf: Any) -> str:
    if isinstance(leaf, Tensor):
        shape = f"nested {leaf.size(0)}" if leaf.is_nested else list(leaf.shape)
        return f"{str(leaf.dtype).removeprefix('torch.')} {shape}"
    return f"{leaf!r:.60}"
