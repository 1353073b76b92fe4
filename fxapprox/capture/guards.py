"""For which arguments a captured forward holds: those like the ones it was recorded with.

A forward may branch on everything but the values of tensors: whether a mask was given, flags,
numbers, shapes, bool or float masks. The trace followed one way; a call that could go another is for
the user's own forward. Sizes that were varied while tracing (the batch, the length, the sides of an image)
are free where the forward did the same thing at both.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .nests import Path, all_tensors, at, children

Pattern = tuple[Any, ...]
"""("any",), ("tensor", dimensions, sort, nested), ("plain", type, value), ("holds", ((step, pattern), …)),
("signed", positive)"""

ANY: Pattern = ("any",)
Read = tuple[Path, Pattern]
"""The steps from a module to an attribute, and the pattern of its value."""
_COMPARED = (type(None), bool, int, float, str)


Alias = tuple[tuple[str, Path], tuple[str, Path]]
"""Two places among the arguments, (parameter, way into it) each, where one tensor stands."""


@dataclass(frozen=True)
class Guard:
    """The parameters of a forward, each with the pattern that its argument must have; `passed` is the
    text of a call that hands them all on. `aliases`: what must be one tensor, as in `attention(x, x, x)`."""

    names: tuple[str, ...]
    patterns: tuple[Pattern, ...]
    passed: str
    aliases: tuple[Alias, ...] = ()


def aliases(arguments: Mapping[str, Any]) -> tuple[Alias, ...]:
    """The places where a tensor stands that an earlier place holds, too."""
    first: dict[int, tuple[str, Path]] = {}
    found = []
    for name, value in arguments.items():
        for path, tensor in all_tensors(value):
            if id(tensor) in first:
                found.append((first[id(tensor)], (name, path)))
            else:
                first[id(tensor)] = (name, path)
    return tuple(found)


def pattern_of(value: Any, depth: int = 8) -> Pattern:
    """What is like `value`: equal plain values, any tensor of the same shape and sort."""
    if isinstance(value, Tensor):
        return ("tensor", value.dim(), _sort(value), value.is_nested, _sizes(value))
    if type(value) in _COMPARED:
        return ("plain", type(value), value) if value == value else ANY
    inner = children(value) if depth else None
    if inner is None:
        return ANY
    return ("holds", tuple((step, pattern_of(item, depth - 1)) for step, item in inner))


def _sizes(tensor: Tensor) -> tuple[int | None, ...]:
    return () if tensor.is_nested else tuple(tensor.shape)


def _sort(tensor: Tensor) -> str:
    # not the dtype: a model may be moved to another precision
    if tensor.is_floating_point() or tensor.is_complex():
        return "complex" if tensor.is_complex() else "floating"
    return "bool" if str(tensor.dtype) == "torch.bool" else "integer"


def common(patterns: Sequence[Pattern]) -> Pattern:
    """What is like all of them; where they differ, anything: what explains the difference is followed."""
    return functools.reduce(_common, patterns)


def _common(one: Pattern, other: Pattern) -> Pattern:
    if one == other:
        return one
    if one[0] == other[0] == "holds" and [s for s, _ in one[1]] == [s for s, _ in other[1]]:
        return (
            "holds",
            tuple((step, _common(a, b)) for (step, a), (_, b) in zip(one[1], other[1], strict=True)),
        )
    if one[:4] == other[:4] and one[0] == "tensor":
        sizes = tuple(a if a == b else None for a, b in zip(one[4], other[4], strict=True))
        return (*one[:4], sizes)
    return ANY


def odd_call(guard: Guard, values: tuple[Any, ...], module: Any, reads: tuple[Read, ...]) -> str | None:
    """How a call differs from those that a forward was recorded with, in words; None where it does not."""
    if (odd := odd_argument(guard, values)) is not None:
        return f"other arguments than {odd}"
    changed = changed_attribute(module, reads)
    return None if changed is None else f"another {changed} than it has now"


def changed_attribute(module: Any, reads: tuple[Read, ...]) -> str | None:
    """The first attribute that is not what it was when a forward read it: "self.config.mode"."""
    for path, pattern in reads:
        value = module
        try:
            for kind, key in path:
                value = getattr(value, key) if kind == "attr" else value[key]
        except (AttributeError, LookupError, TypeError):
            return _named(path)
        if not _like(pattern, value):
            return _named(path)
    return None


def _named(path: Path) -> str:
    steps = (f"[{key}]" if kind == "item" or key.isdigit() else f".{key}" for kind, key in path)
    return "self" + "".join(steps)


def odd_argument(guard: Guard, values: tuple[Any, ...]) -> str | None:
    """The first parameter whose argument is unlike its pattern, in words; None where all are as they were."""
    for name, pattern, value in zip(guard.names, guard.patterns, values, strict=True):
        if not _like(pattern, value):
            return f"{name} is {_said(value)}"
    given = dict(zip(guard.names, values, strict=True))
    for (first, way), (name, path) in guard.aliases:
        if at(given[first], way) is not at(given[name], path):
            return f"{name} is another tensor than {first}"
    return None


def _like(pattern: Pattern, value: Any) -> bool:
    sort = pattern[0]
    if sort == "any":
        return True
    if sort == "tensor":
        return isinstance(value, Tensor) and _common(pattern, pattern_of(value)) == pattern
    if sort == "plain":
        return type(value) is pattern[1] and bool(value == pattern[2])
    if sort == "signed":
        return type(value) is float and (value > 0) is pattern[1]
    inner = children(value)
    if inner is None or len(inner) != len(pattern[1]):
        return False
    pairs = zip(pattern[1], inner, strict=True)
    return all(step == own and _like(expected, item) for (step, expected), (own, item) in pairs)


def _said(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {_sizes(value)}"
    return f"{value!r:.40}" if type(value) in _COMPARED else f"another {type(value).__name__}"
