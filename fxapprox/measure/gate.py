"""The gate's measurements: each distinct call of a plan, exact against sampled, in a few seconds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

from ..capture._types import Capture
from ..capture.nests import tensors
from ..capture.trials import copied
from ..choices import Choice, Sampled
from ..passes.layout import lay_out
from ..passes.substitute import carried_out
from ..plan import Decision, Plan
from ..schedules import Schedule
from ..sites import PRODUCTS
from ..verdict import Verdict
from .cache import Cache, Timed
from .calls import SampledCall, sampled_calls
from .sites import CallTimes, time_call
from .timing import Budget

SECONDS = 3.0
"""Time for all of it, the forward pass that meets the calls included."""
AT_LEAST = 1.5
"""Of it for the measurements, however long that forward pass takes."""
EACH = Budget(seconds=0.1, least=3, warm_up=1)
"""For one of them."""
ROUNDS = EACH.least + EACH.warm_up + 1
"""Rounds that a measurement takes at least: one more makes the operands."""
RESERVE = 0.4
"""Of SECONDS, for calls that take less than QUICK to measure: small ones are cheap to ask and lose most."""
QUICK = 0.02
GRACE = 0.5
"""Seconds over the time after which a measurement that takes longer than foreseen is broken off."""
PRIOR = 2e-10
"""Seconds for a FLOP of the exact and the sampled call together, where no call of LARGE FLOPs is known."""
LARGE = 1e8
NOISY = 1.5
"""Quartiles of a ratio that lie further apart than this tell of the machine's other work: not kept."""
DOING = "measuring what is faster sampled"
Tick = Callable[[str, float], object]
Likeness = tuple[str, tuple[tuple[str, Choice], ...]]


def verdicts(
    captured: Capture, decisions: Sequence[Decision], *, tick: Tick | None = None
) -> dict[str, Verdict]:
    """What the gate finds at the sites of these decisions, by id; a site that no training forward on the
    example inputs reaches is missing.

    Calls that take equally long are measured once, on random operands of their shapes, those with most
    FLOPs first, in SECONDS all in all and one measurement more at most; what there is no time for is judged
    by the nearest in FLOPs that is of the same kind and treatment. Copies of the model run. Nothing raises:
    a number that cannot be had is not worth a failed rewrite, and the verdict says why there is none."""
    threads = torch.get_num_threads()
    began = time.perf_counter()
    try:
        calls = _calls(captured, decisions)
    except Exception as failure:
        return {d.site.id: Verdict("unmeasured", threads, by=_said(failure)) for d in decisions}
    found = _Found(Cache(threads))
    ends = max(began + SECONDS, time.perf_counter() + AT_LEAST)
    found.look_at(calls, ends, tick or (lambda doing, done: None))
    by_site: dict[str, list[SampledCall]] = {}
    for call in calls:
        for site in call.sites:
            by_site.setdefault(site, []).append(call)
    return {site: found.verdict(own, threads) for site, own in by_site.items()}


class _NoValues(Exception):
    """Nothing runs, so nothing can be timed."""


class _OutOfTime(Exception):
    """A measurement takes longer than there is time for all of them."""


def _calls(captured: Capture, decisions: Sequence[Decision]) -> tuple[SampledCall, ...]:
    """The sampled calls of a training step that does what these decisions say, at their average keep."""
    inputs = captured.inputs
    held = [*tensors((inputs.args, dict(inputs.kwargs or {}))), *captured.model.parameters()]
    if any(one.is_meta or isinstance(one, FakeTensor) for one in held):
        raise _NoValues("the model or its inputs hold no values")
    with torch.inference_mode(False):
        averages = tuple(replace(one, choice=_at_average(one.choice)) for one in decisions)
        model, _ = carried_out(captured, Plan(captured.origin, "", averages))
        lay_out(model)
        model.train()
        return sampled_calls(model, copied(inputs), copy=False)


def _at_average(choice: Choice | None) -> Choice | None:
    """The choice with each schedule held at its average: what a step of the training costs."""
    if choice is None:
        return None
    averaged: dict[str, Any] = {}
    for name in PRODUCTS:
        how = choice.treatment(name)
        if isinstance(how, Sampled) and isinstance(how.keep, Schedule):
            averaged[name] = replace(how, keep=sum(keep * share for keep, share in how.keep.parts))
    return replace(choice, **averaged)


def _said(failure: Exception) -> str:
    text = str(failure).splitlines()
    first = text[0] if text else ""
    return first if isinstance(failure, _NoValues) else f"{type(failure).__name__}: {first}"


