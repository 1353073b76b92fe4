"""Timing several ways to do one thing, in turn in one process."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from ..errors import RequestError

K = TypeVar("K", bound=Hashable)
Arm = Callable[[], object]
"""One way to do the work; called once a repetition."""
LEAST = 5
"""Repetitions that are made whatever the time they take: quartiles of fewer say nothing."""
MOST = 1000
"""Repetitions after which more would tell nothing new."""
WARM_UP = 2
"""Rounds that are not counted: kernels are chosen and memory is first touched in them."""


@dataclass(frozen=True)
class Budget:
    """How long to measure: `repeat` repetitions exactly, or `least` to `MOST` as `seconds` allow; after
    `warm_up` rounds that are not counted."""

    seconds: float = 1.0
    repeat: int | None = None
    least: int = LEAST
    warm_up: int = WARM_UP

    def check(self) -> None:
        """Raise RequestError for a budget that is none."""
        if self.repeat is not None and self.repeat < 1:
            raise RequestError(f"repeat {self.repeat} is not 1 or more")
        if not 0 < self.seconds < math.inf:
            raise RequestError(f"seconds {self.seconds:g} is not a positive number")

    def share(self, part: float) -> Budget:
        """That part of the seconds; the same repetitions."""
        return replace(self, seconds=self.seconds * part)

    def spent(self, rounds: int, seconds: float) -> float:
        """The share of the budget that these rounds in these seconds have used up; 1 where it is spent."""
        if self.repeat is not None:
            return min(rounds / self.repeat, 1.0)
        return min(max(min(seconds / self.seconds, rounds / self.least), rounds / MOST), 1.0)


@dataclass(frozen=True)
class Timing:
    """Seconds of one arm, a sample a repetition, in their order."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def quartiles(self) -> tuple[float, float]:
        return quartiles(self.samples)


@dataclass(frozen=True)
class Ratio:
    """How many times longer one arm takes than another: the median over the rounds of the quotient
    within a round, so that a machine whose speed drifts does not decide it; and its quartiles."""

    median: float
    quartiles: tuple[float, float]

    @classmethod
    def of(cls, above: Timing, below: Timing) -> Ratio:
        quotients = [a / b for a, b in zip(above.samples, below.samples, strict=True)]
        return cls(statistics.median(quotients), quartiles(quotients))


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) == 1:
        return values[0], values[0]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third


def in_turn(
    arms: Mapping[K, Arm],
    budget: Budget,
    *,
    wait: Callable[[], object] | None = None,
    tick: Callable[[float], object] | None = None,
) -> dict[K, Timing]:
    """The timings of the arms by name, all with the same number of repetitions.

    Each round runs every arm once, forwards and backwards by turns, so that none profits from its place.
    `wait` is called before a clock is read (for devices that run behind), `tick` between rounds (and arms
    that warm up) with the share of the budget that is spent. Python's garbage collector rests while an
    arm runs."""
    samples: dict[K, list[float]] = {name: [] for name in arms}
    order = list(arms)
    for _ in range(budget.warm_up):
        for arm in arms.values():
            arm()
            if tick is not None:
                tick(0.0)
    started = time.perf_counter()
    rounds = 0
    spent = 0.0
    while spent < 1:
        for name in order if rounds % 2 == 0 else reversed(order):
            with _no_garbage_collection():
                samples[name].append(_seconds(arms[name], wait))
        rounds += 1
        spent = budget.spent(rounds, time.perf_counter() - started)
        if tick is not None:
            tick(spent)
    return {name: Timing(tuple(values)) for name, values in samples.items()}


def _seconds(arm: Arm, wait: Callable[[], object] | None) -> float:
    if wait is not None:
        wait()
    started = time.perf_counter()
    arm()
    if wait is not None:
        wait()
    return time.perf_counter() - started


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@contextmanager
def torch_threads(number: int | None) -> Iterator[int]:
    """torch's threads within an operation set to `number` for the block (None: as they are)."""
    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield torch.get_num_threads()
    finally:
        if number is not None:
            torch.set_num_threads(before)


def waiting(device: torch.device) -> Callable[[], object] | None:
    """What waits for the work queued on a device; None where there is no queue."""
    return None if device.type == "cpu" else lambda: torch.accelerator.synchronize(device)
