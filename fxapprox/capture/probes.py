"""Other inputs of the same kind: another batch size, another length or image size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ._types import Inputs
from .copies import resized
from .nests import rebuilt, tensors


def batch_of(inputs: Inputs) -> int | None:
    """The batch size: what most tensor inputs have as dimension 0, the first one's where they disagree."""
    sizes = [t.shape[0] for t in tensors((inputs.args, dict(inputs.kwargs or {}))) if t.dim()]
    if not sizes:
        return None
    counted = Counter(sizes)
    return max(sizes, key=lambda size: (counted[size], size == sizes[0]))


def other_batch(inputs: Inputs) -> Inputs | None:
    """The inputs with one example more; None where no dimension looks like a batch."""
    batch = batch_of(inputs)
    if not batch:
        return None
    return _changed(inputs, lambda t: {0: batch + 1} if t.dim() and t.shape[0] == batch else {})


def other_sizes(inputs: Inputs) -> list[tuple[Inputs, str]]:
    """The inputs at another length (ids, sequences) or image size, and what that is called: the likeliest
    first, because which dimension of a tensor may grow only the model knows."""
    given = list(tensors((inputs.args, dict(inputs.kwargs or {}))))
    images = [t for t in given if t.dim() >= 4 and t.is_floating_point()]
    if images:
        sides = tuple(images[0].shape[2:])
        new = {2 + axis: side + (1 + axis) * _stride(side) for axis, side in enumerate(sides)}
        what = "image size " + "×".join(map(str, sides))
        return [(_changed(inputs, lambda t: new if tuple(t.shape[2:]) == sides else {}), what)]
    lengths = Counter(
        t.shape[axis]
        for t in given
        for axis in range(1, t.dim())
        if t.dim() == 3 or not t.is_floating_point()
    )
    candidates = [length for length, _ in lengths.most_common(3) if length > 1]
    return [(_changed(inputs, _growing(length)), f"sequence length {length}") for length in candidates]


def _growing(length: int) -> Callable[[Tensor], dict[int, int]]:
    """Every dimension of this length but the batch a little longer."""
    longer = length + _stride(length)
    return lambda t: {axis: longer for axis in range(1, t.dim()) if t.shape[axis] == length}


def _stride(side: int) -> int:
    """A step that keeps what the side is divisible by: networks halve it several times."""
    step = 1
    while side % (2 * step) == 0 and step < 64:
        step *= 2
    return step


def _changed(inputs: Inputs, sizes: Callable[[Tensor], dict[int, int]]) -> Inputs:
    made: dict[int, Tensor] = {}  # a tensor that is passed twice stays one

    def leaf(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) not in made:
            changed = resized(value.detach(), sizes(value))
            made[id(value)] = changed.requires_grad_(value.requires_grad)
        return made[id(value)]

    args, kwargs = rebuilt((inputs.args, dict(inputs.kwargs or {})), leaf)
    return Inputs(args, kwargs)
