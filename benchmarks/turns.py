"""Contenders timed in turn in one process, and what is claimed of them.

Contenders whose names agree up to the first blank are forms of one ("exact nchw", "exact nhwc"): a
claim compares the best form of each, the one with the smallest median.
"""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxapprox.measure.timing import quartiles

WARM_UP, LEAST = 2, 5
"""Rounds that are not counted, and rounds that are, however long they take."""
Step = Callable[[], object]
Round = Mapping[str, float]


@dataclass(frozen=True)
class Rival:
    """One contender: a step, the tensors whose gradients are dropped before it, and what is around it, out of
    what is timed. `lead`: steps before the one that is timed, which leave the caches as they do in training,
    where no other contender was there in between."""

    step: Step
    tensors: tuple[Tensor, ...] = ()
    around: Callable[[], AbstractContextManager[object]] = nullcontext
    lead: int = 0


@dataclass(frozen=True)
class Claim:
    """`above` takes at least `target` times as long as `below`; without a target it is only reported."""

    above: str
    below: str
    target: float | None = None


def keep_memory() -> None:
    """Have glibc keep what is freed, as it does in a process that is warm: contenders of other sizes between
    the steps make it give memory back, and the next step then pays for a thousand page faults."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        trim, mmap = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
        for option in (trim, mmap):
            library.mallopt(option, 1 << 30)


def rounds(contenders: Mapping[str, Rival], seconds: float) -> list[Round]:
    """Seconds of one step of each, a round after the other, forwards and backwards by turns.

    Of the wall; with one thread the thread's own, in which other processes do not count."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    order = list(contenders.items())
    found: list[Round] = []
    gc.collect()
    gc.disable()
    try:
        for _ in range(WARM_UP):
            for _, rival in order:
                _timed(rival, clock)
        ends = time.perf_counter() + seconds
        while len(found) < LEAST or time.perf_counter() < ends:
            found.append({name: _timed(rival, clock) for name, rival in order})
            order.reverse()
    finally:
        gc.enable()
    return found


def _timed(rival: Rival, clock: Callable[[], float]) -> float:
    for tensor in rival.tensors:
        tensor.grad = None
    with rival.around():
        for _ in range(rival.lead):
            rival.step()
        started = clock()
        rival.step()
        return clock() - started


def told(found: Sequence[Round], claims: Sequence[Claim]) -> dict[str, Any]:
    """What the rounds say: milliseconds of each contender, as lower quartile, median and upper quartile,
    and each claim with the median and the quartiles of its ratio over the rounds."""
    times = {name: spread([1e3 * one[name] for one in found], 4) for name in sorted(found[0])}
    return {
        "rounds": len(found),
        "milliseconds": times,
        "claims": [_judged(claim, found, times) for claim in claims],
    }


def spread(values: Sequence[float], digits: int) -> list[float]:
    """Lower quartile, median, upper quartile."""
    lower, upper = quartiles(values)
    return [round(lower, digits), round(statistics.median(values), digits), round(upper, digits)]


def best(times: Mapping[str, Sequence[float]], name: str) -> str:
    """The form of a contender that has the smallest median. Raises KeyError where there is none."""
    forms = [one for one in times if one == name or one.partition(" ")[0] == name]
    if not forms:
        raise KeyError(name)
    return min(forms, key=lambda one: times[one][1])


def _judged(claim: Claim, found: Sequence[Round], times: Mapping[str, list[float]]) -> dict[str, Any]:
    above, below = best(times, claim.above), best(times, claim.below)
    ratio = spread([one[above] / one[below] for one in found], 3)
    return judged(claim, ratio) | {"forms": [above, below]}


def judged(claim: Claim, ratio: Sequence[float]) -> dict[str, Any]:
    """The claim with its ratio (lower quartile, median, upper quartile), and whether the median reaches the
    target; None where there is none."""
    reached = None if claim.target is None else ratio[1] >= claim.target
    what = f"{claim.above}/{claim.below}"
    return {"what": what, "unit": "×", "value": list(ratio), "target": claim.target, "reached": reached}


def line(row: Mapping[str, Any]) -> str:
    """What is printed of a row as it ends."""
    lines = [row["name"]]
    for claim in row["claims"]:
        mark = {True: "reached", False: "NOT reached", None: ""}[claim["reached"]]
        target = f"  target {claim['target']:g}: {mark}" if claim["target"] else ""
        lines.append(f"  {claim['what']}: {claim['value'][1]:.2f}{claim['unit']}{target}")
    return "\n".join([*lines, *(f"  {name}: {why}" for name, why in row.get("failed", {}).items())])
