"""A rewritten model measured against the exact one: the whole training step, and each distinct call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..capture._types import Inputs
from ..capture.outside import forward_flops
from ..capture.rng import kept_random_state
from ..errors import RequestError, one_of
from ..passes.copying import deep_copy
from ..passes.layers import sampling_modules, unsample
from ..record import ATTRIBUTE, Record
from .calls import SampledCall, sampled_calls
from .machine import machine
from .peak import Peak, peak_memory
from .sites import CallTimes, Side, time_call
from .step import OPTIMIZERS, sides, time_steps
from .timing import Budget, Ratio, torch_threads

SECONDS = 30.0
"""Time for measuring, all in all, unless the caller says otherwise."""
OF_STEP = 0.4
"""Share of it that goes to the whole step; the distinct calls share the rest."""
Tick = Callable[[str, float], object]


@dataclass(frozen=True)
class StepRow:
    """The whole training step, both sides in turn. FLOPs as predicted, of a step, 2 per multiply-add."""

    exact: Side
    ours: Side
    flops: int
    flops_after: int
    memory: Mapping[str, Peak] | str  # by side; or why it was not measured

    @property
    def ratio(self) -> Ratio:
        """Exact over ours, each in its best form: above 1 the rewritten model is faster."""
        return Ratio.of(self.exact.best, self.ours.best)


@dataclass(frozen=True)
class CallRow:
    """A distinct call: measured once, for all `sites` (ids) that make it, `calls` times in a step."""

    call: SampledCall
    times: CallTimes
    sites: tuple[str, ...]
    calls: int


@dataclass(frozen=True)
class Bench:
    """What was measured. `rows` are ordered by what they gain, the worst first."""

    model: str
    about: Mapping[str, Any]  # machine, versions, threads
    settings: Mapping[str, Any]
    step: StepRow
    rows: tuple[CallRow, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        from ..report.bench import bench_table  # rich is not needed before something is printed
        from ..report.console import columns, text_of

        return text_of(bench_table(self.facts, columns()), columns())

    @property
    def facts(self) -> dict[str, Any]:
        """The same as plain data, JSON-able."""
        from .facts import bench_facts

        return bench_facts(self)


def bench(
    model: nn.Module | None,
    fast: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    optimizer: str = "sgd",
    repeat: int | None = None,
    seconds: float = SECONDS,
    threads: int | None = None,
    sites: bool = True,
    memory: bool = True,
    name: str | None = None,
    tick: Tick | None = None,
) -> Bench:
    """Measure `fast`, a rewritten model, against `model`, the one it was made from; None stands for
    `fast` with every site exact (all there is for a model that an emitted file built).

    A training step is `zero_grad`, forward, `step.loss_of`, backward and the optimizer's step ("sgd" with
    momentum, or "adam"), on the inputs given. Both sides run in turn in this process, `repeat` times or
    as often as `seconds` allow in all, with `threads` threads of torch (None: as many as it has).
    `sites` measures each distinct sampled call, too; `memory` the peak resident memory of both sides,
    each in a process of its own. `tick` hears what is being done, and the share of it that is done.

    Copies of the models run: parameters, buffers, global random state and threads stay as they are.
    Raises RequestError for a model that does not sample, CaptureError for one that does not train."""
    budget = Budget(seconds, repeat)
    inputs = Inputs((args,) if isinstance(args, Tensor) else tuple(args), kwargs)
    said = tick or (lambda doing, done: None)
    check_request(optimizer, budget, threads)
    if not any(True for _ in sampling_modules(fast)):
        raise RequestError(
            f"{type(fast).__name__} samples nowhere, so there is nothing to compare",
            remedy="bench a model that fxapprox rewrote, or say what to sample",
        )
    with torch_threads(threads), kept_random_state(), torch.inference_mode(False), torch.enable_grad():
        exact = unsample(deep_copy(fast)) if model is None else model
        calls = sampled_calls(fast, inputs)
        step, notes = _step(exact, fast, inputs, calls, optimizer, budget, memory, said)
        rows = _rows(calls, budget, said) if sites else ()
        about = machine()
    settings = {"optimizer": optimizer, "repeat": repeat, "seconds": None if repeat else seconds}
    return Bench(name or type(fast).__name__, about, settings, step, rows, tuple(notes))


def check_request(optimizer: str, budget: Budget, threads: int | None) -> None:
    """Raise RequestError for what `bench` would refuse, whatever the model."""
    budget.check()
    if optimizer not in OPTIMIZERS:
        raise RequestError(f"unknown optimizer {optimizer!r}", remedy=one_of(optimizer, OPTIMIZERS))
    if threads is not None and threads < 1:
        raise RequestError(f"threads {threads} is not 1 or more")


def _step(
    exact: nn.Module,
    fast: nn.Module,
    inputs: Inputs,
    calls: Sequence[SampledCall],
    optimizer: str,
    budget: Budget,
    memory: bool,
    tick: Tick,
) -> tuple[StepRow, list[str]]:
    found = sides(exact, fast, inputs)
    doing = "training steps, exact and rewritten in turn"
    both, notes = time_steps(found, optimizer, budget.share(OF_STEP), tick=partial(tick, doing))
    peaks: dict[str, Peak] | str = "not asked for"
    if memory:
        best = {name: found[name, side.form] for name, side in both.items()}
        peaks = _memory(best, optimizer, tick)
    flops, after = _flops(exact, fast, inputs, calls)
    return StepRow(both["exact"], both["ours"], flops, after, peaks), notes


def _memory(
    best: Mapping[str, tuple[nn.Module, Inputs]], optimizer: str, tick: Tick
) -> dict[str, Peak] | str:
    peaks: dict[str, Peak] = {}
    for place, (name, (model, inputs)) in enumerate(best.items()):
        tick("peak memory, a process for each side", place / len(best))
        for parameter in model.parameters():
            parameter.grad = None
        peak = peak_memory(model, inputs, optimizer)
        if isinstance(peak, str):
            return f"{name}: {peak}"
        peaks[name] = peak
    return peaks


def _flops(
    exact: nn.Module, fast: nn.Module, inputs: Inputs, calls: Sequence[SampledCall]
) -> tuple[int, int]:
    """FLOPs of the whole step, exact and as chosen. Without a record of the capture the whole is taken as
    three times the forward pass: both gradients cost as much."""
    inside, after = sum(call.flops for call in calls), sum(call.flops_after for call in calls)
    record = fast.__dict__.get(ATTRIBUTE)
    whole = record.total_flops if isinstance(record, Record) else 3 * forward_flops(exact, inputs)
    whole = max(whole, inside)
    return whole, whole - inside + after


def _rows(calls: Sequence[SampledCall], budget: Budget, tick: Tick) -> tuple[CallRow, ...]:
    alike: dict[str, list[SampledCall]] = {}
    for call in calls:
        alike.setdefault(call.key, []).append(call)
    share = budget.share((1 - OF_STEP) / max(len(alike), 1))
    rows = []
    for place, same in enumerate(alike.values()):
        ids = tuple(dict.fromkeys(site for call in same for site in call.sites))
        times = time_call(same[0], share, tick=partial(_tick_of, tick, place, len(alike)))
        rows.append(CallRow(same[0], times, ids, len(same)))
    return tuple(sorted(rows, key=lambda row: row.times.ratio.median))


def _tick_of(tick: Tick, place: int, count: int, done: float) -> None:
    tick("each distinct site", (place + done) / count)
