"""Ways in which a number can follow another: equal, a multiple, a quotient … each as text over `{d}`.

A fit looks at one number that varies over the samples and at the values wanted of it, and says the text, or
None where it does not give them all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

# Windows and strides that are tried.
MOST_WINDOW = 129


@dataclass(frozen=True)
class Dimension:
    """A number that varies over the samples: a dimension of a tensor, or an integer argument.

    `text` is what gives it at run time, over the node at `position`: `{0}.size(1)`."""

    position: int
    text: str
    sizes: tuple[int, ...]


Fit = Callable[[Dimension, Sequence[int]], "str | None"]


def equal(dimension: Dimension, values: Sequence[int]) -> str | None:
    return "{d}" if dimension.sizes == tuple(values) else None


def multiple(dimension: Dimension, values: Sequence[int]) -> str | None:
    sizes = dimension.sizes
    if not sizes[0] or values[0] % sizes[0] or values[0] == 0:
        return None
    factor = values[0] // sizes[0]
    fits = all(value == factor * size for value, size in zip(values, sizes, strict=True))
    return f"{factor} * {{d}}" if fits else None


def shifted(dimension: Dimension, values: Sequence[int]) -> str | None:
    shifts = {value - size for value, size in zip(values, dimension.sizes, strict=True)}
    if len(shifts) != 1:
        return None
    shift = shifts.pop()
    return f"{{d}} {'+' if shift > 0 else '-'} {abs(shift)}"


def quotient(dimension: Dimension, values: Sequence[int]) -> str | None:
    if not values[0] or dimension.sizes[0] % values[0]:
        return None
    divisor = dimension.sizes[0] // values[0]
    fits = divisor > 1 and all(
        s % divisor == 0 and s // divisor == v for s, v in zip(dimension.sizes, values, strict=True)
    )
    return f"{{d}} // {divisor}" if fits else None


def rounded(dimension: Dimension, values: Sequence[int]) -> str | None:
    """A quotient rounded down, or up."""
    pairs = list(zip(dimension.sizes, values, strict=True))
    for divisor in range(2, MOST_WINDOW):
        if all(size // divisor == value for size, value in pairs):
            return f"{{d}} // {divisor}"
        if all(-(-size // divisor) == value for size, value in pairs):
            return f"({{d}} + {divisor - 1}) // {divisor}"
    return None


def padding(dimension: Dimension, values: Sequence[int]) -> str | None:
    """What is missing to the next multiple of a window: `-size % window`."""
    if len(set(dimension.sizes)) < 2 or max(values) == 0:
        return None
    for window in range(max(values) + 1, MOST_WINDOW):
        if all(-size % window == value for size, value in zip(dimension.sizes, values, strict=True)):
            return f"-{{d}} % {window}"
    return None


def affine(dimension: Dimension, values: Sequence[int]) -> str | None:
    pairs = sorted(set(zip(dimension.sizes, values, strict=True)))
    (size, value), (other_size, other_value) = pairs[0], pairs[-1]
    if other_size == size or (other_value - value) % (other_size - size):
        return None
    slope = (other_value - value) // (other_size - size)
    shift = value - slope * size
    if slope == 0 or any(v != slope * s + shift for s, v in pairs):
        return None
    return f"{slope} * {{d}} {'+' if shift > 0 else '-'} {abs(shift)}"
