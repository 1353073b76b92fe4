"""Other inputs of the same kind: another batch size, another length or image size."""

from __future__ import annotations

from collections import Counter
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


def other_size(inputs: Inputs) -> tuple[Inputs, str] | None:
    """The inputs at another length (ids, sequences) or image size, and its name; None where there is none."""
    given = list(tensors((inputs.args, dict(inputs.kwargs or {}))))
    images = [t for t in given if t.dim() >= 4 and t.is_floating_point()]
    if images:
        sides = tuple(images[0].shape[2:])
        new = {2 + axis: side + (1 + axis) * _stride(side) for axis, side in enumerate(sides)}
        what = "image size " + "×".join(map(str, sides))
        return _changed(
            inputs, lambda t: new if t.dim() == len(sides) + 2 and t.shape[2:] == sides else {}
        ), what
    lengths = [t.shape[1] for t in given if t.dim() in (2, 3) and (t.dim() == 3 or not t.is_floating_point())]
    if not lengths:
        return None
    length = Counter(lengths).most_common(1)[0][0]
    if length < 2:
        return None
    added = _stride(length)

    def grow(tensor: Tensor) -> dict[int, int]:
        return {axis: length + added for axis in range(1, tensor.dim()) if tensor.shape[axis] == length}

    return _changed(inputs, grow), f"sequence length {length}"


def _stride(side: int) -> int:
    """A step that keeps what the side is divisible by: networks halve it several times."""
    step = 1
    while side % (2 * step) == 0 and step < 64:
        step *= 2
    return step


def _changed(inputs: Inputs, sizes: Any) -> Inputs:
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
