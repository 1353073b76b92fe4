"""Example inputs from text: `32x3x32x32`, `2x16:int64:0..999`, `mask=2x16:bool`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..errors import RequestError, one_of
from ._types import Inputs

GRAMMAR = "[NAME=]SHAPE[:DTYPE[:LOW..HIGH]], for example 32x3x32x32 or labels=2x16:int64:0..999"
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128,
        torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
    )
}  # fmt: skip


def parse_input(text: str, generator: torch.Generator | None = None) -> Tensor:
    """One tensor from `SHAPE[:DTYPE[:LOW..HIGH]]`.

    SHAPE is sizes joined by x (`scalar` for none); DTYPE as torch names it, float32 where it is left
    out. Floating values are normally distributed; integers lie in LOW..HIGH, both included, 0..1 where
    that is left out; floats with a range are uniform in it. Raises RequestError with the grammar."""
    shape_text, colon, rest = text.partition(":")
    dtype_text, _, range_text = rest.partition(":")
    shape = _shape(shape_text, text)
    dtype = _dtype(dtype_text, text) if colon else torch.float32
    bounds = _range(range_text, dtype, text) if range_text else None
    try:
        return _values(shape, dtype, bounds, generator)
    except (RuntimeError, MemoryError) as error:
        raise RequestError(f"--input {text!r} cannot be made: {str(error).splitlines()[0]}") from error


def parse_inputs(texts: Iterable[str], seed: int = 0) -> Inputs:
    """All of the inputs of a command line: positional in their order, `NAME=` for keyword inputs, and
    `NAME.KEY=` for a keyword input that is a dict. The values depend on `seed` alone."""
    generator = torch.Generator().manual_seed(seed)
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        tensor = parse_input(value if equals else text, generator)
        if not equals:
            args.append(tensor)
            continue
        *outer, key = name.split(".")
        if not all(part.isidentifier() for part in (*outer, key)):
            raise RequestError(f"--input {text!r}: {name!r} is not a name", remedy=f"write {GRAMMAR}")
        inner = kwargs
        for part in outer:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise RequestError(f"--input {text!r}: {part!r} is already a tensor")
        if key in inner:
            raise RequestError(f"--input names {name!r} twice", remedy="give each keyword input once")
        inner[key] = tensor
    return Inputs(tuple(args), kwargs or None, drawn=True)


def _shape(shape: str, text: str) -> tuple[int, ...]:
    if shape == "scalar":
        return ()
    if not re.fullmatch(r"\d+(x\d+)*", shape):
        raise RequestError(f"--input {text!r} is no shape", remedy=f"write {GRAMMAR}")
    sizes = tuple(int(size) for size in shape.split("x"))
    if 0 in sizes:
        raise RequestError(
            f"--input {text!r} has a size of 0", remedy="an example input needs sizes of 1 or more"
        )
    return sizes


def _dtype(name: str, text: str) -> torch.dtype:
    if name not in DTYPES:
        raise RequestError(f"--input {text!r}: unknown dtype {name!r}", remedy=one_of(name, DTYPES))
    return DTYPES[name]


def _range(bounds: str, dtype: torch.dtype, text: str) -> tuple[float, float]:
    low, dots, high = bounds.partition("..")
    try:
        first, last = float(low), float(high)
    except ValueError:
        first, last = 1.0, 0.0
    if not dots or first > last:
        raise RequestError(
            f"--input {text!r}: {bounds!r} is no range", remedy="write LOW..HIGH, as in int64:0..999"
        )
    if not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool):
        limits = torch.iinfo(dtype)
        if first != int(first) or last != int(last) or first < limits.min or last > limits.max:
            raise RequestError(
                f"--input {text!r}: {bounds} does not fit {str(dtype).removeprefix('torch.')}",
                remedy=f"whole numbers from {limits.min} to {limits.max}",
            )
    return first, last


def _values(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    bounds: tuple[float, float] | None,
    generator: torch.Generator | None,
) -> Tensor:
    if dtype.is_complex:
        return torch.randn(shape, dtype=dtype, generator=generator)
    if dtype.is_floating_point:
        if bounds is None:
            return torch.randn(shape, generator=generator).to(dtype)
        low, high = bounds
        return (torch.rand(shape, generator=generator) * (high - low) + low).to(dtype)
    low, high = bounds or (0, 1)
    return torch.randint(int(low), int(high) + 1, shape, generator=generator).to(dtype)
