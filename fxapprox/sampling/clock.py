"""The step of training that a site is at, for schedules of `keep`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..schedules import Schedule


class Clock:
    """Counts the steps of one site that has schedules. A plain attribute: copied and pickled with it.

    `driven` by an optimizer it goes on with each of its steps; by itself it counts the forward passes that
    will be trained on, those of a recomputation (gradient checkpointing) not among them.

    `now` is what a forward pass reads: the first step at which every keep was what it is at `steps`. It
    changes only when a keep does, so that torch.compile, which starts over when a number changes that
    it has seen, does so as seldom."""

    def __init__(self, schedules: Sequence[Schedule], steps: int = 0) -> None:
        self.schedules = tuple(schedules)
        self.driven = False
        self.set(steps)

    def set(self, steps: int) -> None:
        self.steps = steps
        self.now = max(schedule.since(steps) for schedule in self.schedules)

    def advance(self) -> None:
        self.set(self.steps + 1)

    @property
    def slopes(self) -> bool:
        """Whether `now` changes at every step for a while."""
        return any(schedule.slopes for schedule in self.schedules)

    def __getstate__(self) -> dict[str, Any]:
        return {"schedules": self.schedules, "steps": self.steps}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # a copy has parameters of its own, which no optimizer has yet
        self.__init__(state["schedules"], state["steps"])  # type: ignore[misc]