def _likeness(call: SampledCall) -> Likeness:
    """What another call must have in common for its ratio to say something of this one's."""
    kind = call.module.__dict__["_fxapprox"].kind.name
    return kind, tuple((one.part, one.choice) for one in call.contracted)


class _Found:
    """What is known of calls by their keys, and the reasons where nothing can be."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.timed: dict[str, Timed] = {}
        self.distinct: dict[str, SampledCall] = {}
        self.failed: dict[str, str] = {}

    def look_at(self, calls: Sequence[SampledCall], ends: float, tick: Tick) -> None:
        """Take each distinct call from the cache or measure it, as far as the time until `ends` allows."""
        alike: dict[str, list[SampledCall]] = {}
        for call in calls:
            alike.setdefault(call.key, []).append(call)
        self.distinct = {key: same[0] for key, same in alike.items()}
        left: list[SampledCall] = []
        for same in sorted(alike.values(), key=lambda same: sum(one.flops for one in same), reverse=True):
            known = self.cache.get(same[0].key, same[0].device)
            if known is None:
                left.append(same[0])
            else:
                self.timed[same[0].key] = known
        watch = _watch(time.perf_counter(), ends, tick)
        while left:
            remains = ends - time.perf_counter()
            following = next((one for one in left if self._fits(one, remains)), None)
            if following is None:
                break
            left.remove(following)
            self._measure(following, remains / (len(left) + 1), watch)

    def _fits(self, call: SampledCall, seconds: float) -> bool:
        """Whether there is time to measure the call in the seconds that are left of all."""
        cost = self._cost(call)
        return cost < (seconds if cost < QUICK else seconds - RESERVE)

    def _cost(self, call: SampledCall) -> float:
        """Seconds that measuring it takes at least, at the speed of the known call that is nearest in FLOPs,
        a large one: of small calls the time is not in the FLOPs."""
        known = [one for key in self.timed if (one := self.distinct[key]).flops >= LARGE]
        near = min(known, key=lambda one: abs(math.log(one.flops / max(call.flops, 1))), default=None)
        rate = PRIOR
        if near is not None:
            timed = self.timed[near.key]
            rate = (timed.exact + timed.ours) / near.flops
        return ROUNDS * rate * call.flops

    def _measure(self, call: SampledCall, seconds: float, watch: Callable[[float], object]) -> None:
        budget = replace(EACH, seconds=min(EACH.seconds, seconds))
        try:
            times = time_call(call, budget, limit=False, forms=False, tick=watch)
        except _OutOfTime:
            return
        except Exception as failure:
            self.failed[call.key] = _said(failure)
            return
        timed = self.timed[call.key] = _timed(times)
        if timed.upper <= NOISY * timed.lower:
            self.cache.put(call.key, call.device, timed)

    def _like(self, call: SampledCall) -> SampledCall | None:
        """The measured call of its kind and treatment that is nearest in FLOPs."""
        wanted, flops = _likeness(call), math.log(max(call.flops, 1))
        alike = [one for key in self.timed if _likeness(one := self.distinct[key]) == wanted]
        return min(alike, key=lambda one: abs(math.log(max(one.flops, 1)) - flops), default=None)

    def verdict(self, calls: Sequence[SampledCall], threads: int) -> Verdict:
        """Of a site that makes these calls in a step: the time of all of them, exact over sampled."""
        parts: list[Timed] = []
        judges: list[str] = []
        for call in calls:
            if (reason := self.failed.get(call.key)) is not None:
                return Verdict("unmeasured", threads, by=reason)
            timed = self.timed.get(call.key)
            if timed is None:
                near = self._like(call)
                if near is None:
                    return Verdict("unmeasured", threads, by="no time was left, and no call like it is known")
                timed = self.timed[near.key]
                timed = replace(timed, exact=timed.exact * call.flops / max(near.flops, 1))
                judges += near.sites[:1]
            parts.append(timed)
        exact = sum(one.exact for one in parts)
        ratio = exact / sum(one.exact / one.ratio for one in parts)
        by = ", ".join(dict.fromkeys(judges))
        return Verdict("judged" if judges else "measured", threads, round(ratio, 4), by)


def _watch(began: float, ends: float, tick: Tick) -> Callable[[float], None]:
    """Tells how far the time is spent, and ends a measurement that takes too long."""

    def watch(_: float) -> None:
        now = time.perf_counter()
        tick(DOING, min((now - began) / (ends - began), 1.0))
        if now > ends + GRACE:
            raise _OutOfTime

    return watch


def _timed(times: CallTimes) -> Timed:
    lower, upper = times.ratio.quartiles
    return Timed(times.exact.best.median, times.ratio.median, lower, upper)
