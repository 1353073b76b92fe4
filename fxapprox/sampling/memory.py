"""Rows that a sampled weight gradient leaves out wait in a memory, and take part in later steps.

Mem-AOP-GD: Hernandez, Rini, Duman, "Speeding-up Back-propagation in DNN: Approximate Outer Product with
Memory", 2021. Its listing keeps rows times √η and takes the step η·gradient at once; here rows are kept
as they are, so that any optimizer can use the gradient, and are multiplied by √(η before / η now) where
the rate changes: the step of plain SGD is then the listing's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ..kinds import Bilinear, Operand
from ..kinds._strides import WIDE

Rows = tuple[Tensor, Tensor]
"""The two operands of a weight gradient: of the output's gradient, and of the input."""
Chosen = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Rows]]
"""From all rows to the gradient, the index of the rows that were chosen `[groups, k]`, and these rows."""

_PRODUCT: Literal["grad_weight"] = "grad_weight"
_OPERANDS: tuple[Operand, Operand] = (0, 1)


@dataclass(frozen=True)
class Pace:
    """How a weight learns at a step: its learning rate, and what its gradient is multiplied with (the scale
    that a gradient scaler gives the loss)."""

    rate: float
    scale: float = 1.0


@dataclass
class RowMemory:
    """What one site keeps from backward pass to backward pass. A plain attribute: copied and pickled with
    its module, never in a state_dict.

    One slot a row of the batch. The first M' slots take part in a batch of M' rows and the others wait
    untouched; a larger batch adds slots. Rows of another size (a convolution's images of another height)
    have slots of their own. A slot that is empty holds zeros. Kept in float32 where the operands are
    half types, for it sums over many steps. Costs as much as the layer's input and its gradient."""

    slots: list[Rows] = field(default_factory=list)  # one entry for each size of a row
    pace: Pace | None = None  # the rows are worth what they are at this one

    def apply(
        self,
        bilinear: Bilinear,
        operands: Rows,
        right_shape: tuple[int, ...],
        chosen: Chosen,
        *,
        pace: Pace | None,
        decay: float,
    ) -> Tensor:
        """One step: the gradient that `chosen` makes of the operands and what waited for them.

        The slots of the rows it chose become empty, the others hold their sums, times √decay. Operands
        with a row that is not finite leave the memory as it was, and the gradient is NaN, as an exact one
        would be in part: a gradient scaler skips the step. The rate is not 0: such a step applies nothing."""
        self._rescale(pace)
        groups, now, _ = bilinear.sizes(_PRODUCT, tuple(operands[1].shape), right_shape)
        at = self._find(bilinear, operands, groups)
        had = bilinear.sizes(_PRODUCT, tuple(self.slots[at][1].shape), right_shape)[1]
        waiting = [_aligned(bilinear, o, self.slots[at][o], operands[o], groups, had, now) for o in _OPERANDS]
        totals = [waiting[o] + operands[o] for o in _OPERANDS]
        gradient, index, kept = chosen(totals[0], totals[1])
        sound = _finite(operands[0]) & _finite(operands[1])
        if sound.device.type == "cpu" and not sound.item():
            return torch.full_like(gradient, torch.nan)
        if index.shape[1] == now >= had and sound.item():  # nothing waits: later exact steps cost nothing
            del self.slots[at]
            return gradient
        for o in _OPERANDS:
            if decay < 1:
                totals[o].mul_(math.sqrt(decay))
            bilinear.put(_PRODUCT, o, totals[o], torch.zeros_like(kept[o]), index, True)
        if sound.device.type != "cpu":  # no look at `sound`: it would wait for the device
            totals = [torch.where(sound, totals[o], waiting[o]) for o in _OPERANDS]
            gradient = torch.where(sound, gradient, torch.nan)
        if now < had:
            for o in _OPERANDS:
                index = _first(groups, now, totals[o].device)
                bilinear.put(_PRODUCT, o, self.slots[at][o], totals[o], index, True)
        else:
            self.slots[at] = totals[0], totals[1]
        return gradient

    def state(self) -> dict[str, Any]:
        """Copies of the rows, and the pace they belong to."""
        slots = [{"grad": grad.clone(), "left": left.clone()} for grad, left in self.slots]
        return {"slots": slots, "pace": asdict(self.pace) if self.pace else None}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.pace = Pace(**state["pace"]) if state["pace"] else None
        self.slots = [(one["grad"].clone(), one["left"].clone()) for one in state["slots"]]

    def _rescale(self, pace: Pace | None) -> None:
        """Bring all that waits to the present pace; None is that of the last step."""
        if pace is not None and self.pace is not None and pace != self.pace:
            left_factor = math.sqrt(self.pace.rate / pace.rate)
            grad_factor = left_factor * pace.scale / self.pace.scale
            for grad, left in self.slots:
                grad.mul_(grad_factor)
                left.mul_(left_factor)
        self.pace = pace or self.pace

    def _find(self, bilinear: Bilinear, operands: Rows, groups: int) -> int:
        """Where the slots for rows of this size are, brought to the operands' device and precision: the
        model may have been moved since. New ones are empty."""
        size = _size(bilinear, operands, groups)
        like = [torch.empty((), dtype=_wide(one.dtype), device=one.device) for one in operands]
        for at, slots in enumerate(self.slots):
            if _size(bilinear, slots, groups) == size:
                self.slots[at] = slots[0].to(like[0]), slots[1].to(like[1])
                return at
        self.slots.append((_zeros_like(operands[0]), _zeros_like(operands[1])))
        return len(self.slots) - 1


def _aligned(
    bilinear: Bilinear, operand: Operand, rows: Tensor, like: Tensor, groups: int, had: int, now: int
) -> Tensor:
    """What waits for a batch of `now` rows: the first slots, or all of them and new, empty ones."""
    if had == now:
        return rows
    if had > now:
        return bilinear.take(_PRODUCT, operand, rows, _first(groups, now, rows.device))
    longer = _zeros_like(like)
    bilinear.put(_PRODUCT, operand, longer, rows, _first(groups, had, rows.device), True)
    return longer


def _first(groups: int, rows: int, device: torch.device) -> Tensor:
    """The index of the first rows of every group."""
    return torch.arange(rows, device=device).expand(groups, rows)


def _size(bilinear: Bilinear, rows: Rows, groups: int) -> tuple[torch.Size, ...]:
    """What tells rows of one size from those of another: the shapes of both operands cut to no rows."""
    return tuple(
        bilinear.take(_PRODUCT, o, rows[o], _first(groups, 0, rows[o].device)).shape for o in _OPERANDS
    )


def _zeros_like(rows: Tensor) -> Tensor:
    return torch.zeros_like(rows, dtype=_wide(rows.dtype))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype in WIDE or dtype.is_complex else torch.float32


def _finite(rows: Tensor) -> Tensor:
    """Whether all entries are, as a 0-d tensor: their sum shows one that is not, in one pass."""
    return rows.sum(dtype=_wide(rows.dtype)).isfinite()
