"""Other inputs of the same kind: another batch size, another length or image size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ._types import Inputs
from .copies import resized
from .nests import rebuilt, tensors

# Lengths that are tried, of ids and of sequences each.
MOST_LENGTHS = 4


def batch_of(inputs: Inputs) -> int | None:
    """The batch size: what most tensor inputs have as dimension 0, the first one's where they disagree."""
    sizes = [t.shape[0] for t in tensors((inputs.args, dict(inputs.kwargs or {}))) if t.dim()]
    if not sizes:
        return None
    counted = Counter(sizes)
    return max(sizes, key=lambda size: (counted[size], size == sizes[0]))


def other_batches(inputs: Inputs) -> list[Inputs]:
    """The inputs at other batch sizes, to be tried in turn; none where no dimension looks like a batch.

    One more than twice the batch tells whole multiples, halves and sums apart; models that fold another
    dimension into the batch take twice of it."""
    batch = batch_of(inputs)
    if not batch:
        return []
    sizes = (2 * batch + 1, 2 * batch)
    return [_changed(inputs, _wider(batch, size)) for size in sizes]


def _wider(batch: int, size: int) -> Callable[[Tensor], dict[int, int]]:
    return lambda t: {0: size} if t.dim() and t.shape[0] == batch else {}


@dataclass(frozen=True)
class OtherSize:
    """The inputs at another size, to be tried in turn until the model takes one. `what` names it: "image
    size 32×32". A `guess` that the model does not take says nothing."""

    inputs: list[Inputs]
    what: str
    guess: bool


def other_sizes(inputs: Inputs) -> list[OtherSize]:
    """The inputs at another image size, and at other lengths of ids and sequences: which dimensions of a
    tensor may grow only the model knows, so several are tried."""
    given = list(tensors((inputs.args, dict(inputs.kwargs or {}))))
    found = []
    images = [t for t in given if t.dim() >= 4 and t.is_floating_point()]
    if images:
        sides = tuple(images[0].shape[2:])
        what = "image size " + "×".join(map(str, sides))
        found.append(OtherSize([_changed(inputs, grown) for grown in _larger(sides)], what, guess=False))
    ids = [t for t in given if t.dim() > 1 and not t.is_floating_point()]
    sequences = [t for t in given if t.dim() in (2, 3) and t.is_floating_point()]
    for group in (ids, sequences):
        lengths = _lengths(group)
        for length in lengths[:MOST_LENGTHS]:
            changed = [_changed(inputs, grown) for grown in _longer(length)]
            found.append(
                OtherSize(changed, f"sequence length {length}", group is sequences or len(lengths) > 1)
            )
    for length in _first_lengths([*ids, *sequences], batch_of(inputs))[:MOST_LENGTHS]:
        changed = [_changed(inputs, _wider(length, 2 * length + 1))]
        found.append(OtherSize(changed, f"first dimension {length}", guess=True))
    return list({one.what: one for one in reversed(found)}.values())[::-1]


def _lengths(group: list[Tensor]) -> list[int]:
    """Sizes of dimensions behind the first, those of second dimensions first: last ones are mostly features,
    and a query may be as long as nothing else is."""
    ranked: dict[int, tuple[int, int]] = {}
    for axis in (1, 2):
        sizes = Counter(t.shape[axis] for t in group if t.dim() > axis)
        for size, count in sizes.items():
            ranked.setdefault(size, (axis, -count))
    return sorted((size for size in ranked if size > 1), key=ranked.__getitem__)


def _first_lengths(group: list[Tensor], batch: int | None) -> list[int]:
    """Sizes of first dimensions that are not the batch's: lengths where those come first, as attention has
    them unless told otherwise."""
    return list(dict.fromkeys(t.shape[0] for t in group if t.shape[0] not in (0, 1, batch)))


Grown = Callable[[Tensor], dict[int, int]]


def _larger(sides: tuple[int, ...]) -> list[Grown]:
    """The sides of images twice, three times … as long, each by another factor; else a step longer."""
    times = {2 + axis: (2 + axis) * side for axis, side in enumerate(sides)}
    steps = {2 + axis: side + (1 + axis) * _stride(side) for axis, side in enumerate(sides)}

    def grown(new: dict[int, int]) -> Grown:
        return lambda t: new if tuple(t.shape[2:]) == sides else {}

    return [grown(times), grown(steps)]


def _longer(length: int) -> list[Grown]:
    """Every dimension of this length but the batch twice as long; else a step longer."""

    def grown(new: int) -> Grown:
        return lambda t: {axis: new for axis in range(1, t.dim()) if t.shape[axis] == length}

    return [grown(2 * length), grown(length + _stride(length))]


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
